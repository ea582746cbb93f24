"""`round-robin`: the endpoints in turn, whatever their load; a starting endpoint less often."""

from libc.stdint cimport uint32_t

from router._table cimport Ask, MAX_SLOTS, Policy, Table, may_take


cdef class RoundRobin(Policy):
    """Takes turns. An endpoint with share s gets its turn with every (1/s)-th round."""

    cdef uint32_t turn
    cdef float[MAX_SLOTS] credit

    def __init__(self, str name, uint32_t seed=0):
        self.name = name
        self.turn = seed

    cdef int pick(self, Table table, const Ask* ask) noexcept:
        cdef int step, index, slot, fallback = -1
        if ask.n_slots == 0:
            return -1
        for step in range(ask.n_slots):
            index = (self.turn + <uint32_t>step) % <uint32_t>ask.n_slots
            slot = ask.slots[index]
            if not may_take(table, ask, slot):
                continue
            self.credit[slot] += table.rows[slot].share
            if self.credit[slot] >= 1:
                self.credit[slot] -= 1
                self.turn = index + 1
                return slot
            if fallback < 0:
                fallback = index
        if fallback < 0:
            return -1
        self.turn = fallback + 1
        return ask.slots[fallback]
