"""See _recent.pxd."""

from libc.stdint cimport uint64_t

from router._index cimport Index

cdef enum:
    N_SETS = 4096


cdef class Recent:
    """Room for `capacity` blocks in each of two indexes; more, and entries live shorter."""

    def __init__(self, double life_s=1.0, size_t capacity=131072):
        self.life_s = life_s
        self.young = _own_index(capacity)
        self.old = _own_index(capacity)

    cdef void clear(self) noexcept:
        self.young.clear()
        self.old.clear()

    cdef void expire(self, double now_s) noexcept:
        cdef double passed_s = now_s - self.turned_s
        if passed_s >= self.life_s:
            self._turn(now_s)
            if passed_s >= 2 * self.life_s:
                self._turn(now_s)   # nothing came for long: the young are old, too

    cdef void _turn(self, double now_s) noexcept:
        self.young, self.old = self.old, self.young
        self.young.clear()
        self.turned_s = now_s

    cdef void add(self, const uint64_t* keys, size_t n, int slot, double now_s) noexcept:
        self.expire(now_s)
        if self.young.n_blocks + n > self.young.capacity:
            self._turn(now_s)
        self.young.add_all(keys, n, slot)


def _own_index(size_t capacity):
    return Index(bytearray(Index.size(capacity, N_SETS)), capacity, N_SETS)
