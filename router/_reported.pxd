"""What an engine's KV cache holds, by what the engine reports: blocks stored, removed, cleared.

An engine names its blocks by hashes of its own, which say nothing to us; with each it tells the
tokens. So the blocks are hashed anew from their tokens, and a map leads from the engine's hash to
ours. Engines may store the same hash twice and remove it twice (a prompt of exactly k blocks reuses
k - 1, since its last token must be computed): each is counted. Each block costs 36 to 50 bytes
here, beside its entry in the index.
"""

from libc.stdint cimport uint32_t, uint64_t

from router._index cimport Index
from router._map cimport Map

cdef struct Reported:
    uint64_t key            # our hash; of an unused one, the number of the next unused
    uint32_t n              # how often it is stored

cdef class ReportedCache:
    cdef Index index
    cdef readonly int slot
    cdef readonly size_t n_blocks       # distinct ones
    cdef readonly size_t n_orphans      # stored behind a parent that was never reported
    cdef readonly size_t n_strays       # removed without having been stored
    cdef Map numbers                    # engine's hash -> number of its block
    cdef Reported* blocks               # from 1
    cdef size_t n_room
    cdef uint32_t unused
    # Consecutive blocks of `size` tokens each were stored behind `parent`, or first of all behind
    # the namespace `root` where has_parent is false.
    cdef int stored(self, bint has_parent, uint64_t parent, uint64_t root, const uint64_t* hashes,
                    size_t n, const uint32_t* tokens, size_t size) except -1
    cdef void removed(self, uint64_t hash) noexcept nogil
    cdef void clear(self) noexcept
    # private
    cdef int _store(self, uint64_t hash, uint64_t key) except -1
    cdef int _more_room(self) except -1
