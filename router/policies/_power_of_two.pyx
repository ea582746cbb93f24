"""`power-of-two`: of two endpoints drawn by lot, the one with fewer requests in flight.

Mitzenmacher 2001. With fresh load it is worse than looking at all; with load that is seconds old
it keeps many gateways from choosing the same endpoint.
"""

from libc.stdint cimport int32_t

from router._policy cimport Ask, Policy, may_take
from router._table cimport MAX_SLOTS, Table


cdef class PowerOfTwo(Policy):
    terms = ("in_flight",)

    cdef double cost(self, Table table, const Ask* ask, int slot, double* terms) noexcept nogil:
        cdef int n = table.in_flight(slot)
        if terms != NULL:
            terms[0] = n
        return (n + 1) / table.rows[slot].share

    cdef int pick(self, Table table, const Ask* ask) noexcept nogil:
        cdef int32_t[MAX_SLOTS] able
        cdef int index, one, other, n = 0
        for index in range(ask.n_slots):
            if may_take(table, ask, ask.slots[index]):
                able[n] = ask.slots[index]
                n += 1
        if n == 0:
            return -1
        index = <int>(self.draw() * n)
        one = able[index]
        if n == 1:
            return one
        # The other is drawn from the rest.
        able[index] = able[n - 1]
        other = able[<int>(self.draw() * (n - 1))]
        if self.cost(table, ask, other, NULL) < self.cost(table, ask, one, NULL):
            return other
        return one
