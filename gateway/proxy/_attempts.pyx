"""See _attempts.pxd."""

from gateway.proxy import retry
from gateway.reasons import Reason

from libc.stdint cimport uint64_t
from libc.string cimport memset

from gateway._shared cimport Count
from gateway.proxy._plane cimport Plane
from gateway.proxy._pool cimport Pool
from gateway.proxy._request cimport Request
from router._policy cimport BUSY, NOBODY, Ask, is_claimed, was_tried
from router._table cimport MAX_TRIED, Load

cdef dict COUNTS = {
    retry.Cause.DIAL: <int>Count.RETRY_DIAL,
    retry.Cause.LOST_REUSED: <int>Count.RETRY_LOST,
    retry.Cause.LOST: <int>Count.RETRY_LOST,
    retry.Cause.CONDEMNED: <int>Count.RETRY_CONDEMNED,
    retry.Cause.STATUS: <int>Count.RETRY_STATUS,
    retry.Cause.DYING: <int>Count.RETRY_DYING,
}
# After these the engine may have died of the request.
cdef tuple DEATHS = (retry.Cause.LOST, retry.Cause.CONDEMNED, retry.Cause.DYING)


cdef class Attempts:
    def __cinit__(self, Plane plane):
        self.plane = plane

    cdef void begin(self, Request request, double now_s) noexcept:
        memset(&self.ask, 0, sizeof(Ask))
        self.ask.home = -1
        self.ask.max_wait_s = self.plane.hold_wait_s
        self.ask.since_s = now_s
        self.ask.priority = request.priority
        self.ask.worker = self.plane.column
        self.retry_count = -1
        self.ask.n_tokens = request.prompt.n_tokens
        self.ask.labels = request.course.labels | request.key_labels
        if not self.ask.labels & self.plane.steering.roles:
            self.ask.labels |= self.plane.steering.serves
        self.ask.adapter = request.served.adapter
        if request.course.session:
            # Of one model: another one's engines are others.
            self.ask.session = request.course.session ^ request.served.root
            self.ask.home_s = self.plane.steering.weight_s
            self.ask.is_bound = self.plane.steering.is_bound or request.is_bound
        self.weighed = None
        self.n_dispatches = self.deaths = 0
        self.refreshed = self.redispatched = self.fresh = False

    cdef int pick(self, Request request, double now_s) except? -9:
        cdef int slot
        if self.ask.n_tried == MAX_TRIED:
            return GIVE_UP
        self._ask(request, now_s)
        slot = self.plane.router.pick(&self.ask, request.prompt, request.served.demand)
        if slot < 0:
            return slot
        if self.plane.pools[slot] is None:
            return NOBODY
        self.hit_tokens = self.plane.router.last_hit_tokens
        if self.plane.decision_header:
            self.weighed = self.weigh()
        return slot

    cdef void _ask(self, Request request, double now_s) noexcept:
        self.ask.out_tokens = request.max_tokens
        if request.pinned >= 0:
            self.ask.slots = &request.pinned
            self.ask.n_slots = (
                self.plane.table.rows[request.pinned].generation == request.pinned_generation)
        else:
            self.ask.slots = request.served.slots
            self.ask.n_slots = request.served.n_slots
        self.ask.now_s = now_s
        self.ask.doubt = 0      # of the bus, as it is now
        self.ask.minds_others = self.plane.others_hold()

    cdef int look(self, Request request, double now_s) noexcept:
        self._ask(request, now_s)
        return self.plane.router.look(&self.ask)

    cdef bint is_behind(self, Request request, int slot) except -1:
        return (
            self.plane.waiting.is_due(slot) or is_claimed(self.plane.table, &self.ask, slot)
            or self.plane.waiting.is_ahead(
                self.wants(request), self.ask.priority, self.ask.since_s)
        )

    cdef list weigh(self):
        return self.plane.router.policy.explained(self.plane.table, &self.ask)

    cdef void went(self, int slot) noexcept:
        self.ask.tried[self.ask.n_tried] = slot
        self.ask.n_tried += 1
        self.n_dispatches += 1
        # Others leave it to our first one no longer; whether there is a next one, says the tick.
        self.plane.table.cell(self.plane.column, slot).held_noted_s = 0
        if self.retry_count >= 0:
            self.plane.counts[self.retry_count] += 1
            self.retry_count = -1

    cdef void claim(self, double now_s) noexcept:
        cdef Load* load
        cdef int index, slot
        for index in range(self.ask.n_slots):
            slot = self.ask.slots[index]
            if self.ask.is_bound and self.ask.home >= 0 and slot != self.ask.home:
                continue        # it waits for its session's endpoint alone
            if was_tried(&self.ask, slot) or (
                    self.ask.labels & ~self.plane.table.rows[slot].labels):
                continue
            load = self.plane.table.cell(self.plane.column, slot)
            # Of several lines for an endpoint the one whose turn comes first counts.
            if load.held_noted_s != now_s or self.ask.priority < load.held_priority or (
                    self.ask.priority == load.held_priority
                    and self.ask.since_s < load.held_since_s):
                load.held_noted_s = now_s
                load.held_since_s = self.ask.since_s
                load.held_priority = self.ask.priority

    cdef tuple wants(self, Request request):
        cdef int index
        tried = frozenset([self.ask.tried[index] for index in range(self.ask.n_tried)])
        session = self.ask.session if self.ask.is_bound else 0
        return request.served.name, request.pinned, self.ask.labels, session, tried

    cdef int only(self) noexcept:
        if self.ask.is_bound and self.ask.home >= 0:
            return self.ask.home
        return self.ask.slots[0] if self.ask.n_slots == 1 else -1

    cdef double patience_s(self, int verdict, Request request) noexcept:
        if verdict != BUSY and self.plane.complete and not self._is_offered():
            return 0        # whoever gets ready, it will not be for this request
        return self.plane.patience_s(verdict, request.priority, request.body_size)

    cdef uint64_t _offered(self) noexcept:
        """All labels of the endpoints that have its model."""
        cdef uint64_t found = 0
        cdef int index
        for index in range(self.ask.n_slots):
            found |= self.plane.table.rows[self.ask.slots[index]].labels
        return found

    cdef bint _is_offered(self) noexcept:
        """Does any of these endpoints, ready or not, have its labels? True: there are none yet."""
        cdef int index
        for index in range(self.ask.n_slots):
            if not self.ask.labels & ~self.plane.table.rows[self.ask.slots[index]].labels:
                return True
        return self.ask.n_slots == 0

    cdef tuple nobody(self, Request request):
        name = request.served.name
        what = f"the model '{name}'" if name else "this path"
        if self.ask.n_slots == 0:
            text = f"none has '{name}' ready" if name else "none is known yet"
            return Reason.NO_ENDPOINT, (text,)
        if self._is_offered() or not self.plane.complete:
            labels = self.plane.label_texts(
                request.course.labels | request.key_labels, request.strange_labels)
            which = f" that have {' and '.join(labels)}" if labels else ""
            return Reason.NO_ENDPOINT, (f"none of those for {what}{which} is ready",)
        offered = self._offered()
        wanted = self.plane.label_texts(
            self.ask.labels & ~offered or self.ask.labels, request.strange_labels)
        text = f"no engine for {what} has {' and '.join(wanted)}"
        if request.is_vouched or self.plane.steering.reads_labels:
            # Who may ask for labels may know them.
            there = self.plane.label_texts(offered, ())
            text += f"; there are {', '.join(there) or 'no labels'}"
        return Reason.UNMATCHED_LABELS, (text,)

    cdef int again(self, Request request, int cause, Pool pool, double now_s) except? -9:
        cdef int slot, verdict
        self.fresh = False
        self.ask.now_s = now_s
        if cause in DEATHS:
            self.deaths += 1
        verdict = retry.decide(cause, refreshed=self.refreshed, redispatched=self.redispatched,
                               deaths=self.deaths)
        if verdict == retry.Verdict.GIVE_UP:
            return GIVE_UP
        if verdict == retry.Verdict.SAME_FRESH:
            if self.ask.n_tried < MAX_TRIED and self.plane.pools[pool.slot] is pool:
                self.refreshed = self.fresh = True
                self.plane.counts[<int>Count.RETRY_REUSED] += 1
                return pool.slot
            verdict = retry.Verdict.ELSEWHERE_IN_BUDGET
        slot = self.pick(request, now_s)
        if slot < 0 and (
                slot == GIVE_UP or self.ask.n_tried >= self.ask.n_slots
                or not self.patience_s(slot, request)):
            return GIVE_UP
        if verdict == retry.Verdict.ELSEWHERE_IN_BUDGET and not self._spend():
            return GIVE_UP
        if verdict == retry.Verdict.ELSEWHERE:
            self.redispatched = True
        self.retry_count = COUNTS[cause]
        return slot

    cdef bint _spend(self) except -1:
        if self.plane.budget.spend(self.plane.counts[<int>Count.ACCEPTED]):
            return True
        self.plane.counts[<int>Count.RETRY_REFUSED_BY_BUDGET] += 1
        return False
