"""See _errand.pxd."""

import asyncio

from gateway.http.faults import REFUSALS
from gateway.proxy import retry
from gateway.reasons import REASONS, Reason

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t

from gateway._shared cimport (
    Count,
    EndpointWord,
    ModelWord,
    latency_bounds_s,
    observe,
    status_index,
)
from gateway.http._head cimport Head, parse_request
from gateway.proxy._account cimport Account
from gateway.proxy._attempts cimport GIVE_UP, Attempts
from gateway.proxy._plane cimport Plane, now_s
from gateway.proxy._pool cimport Pool
from gateway.proxy._request cimport Request
from gateway.proxy._served cimport Served
from gateway.proxy._waiting cimport Waiter, Waiting
from router._booking cimport Stage as BookingStage
from router._policy cimport BUSY, NOBODY

cdef int NO_REASON = Reason.NONE
cdef str FULL = "its memory for request bodies is in use"
cdef dict REPEATED = {
    retry.Cause.DIAL: (<int>Count.DIAL_FAILED, Reason.CONNECT_FAILED),
    retry.Cause.LOST: (<int>Count.LOST, Reason.UPSTREAM_LOST),
    retry.Cause.CONDEMNED: (<int>Count.CONDEMNED, Reason.ENDPOINT_CONDEMNED),
    retry.Cause.STATUS: (<int>Count.TURNED_AWAY, Reason.TURNED_AWAY),
    retry.Cause.TIMEOUT: (<int>Count.TIMED_OUT, Reason.FIRST_BYTE_TIMEOUT),
}


class Refused(Exception):
    """The gateway does not serve the request: a Reason, and what its sentence wants."""

    def __init__(self, reason, *details):
        self.reason = Reason(reason)
        self.status = REASONS[self.reason].status
        super().__init__(REASONS[self.reason].message.format(*details))


cdef class Errand(Waiter):
    """Made for one request; all calls from the plane's loop.

    Whatever happens, `end` must be called; it is the only call that may come at any time.
    """

    def __init__(self, Plane plane not None):
        self.plane = plane
        self.request = Request(plane)
        self.attempts = Attempts(plane)
        self.account = Account(plane)
        self.verdict = NOBODY

    @property
    def endpoint(self):
        """messages.Endpoint that it is at, or was last; None."""
        return None if self.pool is None else self.pool.endpoint

    @property
    def allowed(self):
        """Models that its key may use, as UTF-8; None: all."""
        return self.request.allowed

    @property
    def model(self):
        """As its engines know it; '' until it is read."""
        return "" if self.request.served is None else self.request.served.name

    @property
    def request_id(self):
        return self.request.request_id

    @property
    def is_booked(self):
        return self.booking.stage != <int>BookingStage.NONE

    def begin(self, bytes head not None, bytes shown_path):
        """It is here: counted from now on. `head`: what it would be as a request in HTTP/1.1;
        `shown_path` stands in the access log. Refused."""
        cdef Head parsed
        cdef const char* p = PyBytes_AS_STRING(head)
        cdef int fault
        self.account.enter()
        self.account.begin()
        self.plane.sessions.add(self)
        if self.plane.draining:
            raise Refused(Reason.DRAINING)
        fault = parse_request(p, PyBytes_GET_SIZE(head), &parsed)
        if fault < 0:
            raise Refused(Reason.BAD_FRAMING, REFUSALS[fault].message)
        self._check(self.request.read_head(p, &parsed))
        self.request.target = shown_path
        self.account.leave()

    cdef int _check(self, int reason) except -1:
        if reason:
            raise Refused(reason, *self.request.details)
        return 0

    def read(self, bytes model not None, tensors, int64_t n_bytes):
        """What it asks for: a model and what stands in its tensors (engines.kserve.Tensors; None:
        it wants to be told of the model). Refused."""
        self.account.enter()
        if n_bytes > self.plane.body_bytes:
            raise Refused(Reason.BODY_TOO_LARGE, self.plane.body_bytes)
        if self.plane.is_full():
            raise Refused(Reason.OVERLOADED, FULL)
        self.buffered = n_bytes
        self.plane.counts[<int>Count.BUFFERED_BYTES] += n_bytes
        self._check(self.request.read_tensors(model, tensors, n_bytes))
        self.attempts.begin(self.request, self.account.entered_s)
        self.account.leave()

    # -- to an endpoint

    async def place(self):
        """Book an endpoint for it, waiting for room as long as it may. Refused."""
        cdef double now
        cdef int slot
        if self.is_cut:
            raise self._no_room(False)
        self.account.enter()
        now = self.account.entered_s
        slot = self._route(now)
        if slot >= 0:
            self._book(slot, now)
            self.account.leave()
            return
        await self._wait(slot)

    async def _wait(self, int verdict):
        cdef double now = now_s()
        cdef double patience_s = self.attempts.patience_s(verdict, self.request)
        self.verdict = verdict
        if patience_s <= 0 or self.is_cut:
            raise self._no_room(False)
        turn = self._hold(verdict, now)
        self.account.leave()
        try:
            async with asyncio.timeout(max(0.0, patience_s - self.account.held_s)) as patience:
                self.patience = patience
                await turn
        except TimeoutError:
            if not self.is_booked:
                raise self._no_room(True) from None
        finally:
            self.patience = None
            self.account.enter()
            self._leave_queue(self.is_booked, self.account.entered_s)
            self.account.leave()

    cdef int _route(self, double now) except? -9:
        cdef int slot = self.attempts.pick(self.request, now)
        if slot >= 0 and self.plane.waiting.n and self.attempts.is_behind(self.request, slot):
            # What is free belongs first to those who wait already.
            self.plane.wake_soon(slot)
            return BUSY
        return slot

    cdef object _hold(self, int verdict, double now):
        self.turn = self.plane.loop.create_future()
        self.held_since_s = now
        self.priority = self.request.priority
        self.since_s = self.attempts.ask.since_s
        self.n_bytes = self.request.body_size
        self.only = self.attempts.only()
        self.plane.waiting.join(self, self.attempts.wants(self.request), now)
        self.plane.counts[<int>Count.HELD_REQUESTS] += 1
        self.plane.counts[<int>Count.HELD_BYTES] += self.n_bytes
        return self.turn

    cdef int _leave_queue(self, bint went, double now) except -1:
        cdef double held_s = now - self.held_since_s
        if self.turn is None:
            return 0
        self.turn = None
        self.plane.waiting.leave(self, went, now)
        self.plane.counts[<int>Count.HELD_REQUESTS] -= 1
        self.plane.counts[<int>Count.HELD_BYTES] -= self.n_bytes
        self.account.held_s += held_s
        observe(self.request.served.words + <int>ModelWord.M_HELD, latency_bounds_s(), held_s)
        return 0

    cdef bint admit(self, double now) except -1:
        turn = self.turn
        try:
            return self._admit(now)
        except Exception as error:      # a bug, which must cost this request alone
            self._leave_queue(False, now)
            if not turn.done():
                turn.set_exception(error)
            return True

    cdef bint _admit(self, double now) except -1:
        cdef int slot
        cdef Served served = self.plane.current(self.request.served)
        if served is None:
            self.verdict = NOBODY       # for now: it may be a restart
            return False
        self.request.served = served
        slot = self.attempts.look(self.request, now)
        if slot >= 0:
            slot = self.attempts.pick(self.request, now)
        if slot < 0:
            self.verdict = slot
            self.only = self.attempts.only()
            return False
        turn = self.turn
        self._leave_queue(True, now)
        self._book(slot, now)
        if not turn.done():
            turn.set_result(None)
        return True

    cdef int tell(self, double now) except -1:
        self.attempts.claim(now)
        return 0

    cdef int expelled(self, double now) except -1:
        if self.turn is not None and not self.turn.done():
            self.turn.set_exception(self._refused(Reason.HOLD_FULL, (self._queue(),)))
        return 0

    def _queue(self):
        return f"{self.plane.waiting.n} requests of {self.plane.waiting.n_bytes} bytes wait"

    cdef object _no_room(self, bint has_waited):
        """`has_waited`: it had its place in the queue until now."""
        cdef Waiting waiting = self.plane.waiting
        if self.is_cut:
            return self._refused(Reason.DRAINING, ())
        if self.verdict != BUSY:
            reason, details = self.attempts.nobody(self.request)
            return self._refused(reason, details)
        if has_waited or waiting.takes(self.request.priority, self.request.body_size):
            return self._refused(Reason.HOLD_TIMEOUT, (f"{self.plane.hold_s:g}",))
        return self._refused(Reason.HOLD_FULL, (self._queue(),))

    cdef object _refused(self, int reason, tuple details):
        """For want of an endpoint; if it had one, by what became of it there."""
        if self.failure != NO_REASON:
            return Refused(self.failure, self.failure_detail)
        return Refused(reason, *details)

    cdef int _book(self, int slot, double now) except -1:
        cdef Pool pool = self.plane.pools[slot]
        self.pool = pool
        self.doom = None
        self.has_status = False
        self.attempts.went(slot)
        self.account.first_s = 0
        self.account.dispatch_s = self.account.last_s = now
        self.plane.router.book(&self.booking, slot, &self.attempts.ask, self.attempts.hit_tokens,
                               self.request.prompt, self.request.served.demand,
                               self.request.is_stream)
        self.plane.note_sent(slot, pool.generation, self.request.prompt)
        pool.words[<int>EndpointWord.E_DISPATCHED] += 1
        self.plane.counts[<int>Count.DISPATCHED] += 1
        return 0

    async def again(self, int cause, str detail):
        """Its dispatch failed (a retry.Cause) and nothing of it has gone to the client: book
        another endpoint, as `place` does. Refused: it is not repeated."""
        cdef int slot
        cdef Pool pool = self.pool
        self.account.enter()
        outcome, self.failure = REPEATED[cause]
        self.failure_detail = detail
        if cause == retry.Cause.STATUS:
            self._note_status(503)
        self.release(outcome)
        slot = self.attempts.again(self.request, cause, pool, self.account.entered_s)
        if slot == GIVE_UP:
            raise Refused(self.failure, detail)
        if slot >= 0:
            self._book(slot, self.account.entered_s)
            self.account.leave()
            return
        await self._wait(slot)

    # -- while it is there

    def answered(self, int status):
        """The engine's response has begun or failed, with what would be this status in HTTP.
        Nothing the second time."""
        if not self._note_status(status):
            return
        if status < 500:
            self.pool.load.begun += 1
        self._free_bytes()
        self.request.prompt.clear()

    cdef bint _note_status(self, int status) except -1:
        """Count it among the endpoint's answers. False: this dispatch has had one."""
        if self.has_status:
            return False
        self.has_status = True
        self.pool.words[<int>EndpointWord.E_STATUS + status_index(status)] += 1
        return True

    cdef int _free_bytes(self) except -1:
        self.plane.counts[<int>Count.BUFFERED_BYTES] -= self.buffered
        self.buffered = 0
        return 0

    def event(self):
        """A response of a stream came."""
        self.account.enter()
        self.n_events += 1
        if self.account.count_events(1, self.request, self.pool):
            if self.plane.waiting.n:
                self.plane.wake_soon(self.pool.slot)
            self.plane.router.booker.first_token(&self.booking, self.account.entered_s)
        else:
            self.plane.router.booker.grow(&self.booking, 1)
        self.account.leave()

    def moved(self, int64_t n_in, int64_t n_out):
        """So many bytes came from the engine and went to it."""
        self.pool.words[<int>EndpointWord.E_BYTES_IN] += n_in
        self.pool.words[<int>EndpointWord.E_BYTES_OUT] += n_out

    def sent(self, int64_t n):
        """So many bytes went to the client."""
        self.account.bytes_out += n
        self.plane.counts[<int>Count.CLIENT_BYTES_OUT] += n

    def release(self, int outcome):
        """Settle the booking, if there is one. `outcome`: a Count of how the dispatch ended."""
        cdef Pool pool = self.pool
        if self.booking.stage == <int>BookingStage.NONE:
            return
        self.plane.router.booker.release(&self.booking, now_s())
        if self.plane.waiting.n:
            self.plane.wake_soon(self.pool.slot)
        self.plane.counts[outcome] += 1
        if outcome == <int>Count.ABANDONED or outcome == <int>Count.CUT:
            pool.words[<int>EndpointWord.E_ABANDONED] += 1
        elif outcome == <int>Count.ANSWERED:
            pool.words[<int>EndpointWord.E_ANSWERED] += 1
            pool.load.failures_in_row = 0
            pool.load.dials_in_row = 0
            pool.load.successes += 1
        elif outcome == <int>Count.TURNED_AWAY:
            # Busy is not broken: only failures by its own fault open an endpoint's circuit.
            pool.words[<int>EndpointWord.E_ANSWERED] += 1
        else:
            pool.words[<int>EndpointWord.E_FAILED] += 1
            if outcome == <int>Count.DIAL_FAILED:
                pool.load.dials_in_row += 1
            else:
                pool.load.failures_in_row += 1

    # -- its end

    def end(self, int outcome, int status, int reason=NO_REASON, int cause=0):
        """It is over, with one of Count's ends of a request and what would be its status in HTTP.
        `cause`: a Count of cancels, if its client is why. A booking that still stands is released,
        as ABANDONED if its client is why, else as CUT. Nothing the second time."""
        if not self.account.is_open:
            return
        self.account.enter()
        self.release(Count.ABANDONED if cause else Count.CUT)
        self._leave_queue(False, self.account.entered_s)
        self._free_bytes()
        if cause:
            self.plane.counts[cause] += 1
        if self.request.served is not None and self.n_events:
            self.request.served.words[<int>ModelWord.M_TOKENS_IN_ESTIMATED] += (
                self.request.prompt_bytes // 4)
            self.request.served.words[<int>ModelWord.M_TOKENS_OUT_ESTIMATED] += self.n_events
            self.request.served.demand.ended(self.n_events, -1, self.request.prompt_bytes)
        self.account.end(outcome, status, reason, self.request, self.pool,
                         self.attempts.n_dispatches, self.n_events)
        self.plane.leave(self)

    # -- the plane's calls

    def condemn(self, int slot, unsigned int generation, str why, bint hung):
        """See Plane.condemn. Where only the listener is gone, what produces may go on."""
        if not self.is_booked or self.pool.slot != slot or self.pool.generation != generation:
            return
        if hung or self.n_events == 0:
            self.doom = why
            self._hurry()

    def drain(self):
        """What runs may end."""

    def cut(self):
        """The grace is over."""
        self.is_cut = True
        self._hurry()

    cdef int _hurry(self) except -1:
        if self.patience is not None and not self.patience.expired():
            self.patience.reschedule(self.plane.loop.time())
        return 0
