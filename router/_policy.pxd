"""What a policy is asked, and what it answers. One file per policy in router/policies."""

from libc.stdint cimport int32_t, uint32_t, uint64_t

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

# May this slot get this request? (state, trial rule, room, labels, not tried)
cdef bint may_take(Table table, const Ask* ask, int slot) noexcept nogil

# Share of this slot's time that prompts from here have lately taken.
cdef inline double prompt_share(const Ask* ask, int slot) noexcept nogil:
    return 0 if ask.effort == NULL else ask.effort[slot] * ask.effort_share

# Prompt tokens that this slot has cached; the last one is always computed.
cdef inline double hit_tokens(Table table, const Ask* ask, int slot) noexcept nogil:
    if ask.depths == NULL:
        return 0
    return max(0.0, min(ask.depths[slot] * ask.block_tokens, ask.n_tokens - 1)) * (
        1 - table.rows[slot].missing)
