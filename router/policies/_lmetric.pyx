"""`lmetric`: least (queued prompt tokens + own uncached tokens) x (requests in flight + 1).

The product of LMETRIC (arXiv 2603.15202). The addition of 1 keeps an idle endpoint from scoring 0
whatever the prompt costs there.
"""

from router._policy cimport Ask, Policy, hit_tokens
from router._table cimport Standing, Table, stand


cdef class Lmetric(Policy):
    reads_prompts = True
    terms = ("queued_tokens", "own_tokens", "in_flight")

    cdef double cost(self, Table table, const Ask* ask, int slot, double* terms) noexcept nogil:
        cdef Standing load
        cdef double own = ask.n_tokens - hit_tokens(table, ask, slot)
        stand(table, slot, ask.now_s, &load)
        if terms != NULL:
            terms[0] = load.prefill_tokens
            terms[1] = own
            terms[2] = load.in_flight
        return (load.prefill_tokens + own + 1) * (load.in_flight + 1) / table.rows[slot].share
