"""See _map.pxd."""

from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

cdef enum:
    FIRST_PLACES = 16

# Keys may be anything, small numbers too: the product spreads them over the high bits.
cdef uint64_t SPREAD = 0x9e3779b97f4a7c15


cdef class Map:
    """Empty at first. Not for several threads at once."""

    def __dealloc__(self):
        free(self.places)

    cdef size_t _home(self, uint64_t key) noexcept nogil:
        return place_of(key * SPREAD, self.n_places)

    cdef uint64_t* get(self, uint64_t key) noexcept nogil:
        cdef size_t at
        if self.n == 0:
            return NULL
        at = self._home(key)
        while self.places[at].key != key:
            if self.places[at].key == 0:
                return NULL
            at = at + 1 if at + 1 < self.n_places else 0
        return &self.places[at].value

    cdef uint64_t* put(self, uint64_t key) noexcept nogil:
        cdef size_t at
        # Four of five places at most: a search is then three steps long on average.
        if 5 * (self.n + 1) > 4 * self.n_places and not self._grow():
            return NULL
        at = self._home(key)
        while self.places[at].key != key:
            if self.places[at].key == 0:
                self.places[at].key = key
                self.places[at].value = 0
                self.n += 1
                break
            at = at + 1 if at + 1 < self.n_places else 0
        return &self.places[at].value

    cdef void remove(self, uint64_t key) noexcept nogil:
        cdef uint64_t* value = self.get(key)
        cdef size_t gap, at, home
        if value == NULL:
            return
        gap = at = (<size_t>value - <size_t>self.places) // sizeof(Pair)
        self.n -= 1
        # What stands behind moves up, so that no search ends at the gap.
        while True:
            at = at + 1 if at + 1 < self.n_places else 0
            if self.places[at].key == 0:
                break
            home = self._home(self.places[at].key)
            if (at + self.n_places - home) % self.n_places >= (
                    at + self.n_places - gap) % self.n_places:
                self.places[gap] = self.places[at]
                gap = at
        self.places[gap].key = 0

    cdef void clear(self) noexcept nogil:
        free(self.places)
        self.places = NULL
        self.n = self.n_places = 0

    cdef bint _grow(self) noexcept nogil:
        cdef Pair* before = self.places
        cdef size_t n_before = self.n_places
        cdef size_t index, at
        # By half, not double: of a large map at most half stands empty.
        cdef size_t n_places = max(<size_t>FIRST_PLACES, n_before + n_before // 2)
        cdef Pair* places = <Pair*>calloc(n_places, sizeof(Pair))
        if places == NULL:
            return False
        self.places = places
        self.n_places = n_places
        for index in range(n_before):
            if before[index].key:
                at = self._home(before[index].key)
                while places[at].key:
                    at = at + 1 if at + 1 < n_places else 0
                places[at] = before[index]
        free(before)
        return True
