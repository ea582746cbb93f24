"""Where each session was last: session -> endpoint, for all workers of a gateway.

    unknown --note(slot)--> there --note(other)--> at the other     a session is where it was last
    there --idle_s, another endpoint in its slot, or more sessions than there is room for--> unknown

Bounded: 64 Ki sessions in 512 KiB of shared memory that every worker writes; see router._marks.
What is not known here has a place all the same, by `rank`: the same in every gateway.
"""

from libc.stdint cimport uint64_t

from router._policy cimport Ask
from router._table cimport Table

cdef class Sessions:
    cdef object memory
    cdef uint64_t* words
    cdef public double idle_s           # forgotten after this without a request
    # The slot that had the session last; -1: not known.
    cdef int find(self, Table table, uint64_t session, double now_s) noexcept nogil
    cdef void note(self, Table table, uint64_t session, int slot, double now_s) noexcept nogil

# Which endpoint a session belongs to that must stay where it is: its present one while that is up,
# else the first by rendezvous hashing among those that may take it; -1: none.
cdef int bound(Table table, const Ask* ask) noexcept nogil
