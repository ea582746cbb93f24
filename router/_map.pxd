"""A growing map from 64-bit keys to 64-bit values: open addressing, 16 bytes per place.

0 is no key. Pointers to values hold until the next `put` or `remove`.
"""

from libc.stdint cimport uint64_t

# Where in [0, n) a hash belongs: by its high bits, without a division.
cdef extern from *:
    """
    #include <stdint.h>
    static inline uint64_t headgate_place(uint64_t hash, uint64_t n) {
        return (uint64_t)(((unsigned __int128)hash * n) >> 64);
    }
    """
    uint64_t place_of "headgate_place"(uint64_t hash, uint64_t n) noexcept nogil

cdef struct Pair:
    uint64_t key
    uint64_t value

cdef class Map:
    cdef readonly size_t n          # keys
    cdef size_t n_places
    cdef Pair* places
    cdef uint64_t* get(self, uint64_t key) noexcept nogil       # NULL: not there
    # The value of the key, which is new (0) if it was not there. NULL: no memory.
    cdef uint64_t* put(self, uint64_t key) noexcept nogil
    cdef void remove(self, uint64_t key) noexcept nogil
    cdef void clear(self) noexcept nogil
    # private
    cdef size_t _home(self, uint64_t key) noexcept nogil
    cdef bint _grow(self) noexcept nogil
