"""`weighted`: a weighted sum of scores in 0..1, as llm-d's endpoint picker has it.

2 x the share of the prompt that is cached + 1 x (1 - requests / the most requests anywhere)
+ 1 x (1 - share of the KV cache in use). Known to users, and a baseline: its terms have no common
unit, so that 0.2 of a short prompt weighs as much as 0.2 of a long one.
"""

from router._policy cimport Ask, Policy, hit_tokens, may_take
from router._table cimport Standing, Table, stand


cdef class Weighted(Policy):
    reads_prompts = True
    terms = ("prefix", "queue", "kv")

    cdef double most

    cdef void prepare(self, Table table, const Ask* ask) noexcept nogil:
        cdef int index
        self.most = 1
        for index in range(ask.n_slots):
            if may_take(table, ask, ask.slots[index]):
                self.most = max(self.most, <double>table.in_flight(ask.slots[index]))

    cdef double cost(self, Table table, const Ask* ask, int slot, double* terms) noexcept nogil:
        cdef Standing load
        cdef double prefix = 0, queue, kv = 1
        cdef double room = table.rows[slot].profile.kv_tokens
        stand(table, slot, ask.now_s, &load)
        if ask.n_tokens > 0:
            prefix = hit_tokens(table, ask, slot) / ask.n_tokens
        queue = 1 - load.in_flight / self.most
        if room > 0:
            kv = max(0.0, 1 - load.kv_tokens / room)
        if terms != NULL:
            terms[0] = prefix
            terms[1] = queue
            terms[2] = kv
        # Below 0 throughout, so that a starting endpoint's share makes it worse.
        return -(2 * prefix + queue + kv) * table.rows[slot].share
