"""The endpoint table: one row per slot, and the load that each worker has put on it.

The memory belongs to the caller (shared between the control process and the data workers). A row
is written by the control process alone, a load cell by its one worker alone; readers take no
lock: every field is an aligned word, and no decision needs two fields to agree.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

cdef enum:
    MAX_SLOTS = 1024
    MAX_TRIED = 4

cpdef enum State:
    EMPTY = 0       # no endpoint in this slot
    UNKNOWN = 1     # has not answered yet: gets no requests
    READY = 2       # gets requests, by its share
    TRIAL = 3       # back from OPEN: gets one request at a time
    OPEN = 4        # the circuit is open: failing, dead or stalled; gets no requests
    DRAINING = 5    # finishes what it has; gets no requests

cpdef enum:
    # Added to `failures_in_row` on an answer that only a dying engine gives.
    DYING = 1000

cdef struct Row:
    uint32_t generation     # grows when the slot gets another endpoint
    uint8_t state           # State
    float share             # 0 < share <= 1: of a full load, while it starts slowly

cdef struct Load:
    int32_t in_flight       # dispatched and not released
    int32_t producing       # of these, streams that have sent an event
    int32_t failures_in_row  # dispatches that failed by the endpoint's fault since the last success
    int32_t dials_in_row    # failed dials since the last connection
    double last_event_s     # monotonic: when any of its streams last sent an event
    int64_t begun           # dispatches whose response began, and not as a failure
    int64_t successes       # dispatches that were answered whole

cdef class Table:
    cdef Row* rows
    cdef Load* loads        # [worker][slot]
    cdef object memory      # keeps the buffer alive
    cdef readonly int n_workers
    cdef int32_t in_flight(self, int slot) noexcept nogil      # over all workers
    cdef Load* cell(self, int worker, int slot) noexcept nogil

cdef struct Ask:
    # What a policy may look at besides the table.
    const int32_t* slots    # endpoints that have the model, ascending
    int n_slots
    int32_t tried[MAX_TRIED]    # slots this request has been at, to be avoided
    int n_tried
    double now_s

cdef class Policy:
    cdef readonly str name
    # The slot that shall have the request, or -1 if none may have it. Pure, never blocks.
    cdef int pick(self, Table table, const Ask* ask) noexcept

# May this slot get this request? (state, trial rule, not tried)
cdef bint may_take(Table table, const Ask* ask, int slot) noexcept nogil
