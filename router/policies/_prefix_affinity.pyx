"""`prefix-affinity`: equal beginnings of prompts go to the same endpoint, while it is not crowded.

Rendezvous hashing (Thaler and Ravishankar 1998) with bounded loads (Mirrokni et al. 2018): no
endpoint has more than 1.25 times the mean. Needs no knowledge of caches, and an endpoint that
comes or goes moves only its own share of the prompts.
"""

from libc.math cimport ceil

from router._policy cimport Ask, Policy, may_take, rank
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
        # In [0, 1): the least wins.
        cdef double place = (rank(table, ask.affinity, slot) >> 11) * (1.0 / 9007199254740992.0)
        cdef int n = table.in_flight(slot)
        if terms != NULL:
            terms[0] = place
            terms[1] = n
            terms[2] = self.limit
        if ask.affinity == 0:
            return n                        # nothing to meet again by
        if n + 1 > self.limit * table.rows[slot].share:
            return 2 + n                    # crowded: the emptiest of those
        return place
