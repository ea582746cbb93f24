"""`prefix-affinity`: equal beginnings of prompts go to the same endpoint, while it is not crowded.

Rendezvous hashing (Thaler and Ravishankar 1998) with bounded loads (Mirrokni et al. 2018): no
endpoint has more than 1.25 times the mean. Needs no knowledge of caches, and an endpoint that
comes or goes moves only its own share of the prompts.
"""

from libc.math cimport ceil
from libc.stdint cimport uint64_t

from router._hash cimport root_of
from router._policy cimport Ask, Policy, may_take
from router._table cimport Table

cdef double CROWDED = 1.25


cdef class PrefixAffinity(Policy):
    reads_prompts = True
    terms = ("rank", "in_flight", "limit")

    cdef double limit

    cdef void prepare(self, Table table, const Ask* ask) noexcept nogil:
        cdef int index, n = 0
        cdef double total = 1
        for index in range(ask.n_slots):
            if may_take(table, ask, ask.slots[index]):
                total += table.in_flight(ask.slots[index])
                n += 1
        self.limit = ceil(CROWDED * total / n) if n else 1

    cdef double cost(self, Table table, const Ask* ask, int slot, double* terms) noexcept nogil:
        cdef uint64_t[2] pair
        cdef double rank
        cdef int n = table.in_flight(slot)
        pair[0] = ask.affinity
        pair[1] = table.rows[slot].identity + <uint64_t>slot
        rank = (root_of(pair, sizeof(pair)) >> 11) * (1.0 / 9007199254740992.0)
        if terms != NULL:
            terms[0] = rank
            terms[1] = n
            terms[2] = self.limit
        if ask.affinity == 0:
            return n                        # nothing to meet again by
        if n + 1 > self.limit * table.rows[slot].share:
            return 2 + n                    # crowded: the emptiest of those
        return rank
