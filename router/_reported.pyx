"""See _reported.pxd."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, realloc

from router._hash cimport chain
from router._index cimport Index
from router._map cimport Map

cdef enum:
    FIRST_ROOM = 1024

# An engine's hash of 0 stands in the map as this.
cdef uint64_t ZERO = 0x6a09e667f3bcc908


cdef class ReportedCache:
    """The reported cache of the endpoint in `slot`; its blocks are kept in `index`."""

    def __init__(self, Index index, int slot):
        self.index = index
        self.slot = slot
        self.numbers = Map()

    def __dealloc__(self):
        free(self.blocks)

    cdef int stored(self, bint has_parent, uint64_t parent, uint64_t root, const uint64_t* hashes,
                    size_t n, const uint32_t* tokens, size_t size) except -1:
        cdef uint64_t key = root
        cdef uint64_t* number
        cdef size_t at
        if has_parent:
            number = self.numbers.get(parent or ZERO)
            if number == NULL:
                self.n_orphans += n
                return 0
            key = self.blocks[number[0]].key
        for at in range(n):
            chain(key, tokens + at * size, 4 * size, 4 * size, &key)
            self._store(hashes[at] or ZERO, key)
        return 0

    cdef int _store(self, uint64_t hash, uint64_t key) except -1:
        cdef uint64_t* number = self.numbers.put(hash)
        if number == NULL:
            raise MemoryError
        if number[0]:
            self.blocks[number[0]].n += 1
            return 0
        if self.unused == 0:
            self._more_room()
        number[0] = self.unused
        self.unused = <uint32_t>self.blocks[number[0]].key
        self.blocks[number[0]].key = key
        self.blocks[number[0]].n = 1
        self.n_blocks += 1
        self.index.add(key, self.slot)
        return 0

    cdef int _more_room(self) except -1:
        # By a quarter: large ones are moved by their pages, not copied, and half would stand empty.
        cdef size_t room = max(<size_t>FIRST_ROOM, self.n_room + self.n_room // 4)
        cdef Reported* blocks = <Reported*>realloc(self.blocks, (room + 1) * sizeof(Reported))
        cdef size_t number
        if blocks == NULL:
            raise MemoryError
        self.blocks = blocks
        for number in range(room, self.n_room, -1):
            blocks[number].key = self.unused
            blocks[number].n = 0
            self.unused = <uint32_t>number
        self.n_room = room
        return 0

    cdef void removed(self, uint64_t hash) noexcept nogil:
        cdef uint64_t* number = self.numbers.get(hash or ZERO)
        cdef Reported* block
        if number == NULL:
            self.n_strays += 1
            return
        block = &self.blocks[number[0]]
        block.n -= 1
        if block.n:
            return
        self.index.remove(block.key, self.slot)
        block.key = self.unused
        self.unused = <uint32_t>number[0]
        self.n_blocks -= 1
        self.numbers.remove(hash or ZERO)

    cdef void clear(self) noexcept:
        cdef size_t number
        for number in range(1, self.n_room + 1):
            if self.blocks[number].n:
                self.index.remove(self.blocks[number].key, self.slot)
        free(self.blocks)
        self.blocks = NULL
        self.n_room = self.n_blocks = 0
        self.unused = 0
        self.numbers.clear()

    # -- for Python callers

    def store(self, parent, uint64_t root, const uint64_t[::1] hashes, const uint32_t[::1] tokens):
        """`stored`; `parent` is None for first blocks."""
        cdef size_t n = hashes.shape[0]
        if n == 0 or tokens.shape[0] % n:
            raise ValueError(f"{tokens.shape[0]} tokens are not {n} blocks")
        self.stored(parent is not None, parent or 0, root, &hashes[0], n,
                    &tokens[0] if tokens.shape[0] else NULL, tokens.shape[0] // n)

    def remove(self, uint64_t hash):
        self.removed(hash)

    def forget_all(self):
        self.clear()

    def keys(self):
        """Our hashes of all blocks."""
        return {
            self.blocks[number].key for number in range(1, self.n_room + 1)
            if self.blocks[number].n
        }
