"""`least-requests`: the endpoint with the fewest requests in flight, over all workers."""

from libc.stdint cimport uint32_t

from router._table cimport Ask, Policy, Table, may_take


cdef class LeastRequests(Policy):
    """Least (in flight + 1) / share; equals take turns, so that no endpoint is always first."""

    cdef uint32_t turn

    def __init__(self, str name, uint32_t seed=0):
        self.name = name
        self.turn = seed

    cdef int pick(self, Table table, const Ask* ask) noexcept:
        cdef int step, index, slot, best = -1
        cdef double cost, least = 1e300
        for step in range(ask.n_slots):
            index = (self.turn + <uint32_t>step) % <uint32_t>ask.n_slots
            slot = ask.slots[index]
            if not may_take(table, ask, slot):
                continue
            cost = (table.in_flight(slot) + 1) / table.rows[slot].share
            if cost < least:
                least = cost
                best = slot
        self.turn += 1
        return best
