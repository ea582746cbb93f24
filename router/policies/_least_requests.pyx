"""`least-requests`: the endpoint with the fewest requests in flight, over all workers."""

from router._policy cimport Ask, Policy
from router._table cimport Table


cdef class LeastRequests(Policy):
    """Least (in flight + 1) / share."""

    terms = ("in_flight",)

    cdef double cost(self, Table table, const Ask* ask, int slot, double* terms) noexcept nogil:
        cdef int n = table.in_flight(slot)
        if terms != NULL:
            terms[0] = n
        return (n + 1) / table.rows[slot].share
