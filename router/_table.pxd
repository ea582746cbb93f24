"""The endpoint table: one row per slot, and the load that each worker has put on it.

The memory belongs to the caller (shared between the control process and the data workers). A row
is written by the control process alone, a load cell by its one worker alone; readers take no
lock: every field is an aligned word, and no decision needs two fields to agree.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

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
    ASLEEP = 6      # its engine sleeps: gets no requests

cpdef enum:
    # Added to `failures_in_row` on an answer that only a dying engine gives.
    DYING = 1000

cdef struct Profile:
    # How long one step of an engine takes, linear in what its batch holds; see engines.sim.profile.
    double base_s           # any step at all
    double chunk_token_s    # per prompt token computed
    double chunk_token_ctx_s    # per prompt token and token of context before it
    double decode_seq_s     # per sequence that decodes
    double decode_ctx_s     # per token of its context
    double kv_tokens        # size of the KV cache; 0: not known

cdef struct Row:
    uint32_t generation     # grows when the slot gets another endpoint
    uint8_t state           # State
    uint8_t full            # its KV cache is full: what is added displaces something
    uint8_t overloaded      # by its own word: gets requests only while all others are as well
    int32_t max_in_flight   # takes no more; 0: as many as come
    float share             # 0 < share <= 1: of a full load, while it starts slowly
    float missing           # share of the cached tokens expected there that are not found there
    uint64_t labels         # one bit per label
    uint64_t identity       # hash of its name: the same in every gateway
    int32_t max_loras       # LoRA adapters that it keeps loaded; 0: not known
    Profile profile

cdef struct Sums:
    # Of observations y ~ x0 + x1 + x2 (x0 = 1): what least squares needs of them.
    double[6] xx            # 00 01 02 11 12 22
    double[3] xy

cdef struct Load:
    int32_t in_flight       # dispatched and not released
    int32_t producing       # of these, streams that have sent an event
    int32_t failures_in_row  # dispatches that failed by the endpoint's fault since the last success
    int32_t dials_in_row    # failed dials since the last connection
    double last_event_s     # monotonic: when any of its streams last sent an event
    int64_t begun           # dispatches whose response began, and not as a failure
    int64_t successes       # dispatches that were answered whole
    # Work that was booked before it was sent; see router._booking.
    int32_t prefilling      # streams without a first token
    double prefill_s        # their prompts, in seconds of the engine's time
    double anchor_s         # since when the first of all workers' is computed, as far as known
    double unseen_until_s   # when the prompts of non-streaming requests will be computed
    int64_t prefill_tokens  # uncached prompt tokens of `prefilling`
    int64_t kv_tokens       # prompt and generated tokens of all in flight
    # Of the cached prompt tokens that were expected, and of how many of these the engine told that
    # it had found them: sums that only grow.
    double expected_tokens
    double found_tokens
    # The first request that waits in this worker for room, here or elsewhere.
    double held_noted_s     # when the worker last said that there is one
    double held_since_s     # when that one was ready to go
    int64_t held_priority   # the lower, the earlier
    Sums prefill            # x: 1, new tokens, new tokens x their context; y: s to the first token
    Sums decode             # x: 1, in flight, kv_tokens; y: s between tokens

cdef struct Common:
    # What holds for all endpoints; written by the control process.
    double scale            # own load times this stands for that of all gateways; 0: 1
    double doubt            # see Ask.doubt

cdef class Table:
    cdef Common* common
    cdef Row* rows
    cdef Load* loads        # [worker][slot]
    cdef object memory      # keeps the buffer alive
    cdef readonly int n_workers     # columns: of our own workers, and maybe one of the peers'
    cdef readonly int n_own
    cdef int32_t in_flight(self, int slot) noexcept nogil      # over all columns
    cdef Load* cell(self, int worker, int slot) noexcept nogil

cdef struct Standing:
    # What all workers together have put on an endpoint.
    int32_t in_flight
    double wait_s           # until a prompt that comes now would be begun
    double prefill_tokens
    double kv_tokens

cdef void stand(Table table, int slot, double now_s, Standing* out) noexcept nogil

# Seconds to compute n_tokens of prompt, of which the first hit_tokens are cached.
cdef inline double prefill_time_s(const Profile* profile, double n_tokens,
                                  double hit_tokens) noexcept nogil:
    cdef double fresh = n_tokens - hit_tokens
    return fresh * (profile.chunk_token_s
                    + profile.chunk_token_ctx_s * (hit_tokens + 0.5 * fresh))
