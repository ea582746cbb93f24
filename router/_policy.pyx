"""See _policy.pxd."""

from libc.math cimport fabs
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.string cimport memset

from router._table cimport MAX_SLOTS, MAX_TRIED, Load, Standing, State, Table, stand

# Workers say every 100 ms whether requests wait in them. That one has waited a little longer than
# another is no reason to leave an endpoint idle until its worker looks.
cdef double HELD_NEWS_S = 0.25
cdef double HELD_LEAD_S = 0.2
# Typed: a literal of 64 bits would make the products Python's, which do not wrap.
cdef uint64_t SPREAD = 0x9e3779b97f4a7c15
cdef uint64_t SCRAMBLE = 0x2545f4914f6cdd1d
cdef list WHY_NOT = [
    "", "not ready", "on trial with its one request", "lacks a label", "full", "tried already",
    "not the session's endpoint", "overloaded", "promised to a request of another worker",
]


cdef class Policy:
    """Picks an endpoint for a request: the cheapest, by `cost`, of those that may take it.

    Equals take turns, so that no endpoint is always first; several workers or gateways start at
    different ones by their `seed`. A subclass overrides `cost` (and `prepare`), or `pick`.
    """

    reads_prompts = False
    """Whether it uses `depths` or `affinity`: if not, prompts need not be hashed."""
    counts_seconds = False
    """Whether a cost is in seconds."""
    terms = ()
    """Names of what makes up a cost, in the order of `cost`'s `terms`."""

    def __init__(self, str name, uint32_t seed=0):
        self.name = name
        self.turn = seed
        self.state = SPREAD * (<uint64_t>seed + 1)

    cdef double draw(self) noexcept nogil:
        # xorshift64* (Vigna 2016): cheap, and the same everywhere for the same seed.
        self.state ^= self.state >> 12
        self.state ^= self.state << 25
        self.state ^= self.state >> 27
        return ((self.state * SCRAMBLE) >> 11) * (1.0 / 9007199254740992.0)

    cdef void prepare(self, Table table, const Ask* ask) noexcept nogil:
        pass

    cdef double cost(self, Table table, const Ask* ask, int slot, double* terms) noexcept nogil:
        return 0

    cdef int pick(self, Table table, const Ask* ask) noexcept nogil:
        cdef double[MAX_SLOTS] costs
        cdef int _, index, slot, n_near = 0, best = -1
        cdef double least = 1e300
        if ask.n_slots == 0:
            return -1
        self.prepare(table, ask)
        index = self.turn % <uint32_t>ask.n_slots
        self.turn += 1
        for _ in range(ask.n_slots):
            slot = ask.slots[index]
            if may_take(table, ask, slot):
                costs[index] = self.cost(table, ask, slot, NULL)
                if costs[index] < least:
                    least = costs[index]
                    best = slot
            else:
                costs[index] = 1e300
            index = index + 1 if index + 1 < ask.n_slots else 0
        if ask.doubt <= 0 or best < 0:
            return best
        # What is known is old: one of those that may be the best, or all gateways pick the same.
        least += ask.doubt * fabs(least)
        for index in range(ask.n_slots):
            if costs[index] <= least:
                n_near += 1
                if self.draw() * n_near < 1:
                    best = ask.slots[index]
        return best

    def choose(self, Table table, slots, tried=(), **ask):
        """`pick` for Python callers: the slot, or None. At most MAX_TRIED tried slots count.

        `ask`: more fields of Ask by name; `depths` and `prompt_shares`
        as dicts of slots.
        """
        cdef Question question = Question(table, slots, tried, ask)
        cdef int slot = self.pick(table, &question.ask)
        return None if slot < 0 else slot

    def explain(self, Table table, slots, tried=(), **ask):
        """What `choose` would weigh, by slot: {"may_take": bool, "why_not": str (empty: it may),
        "cost": float, term: float}. Terms whose names end in _s are seconds."""
        cdef Question question = Question(table, slots, tried, ask)
        return {entry.pop("slot"): entry for entry in self.explained(table, &question.ask)}

    cdef list explained(self, Table table, const Ask* ask):
        cdef double[MAX_TERMS] terms
        cdef int index, slot, why
        found = []
        # Where no endpoint has room, `pick` was not asked.
        self.prepare(table, ask)
        for index in range(ask.n_slots):
            slot = ask.slots[index]
            memset(terms, 0, sizeof(terms))
            cost = self.cost(table, ask, slot, terms)
            why = bar(table, ask, slot)
            if why == MAY and ask.is_bound and slot != ask.home:
                why = NOT_HOME
            found.append({
                "slot": slot, "may_take": why == MAY, "why_not": WHY_NOT[why], "cost": cost,
                **{name: terms[at] for at, name in enumerate(self.terms)},
            })
        return found


cdef class Question:
    """An Ask made from Python objects."""
    cdef Ask ask
    cdef int32_t[MAX_SLOTS] slots
    cdef int32_t[MAX_SLOTS] depths
    cdef double[MAX_SLOTS] shares

    def __init__(self, Table table, slots, tried, fields):
        cdef int index, slot
        if len(slots) > MAX_SLOTS:
            raise ValueError(f"more than {MAX_SLOTS} slots")
        memset(&self.ask, 0, sizeof(Ask))
        for index, slot in enumerate(slots):
            table._check(slot)
            self.slots[index] = slot
        self.ask.slots = self.slots
        self.ask.n_slots = len(slots)
        for slot in tried[:MAX_TRIED]:
            self.ask.tried[self.ask.n_tried] = slot
            self.ask.n_tried += 1
        self.ask.home = -1
        for name, value in fields.items():
            self._set(name, value)

    def _set(self, name, value):
        cdef int slot
        if name == "now_s":
            self.ask.now_s = value
        elif name == "n_tokens":
            self.ask.n_tokens = value
        elif name == "out_tokens":
            self.ask.out_tokens = value
        elif name == "block_tokens":
            self.ask.block_tokens = value
        elif name == "pressure":
            self.ask.pressure = value
        elif name == "hit_ratio":
            self.ask.hit_ratio = value
        elif name == "doubt":
            self.ask.doubt = value
        elif name == "labels":
            self.ask.labels = value
        elif name == "prompt_shares":
            memset(self.shares, 0, sizeof(self.shares))
            for slot, share in value.items():
                self.shares[slot & (MAX_SLOTS - 1)] = share
            self.ask.effort = self.shares
            self.ask.effort_share = 1
        elif name == "affinity":
            self.ask.affinity = value
        elif name == "home":
            self.ask.home = value
        elif name == "home_s":
            self.ask.home_s = value
        elif name == "is_bound":
            self.ask.is_bound = value
        elif name == "depths":
            memset(self.depths, 0, sizeof(self.depths))
            for slot, depth in value.items():
                self.depths[slot & (MAX_SLOTS - 1)] = depth
            self.ask.depths = self.depths
        else:
            raise TypeError(f"an ask has no {name!r}")


cdef int bar(Table table, const Ask* ask, int slot) noexcept nogil:
    cdef int state = table.rows[slot].state
    if state != <int>State.READY:
        if state != <int>State.TRIAL:
            return NOT_READY
        if table.in_flight(slot) > 0:
            return ON_TRIAL
    if ask.labels & ~table.rows[slot].labels:
        return LABELS
    if was_tried(ask, slot):
        return TRIED
    if 0 < table.rows[slot].max_in_flight <= table.in_flight(slot):
        return FULL
    if ask.shuns_overloaded and table.rows[slot].overloaded:
        return OVERLOADED
    if ask.minds_others and is_due_to_other(table, ask, slot):
        return PROMISED
    return MAY


cdef bint is_due_to_other(Table table, const Ask* ask, int slot) noexcept nogil:
    """Does another worker hold a request back that may go there and goes before this one?"""
    cdef int worker
    for worker in range(table.n_own):
        if worker != ask.worker and goes_before(table.cell(worker, slot), ask, HELD_LEAD_S):
            return True
    return False


cdef bint is_claimed(Table table, const Ask* ask, int slot) noexcept nogil:
    return goes_before(table.cell(ask.worker, slot), ask, 0)


cdef bint goes_before(const Load* load, const Ask* ask, double lead_s) noexcept nogil:
    """Does the first that waits in a worker, by its cell, by more than this?"""
    # Who does not say so again does not wait any more, or hangs.
    return load.held_noted_s >= ask.now_s - HELD_NEWS_S and (
        load.held_priority < ask.priority or (
            load.held_priority == ask.priority and load.held_since_s < ask.since_s - lead_s))


cdef int room(Table table, const Ask* ask) noexcept nogil:
    cdef Standing load
    cdef int index, slot, why, verdict = NOBODY
    for index in range(ask.n_slots):
        slot = ask.slots[index]
        why = bar(table, ask, slot)
        if why == MAY:
            if ask.max_wait_s <= 0:
                return slot
            stand(table, slot, ask.now_s, &load)
            # Who has nothing to do has no queue, whatever was estimated.
            if load.wait_s <= ask.max_wait_s or load.in_flight == 0:
                return slot
            verdict = BUSY
        elif why == FULL or why == OVERLOADED or why == PROMISED:
            verdict = BUSY
    return verdict
