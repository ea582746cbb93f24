"""`round-robin`: the endpoints in turn, whatever their load; a starting endpoint less often."""

from libc.stdint cimport uint32_t

from router._policy cimport Ask, Policy, may_take
from router._table cimport MAX_SLOTS, Table


cdef class RoundRobin(Policy):
    """Takes turns. An endpoint with share s gets its turn with every (1/s)-th round."""

    cdef float[MAX_SLOTS] credit

    cdef int pick(self, Table table, const Ask* ask) noexcept nogil:
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
