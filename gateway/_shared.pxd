"""Shared memory of the control process and its data workers: the endpoint table and all counts.

One writer per column, no locks. A killed worker loses no count: its column stays, and its
successor goes on in it.
"""

from libc.stdint cimport int64_t

from router._adapters cimport Adapters
from router._index cimport Index
from router._sessions cimport Sessions
from router._table cimport MAX_SLOTS, Table

cdef enum:
    MAX_MODELS = 64         # the last one stands for every further model
    N_BOUNDS = 20           # of a histogram; one more bucket holds the rest

cpdef enum Count:
    # Of one worker. The first block is the life of a request: ACCEPTED is the sum of the others
    # but for those under way.
    ACCEPTED = 0
    COMPLETED = 1
    CANCELLED = 2
    FAILED = 3
    REFUSED = 4
    # the life of a dispatch: DISPATCHED is the sum of the others but for those under way
    DISPATCHED = 8
    ANSWERED = 9            # a whole response came
    ABANDONED = 10          # we left: the client had gone
    DIAL_FAILED = 11        # no connection
    LOST = 12               # the connection broke before the response's end
    CONDEMNED = 13          # the endpoint was declared dead or hung
    TIMED_OUT = 14
    TURNED_AWAY = 15        # an answer that made us ask elsewhere (503, 429, a dying engine ...)
    MALFORMED = 16          # bad framing from the engine
    CUT = 17                # ended by us for another cause (drain, slow client, worker lost)
    # retries by cause
    RETRY_DIAL = 20
    RETRY_REUSED = 21       # a kept connection was gone: once more to the same endpoint
    RETRY_LOST = 22
    RETRY_CONDEMNED = 23
    RETRY_STATUS = 24
    RETRY_DYING = 25
    RETRY_REFUSED_BY_BUDGET = 26
    # cancels by cause
    CANCEL_CLIENT_GONE = 30
    CANCEL_CLIENT_SLOW = 31
    CANCEL_PIPELINE = 32    # too much sent ahead
    # connections and bytes
    CLIENT_OPENED = 36
    CLIENT_CLOSED = 37
    UPSTREAM_OPENED = 38
    UPSTREAM_CLOSED = 39
    CLIENT_BYTES_IN = 40
    CLIENT_BYTES_OUT = 41
    UPSTREAM_BYTES_IN = 42
    UPSTREAM_BYTES_OUT = 43
    EVENTS = 44             # data events relayed
    TICKS = 45              # of the wheel
    ACCESS_LOG_DROPPED = 46
    SENT_DROPPED = 47       # prompts that the index did not hear of
    # prompts whose token ids were wanted, by what came of it
    IDS_KNOWN = 48
    IDS_UNKNOWN = 49        # a prompt that cannot be rebuilt here: images, other paths ...
    IDS_LATE = 50
    IDS_FULL = 51           # too many wait already
    IDS_UNLOADED = 52       # the tokenizer is not loaded, or makes other ids than the engine
    # gauges, zeroed when a worker is lost
    BUFFERED_BYTES = 56     # of request bodies, until their response begins
    WAITING_FOR_DIAL = 57
    HELD_REQUESTS = 58      # that wait in the gateway for an engine with room
    HELD_BYTES = 59         # of their bodies
    N_COUNTS = 64

cpdef enum:
    FIRST_GAUGE = 56

# Offsets in 64-bit words from the start of a worker's column.
cpdef enum Area:
    COUNTS = 0
    REASONS = 64                    # by Reason (gateway.reasons), 64 of them
    LOOP_LAG = 128                  # histogram
    OWN_TIME = 128 + 22             # histogram: time in our own code per request
    MODELS = 192
    MODEL_WIDTH = 128
    ENDPOINTS = 192 + 128 * 64      # then ENDPOINT_WIDTH words per slot
    ENDPOINT_WIDTH = 64
    COLUMN = 192 + 128 * 64 + 64 * 1024

# Within a model's words.
cpdef enum ModelWord:
    M_STATUS = 0                    # requests by status, 24 words: see STATUSES
    M_TTFT = 24                     # histogram
    M_ITL = 46                      # histogram
    M_TOTAL = 68                    # histogram
    M_TOKENS_IN = 90                # as the engine said
    M_TOKENS_OUT = 91
    M_TOKENS_IN_ESTIMATED = 92
    M_TOKENS_OUT_ESTIMATED = 93
    M_CACHED_TOKENS = 94
    M_HELD = 96                     # histogram: waits for an engine with room

# Within an endpoint's words.
cpdef enum EndpointWord:
    E_STATUS = 0                    # upstream responses by status
    E_TTFT = 24                     # histogram
    E_DISPATCHED = 46
    E_ANSWERED = 47
    E_FAILED = 48                   # by the endpoint's fault
    E_ABANDONED = 49
    E_DIALS = 50
    E_DIALS_FAILED = 51
    E_BYTES_IN = 52
    E_BYTES_OUT = 53

cdef class Shared:
    cdef int64_t* words             # [worker][COLUMN]
    cdef object memory
    cdef readonly Table table
    cdef readonly Index index       # which endpoint holds which blocks; the control process writes
    cdef readonly Sessions sessions     # written by all workers
    cdef readonly Adapters adapters     # the same, and by the control process
    cdef readonly int n_workers
    cdef readonly int fd
    cdef int64_t* column(self, int worker) noexcept nogil

# Add one observation, in seconds, to the histogram that begins at `words`.
cdef void observe(int64_t* words, const double* bounds_s, double value_s) noexcept nogil
cdef const double* latency_bounds_s() noexcept nogil
cdef const double* short_bounds_s() noexcept nogil
# Index of a status in such a block.
cdef int status_index(int status) noexcept nogil
