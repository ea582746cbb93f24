"""See _attempts.pxd."""

from gateway.proxy import retry

from libc.string cimport memset

from gateway._shared cimport Count
from gateway.proxy._plane cimport Plane
from gateway.proxy._pool cimport Pool
from gateway.proxy._request cimport Request
from router._policy cimport Ask
from router._table cimport MAX_TRIED

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

    cdef void begin(self, Request request) noexcept:
        memset(&self.ask, 0, sizeof(Ask))
        self.ask.home = -1
        self.ask.out_tokens = request.max_tokens
        self.ask.n_tokens = request.prompt.n_tokens
        self.ask.labels = request.course.labels | request.key_labels
        if not self.ask.labels & self.plane.steering.roles:
            self.ask.labels |= self.plane.steering.serves
        self.ask.adapter = request.served.adapter
        if request.course.session:
            # Of one model: another one's engines are others.
            self.ask.session = request.course.session ^ request.served.root
            self.ask.home_s = self.plane.steering.weight_s
            self.ask.is_bound = self.plane.steering.is_bound
        self.weighed = None
        self.n_dispatches = self.deaths = 0
        self.refreshed = self.redispatched = self.fresh = False

    cdef int pick(self, Request request, double now_s) except? -2:
        cdef int slot
        if self.ask.n_tried == MAX_TRIED:
            return -1
        if request.pinned >= 0:
            self.ask.slots = &request.pinned
            self.ask.n_slots = 1
        else:
            self.ask.slots = request.served.slots
            self.ask.n_slots = request.served.n_slots
        self.ask.now_s = now_s
        slot = self.plane.router.pick(&self.ask, request.prompt, request.served.demand)
        if slot < 0 or self.plane.pools[slot] is None:
            return -1
        self.hit_tokens = self.plane.router.last_hit_tokens
        if self.plane.decision_header:
            self.weighed = self.weigh()
        return slot

    cdef list weigh(self):
        return self.plane.router.policy.explained(self.plane.table, &self.ask)

    cdef void went(self, int slot) noexcept:
        self.ask.tried[self.ask.n_tried] = slot
        self.ask.n_tried += 1
        self.n_dispatches += 1

    cdef int again(self, Request request, int cause, Pool pool, double now_s) except? -2:
        cdef int slot, verdict
        self.fresh = False
        if cause in DEATHS:
            self.deaths += 1
        verdict = retry.decide(cause, refreshed=self.refreshed, redispatched=self.redispatched,
                               deaths=self.deaths)
        if verdict == retry.Verdict.GIVE_UP:
            return -1
        if verdict == retry.Verdict.SAME_FRESH:
            if self.ask.n_tried < MAX_TRIED and self.plane.pools[pool.slot] is pool:
                self.refreshed = self.fresh = True
                self.plane.counts[<int>Count.RETRY_REUSED] += 1
                return pool.slot
            verdict = retry.Verdict.ELSEWHERE_IN_BUDGET
        slot = self.pick(request, now_s)
        if slot < 0 or (verdict == retry.Verdict.ELSEWHERE_IN_BUDGET and not self._spend()):
            return -1
        if verdict == retry.Verdict.ELSEWHERE:
            self.redispatched = True
        self.plane.counts[<int>COUNTS[cause]] += 1
        return slot

    cdef bint _spend(self) except -1:
        if self.plane.budget.spend(self.plane.counts[<int>Count.ACCEPTED]):
            return True
        self.plane.counts[<int>Count.RETRY_REFUSED_BY_BUDGET] += 1
        return False
