"""What a policy is asked, and what it answers. One file per policy in router/policies."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from router._hash cimport root_of
from router._table cimport MAX_SLOTS, MAX_TRIED, Table

cdef enum:
    MAX_TERMS = 8

cdef struct Ask:
    # A request, as far as a policy may look at it.
    const int32_t* slots    # endpoints that have the model, ascending
    int n_slots
    int32_t[MAX_TRIED] tried    # slots this request has been at, to be avoided
    int n_tried
    double now_s
    double n_tokens         # of the prompt, maybe estimated
    double out_tokens       # of the answer, expected
    const int32_t* depths   # by slot: leading blocks of the prompt that it holds; NULL: not known
    double block_tokens     # tokens per block
    double pressure         # 0..1: share of the endpoints' time that prompts take
    const double* effort    # by slot: prompt work lately put on it from here; NULL: not known
    double effort_share     # times this: its share of that slot's time
    double hit_ratio        # 0..1: of prompt tokens lately
    double doubt            # 0..1: how far two costs may differ and still count as equal
    uint64_t labels         # that the endpoint must have
    uint64_t affinity       # what requests that shall meet again have in common; 0: nothing
    int32_t home            # the slot that had this session last; -1: none
    double home_s           # what leaving it costs, in seconds
    uint64_t session        # of the request, hashed; 0: it names none
    bint is_bound           # it must stay at its session's endpoint
    uint64_t adapter        # its LoRA adapter, hashed; 0: none
    const float* load_s     # by slot: seconds until the adapter is there; NULL: none is asked for
    double max_wait_s       # an endpoint where it would wait longer has no room; 0: any has
    bint shuns_overloaded   # endpoints that say they are overloaded may not have it
    bint minds_others       # requests wait in other workers: what they go before is theirs
    int worker              # where it is
    double since_s          # when it was ready to go
    int64_t priority        # the lower, the earlier

cdef enum:
    # Why a slot does not get a request.
    MAY = 0                 # it may
    NOT_READY = 1           # by its state
    ON_TRIAL = 2            # it has its one request
    LABELS = 3              # a label that is asked for is missing
    FULL = 4                # as many requests as it takes
    TRIED = 5               # it had this one already
    NOT_HOME = 6            # another endpoint has its session
    OVERLOADED = 7          # it says so, and another is not
    PROMISED = 8            # a request that waits in another worker goes first

cdef enum:
    # Instead of a slot.
    NOBODY = -1     # no endpoint is fit to have it
    BUSY = -2       # there are some, but none has room

cdef class Policy:
    cdef readonly str name
    cdef uint64_t state                 # of `draw`
    cdef uint32_t turn
    # The slot that shall have the request, or -1 if none may have it. Never blocks.
    cdef int pick(self, Table table, const Ask* ask) noexcept nogil
    # For subclasses: once per request, before any `cost`.
    cdef void prepare(self, Table table, const Ask* ask) noexcept nogil
    # What it costs to send it there; the least wins. `terms`: NULL, or where its parts go.
    cdef double cost(self, Table table, const Ask* ask, int slot, double* terms) noexcept nogil
    # A number in [0, 1).
    cdef double draw(self) noexcept nogil

    # What each candidate of a request that was picked for costs, and why: see `explain`.
    cdef list explained(self, Table table, const Ask* ask)

# Why this slot does not get this request; MAY: it may have it.
cdef int bar(Table table, const Ask* ask, int slot) noexcept nogil

cdef inline bint may_take(Table table, const Ask* ask, int slot) noexcept nogil:
    return bar(table, ask, slot) == MAY

# Of the endpoints the one with the highest rank is a key's: rendezvous hashing (Thaler and
# Ravishankar 1998). The same in every gateway, for endpoints that have a name.
cdef inline uint64_t rank(Table table, uint64_t key, int slot) noexcept nogil:
    cdef uint64_t[2] pair
    pair[0] = key
    pair[1] = table.rows[slot].identity
    if pair[1] == 0:
        pair[1] = <uint64_t>slot + 1
    return root_of(pair, sizeof(pair))

# Share of this slot's time that prompts from here have lately taken.
cdef inline double prompt_share(const Ask* ask, int slot) noexcept nogil:
    return 0 if ask.effort == NULL else ask.effort[slot] * ask.effort_share

cdef inline bint was_tried(const Ask* ask, int slot) noexcept nogil:
    cdef int index
    for index in range(ask.n_tried):
        if ask.tried[index] == slot:
            return True
    return False

# Has a request that waits in this worker, and goes first, claimed this slot?
cdef bint is_claimed(Table table, const Ask* ask, int slot) noexcept nogil

# A slot's number, whichever, if an endpoint may have it and would begin with it within
# `max_wait_s`; else NOBODY or BUSY. One look, where the first candidate has room.
cdef int room(Table table, const Ask* ask) noexcept nogil

# Prompt tokens that this slot has cached; the last one is always computed.
cdef inline double hit_tokens(Table table, const Ask* ask, int slot) noexcept nogil:
    if ask.depths == NULL:
        return 0
    return max(0.0, min(ask.depths[slot] * ask.block_tokens, ask.n_tokens - 1)) * (
        1 - table.rows[slot].missing)
