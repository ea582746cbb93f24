"""The data plane of one worker: what every connection shares. One per process, one thread."""

from libc.stdint cimport int64_t, uint64_t

from gateway._shared cimport Shared
from gateway.http._head cimport Head
from gateway.http._write cimport Buffer
from gateway.proxy._holder cimport Holder
from gateway.proxy._path cimport Path, Paths
from gateway.proxy._served cimport Served
from gateway.proxy._steering cimport Steering
from gateway.proxy._waiting cimport Waiting
from gateway.proxy._wheel cimport Wheel
from router._keying cimport Prompt
from router._router cimport Router
from router._table cimport Table

cdef double now_s() noexcept nogil      # CLOCK_MONOTONIC, in seconds

cdef class Plane:
    cdef readonly object loop
    cdef Shared shared
    cdef Table table
    cdef readonly int column        # this worker's index
    cdef int64_t* counts            # its column
    cdef Router router
    cdef dict demands               # model name -> Demand
    cdef readonly Wheel wheel
    cdef readonly Waiting waiting   # requests for which no endpoint has room
    cdef bint waking
    cdef readonly object settings   # messages.Settings
    cdef object choices             # of the aliases, as the Fleet said them
    cdef dict contexts              # (CA file, for gRPC) -> TLS context
    cdef unsigned long n_ticks
    # per message scratch, never kept across a callback
    cdef Head head
    cdef Buffer scratch
    # what a Fleet says
    cdef dict models                # name as UTF-8 -> Served
    cdef dict native                # the same, of endpoints that speak KServe's v2 protocol
    cdef dict aliases               # name as UTF-8 -> Split
    cdef dict keys                  # digest -> Holder; empty: open to all
    cdef dict credentials           # keys that were sent and found good -> Holder: no hash twice
    cdef object make_pool
    cdef list pools                 # by slot: Pool or None
    cdef Paths paths
    cdef Steering steering
    cdef dict model_labels          # model or alias as UTF-8 -> bits; only those that have any
    cdef dict strange_labels        # the same -> texts of those that no endpoint has
    cdef Served unnamed             # every endpoint: for requests that name no model
    cdef bint complete
    cdef bytes models_json
    cdef dict cards                 # model name -> its entry of models_json
    cdef public object fetch_metrics    # awaitable text of /metrics, from the control process
    # (target, header lines, body) -> awaitable (status, body), from the control process; 403: no
    cdef public object change_repository
    cdef frozenset origins
    # limits, as C values
    cdef int64_t body_bytes
    cdef int64_t buffered_bytes
    cdef int json_depth
    cdef double head_s
    cdef double body_idle_s
    cdef double body_bytes_per_s
    cdef double connect_s
    cdef double first_byte_s
    cdef double event_s
    cdef double client_stall_s
    cdef double client_keep_alive_s
    cdef double dead_silence_s
    cdef double hold_wait_s
    cdef double hold_s
    cdef double hold_no_engine_s
    cdef int idle_connections
    cdef bint decision_header
    cdef bint half_close
    cdef bint logs_access
    cdef bint kv_transfer_params
    # state
    cdef bint draining
    cdef set sessions               # open client connections
    cdef readonly object empty      # asyncio.Event: draining, and no session is left
    cdef int leave(self, object session) except -1
    cdef list starved               # sessions that stopped reading for want of memory
    cdef readonly object budget     # retry.Budget
    cdef object responses           # bounded map: response id -> (slot, generation, holder)
    cdef uint64_t* sent             # what went where, for the control process: see note_sent
    cdef size_t n_sent
    cdef readonly list access       # records of ended requests, drained by the worker
    cdef public object tokenizing   # gateway.tokenizing.Tokenizing; None: no model needs it
    cdef public object on_made      # called with (response id, slot, generation, holder)
    cdef bytes date                 # value of our own Date headers
    cdef bytes id_prefix
    cdef unsigned long long n_ids
    cdef double last_tick_s

    cdef Holder holder(self, bytes key)         # None: unknown
    cdef bytes new_request_id(self)
    cdef bint is_full(self) noexcept nogil
    # Something has become free at this slot, or anywhere (-1): soon, who waits for it is asked.
    # Callers look at `waiting.n` first.
    cdef int wake_soon(self, int slot) except -1
    # May a request wait, for which the router says NOBODY or BUSY? For how long, in seconds; 0: no.
    cdef double patience_s(self, int verdict, int64_t priority, int64_t n_bytes) noexcept
    # Do requests wait in another worker?
    cdef bint others_hold(self) noexcept nogil
    # The models that may be asked for on this path.
    cdef dict models_for(self, Path path)
    # Is a model's tokenizer here, to make prompts of conversations and to count tokens?
    cdef bint has_tokenizer(self, str model) except -1
    # The model as the present fleet has it; None: no more.
    cdef Served current(self, Served served)
    # A prompt goes to an endpoint: the control process assumes that it is cached there.
    cdef void note_sent(self, int slot, unsigned int generation, Prompt prompt) noexcept nogil
    # private
    # For errors: some of the models and aliases there are; `allowed`: of these only.
    cdef str served_names(self, frozenset allowed)
    cdef int _add_native(self, Served served) except -1
    # For people: the labels of these bits; `strange`: the texts of those that no endpoint has.
    cdef list label_texts(self, uint64_t labels, tuple strange)
