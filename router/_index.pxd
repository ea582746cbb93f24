"""Which endpoints hold which KV blocks: block hash -> set of endpoint slots.

Sets of slots are interned: a block's entry is the number of a set, and blocks that the same
endpoints hold (a shared prefix, hundreds of blocks long) name the same set. Walking a prompt is
therefore one lookup per block, and work only where the holders change.

Memory is the caller's and fixed; it may be shared between processes. One Index over it writes,
others read without a lock: every field is an aligned word, and what a reader sees of a change
under way is at worst a missing or a wrong hint, never an address outside. 16 bytes per block at
full capacity, and 128 per set.
"""

cimport cython
from libc.stdint cimport int32_t, uint32_t, uint64_t

from router._map cimport Map
from router._table cimport MAX_SLOTS

cdef enum:
    SET_WORDS = MAX_SLOTS // 64
    LINE_ENTRIES = 5
    NO_SET = 0xffffffff

cdef struct Line:
    # One cache line. Entries that find their line full stand in the next that has room.
    uint64_t[LINE_ENTRIES] keys     # 0: free
    uint32_t[LINE_ENTRIES] sets     # below MAX_SLOTS: the set of that one slot
    uint32_t n_passed               # entries that stand further on because this line was full

cdef struct SlotSet:
    uint64_t[SET_WORDS] words


@cython.final
cdef class Index:
    cdef readonly size_t capacity   # blocks
    cdef readonly size_t n_blocks   # of this writer
    cdef readonly size_t n_dropped  # additions for which there was no room
    cdef object memory
    cdef Line* lines
    cdef size_t n_lines
    cdef SlotSet* sets
    cdef uint32_t n_sets
    # the writer's own
    cdef uint32_t* n_uses           # blocks that name a set
    cdef Map interned               # hash of a set -> its number
    cdef uint32_t* free_sets
    cdef uint32_t n_free_sets
    # The endpoint holds the block. False: no room to note it.
    cdef bint add(self, uint64_t key, int slot) noexcept nogil
    # It holds all of these.
    cdef void add_all(self, const uint64_t* keys, size_t n, int slot) noexcept nogil
    # It does no more. Of a block that is not noted for it: nothing.
    cdef void remove(self, uint64_t key, int slot) noexcept nogil
    cdef void clear(self) noexcept nogil
    # The number of the set of holders; NO_SET: nobody's.
    cdef uint32_t find(self, uint64_t key) noexcept nogil
    cdef void prefetch(self, uint64_t key) noexcept nogil
    # private
    cdef void _free_all(self) noexcept nogil
    cdef uint32_t* _entry(self, uint64_t key) noexcept nogil
    cdef uint32_t* _room(self, uint64_t key) noexcept nogil
    cdef uint32_t _changed(self, uint32_t number, int slot, bint has) noexcept nogil
    cdef uint32_t _intern(self, const SlotSet* wanted) noexcept nogil
    cdef void _use(self, uint32_t* entry, uint32_t number) noexcept nogil
    cdef void _unused(self, uint32_t number) noexcept nogil


@cython.final
cdef class Matcher:
    """Looks a prompt up in several indexes at once: a block is held by who holds it in any."""
    cdef list indexes
    cdef readonly size_t n_walked       # blocks that the last match looked at
    cdef int32_t[MAX_SLOTS] depths      # by slot: leading blocks that it holds
    # Fills `depths` of these slots; the largest of them.
    cdef int32_t match(self, const uint64_t* keys, size_t n, const int32_t* slots,
                       int n_slots) noexcept
