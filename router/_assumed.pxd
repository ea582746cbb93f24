"""What an engine's KV cache probably holds, when the engine does not tell: what it was sent last.

Least recently used blocks go first, as in the engine; of one prompt the last blocks before the
first ones. Each block costs 36 to 46 bytes here, beside its entry in the index.
"""

from libc.stdint cimport uint32_t, uint64_t

from router._index cimport Index
from router._map cimport Map

cdef struct Node:
    uint64_t key
    uint32_t newer      # nodes' numbers; 0: none
    uint32_t older

cdef class AssumedCache:
    cdef Index index
    cdef readonly int slot
    cdef readonly size_t capacity       # blocks
    cdef readonly size_t n_blocks
    cdef Node* nodes                    # from 1
    cdef size_t n_nodes
    cdef Map numbers                    # block -> its node's number
    cdef uint32_t newest
    cdef uint32_t oldest
    cdef uint32_t unused                # chain of free nodes, by `older`
    # A prompt of these blocks went to the engine.
    cdef int touch(self, const uint64_t* keys, size_t n) except -1
    # private
    cdef int _more_nodes(self) except -1
    cdef int _add(self, uint64_t key) except -1
    cdef void _link(self, uint32_t number) noexcept nogil
    cdef void _unlink(self, uint32_t number) noexcept nogil
    cdef void _evict(self) noexcept nogil
