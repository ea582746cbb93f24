"""See _exchange.pxd."""

import logging

from engines.dialect import stream_error
from gateway.http.faults import REFUSALS
from gateway.proxy import retry
from gateway.proxy.usage import UsageStripper
from gateway.reasons import REASONS, Reason

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memcmp

from gateway._shared cimport (
    Count,
    EndpointWord,
    ModelWord,
    latency_bounds_s,
    observe,
    status_index,
)
from gateway.http._head cimport Head
from gateway.proxy._account cimport Account
from gateway.proxy._answer cimport relayed_head
from gateway.proxy._asking cimport make_ids
from gateway.proxy._attempts cimport GIVE_UP, Attempts
from gateway.proxy._explain cimport decision_line
from gateway.proxy._plane cimport Plane, now_s
from gateway.proxy._pool cimport Pool
from gateway.proxy._relay cimport BodyKind, Relay
from gateway.proxy._request cimport Request
from gateway.proxy._served cimport Served
from gateway.proxy._upstream cimport Upstream
from gateway.proxy._waiting cimport Waiter
from gateway.proxy._wheel cimport Timed
from router._booking cimport Stage as BookingStage
from router._policy cimport BUSY, NOBODY
from router._table cimport DYING

cdef enum:
    # An answer that might be turned away is sent on when it is larger than any error text.
    GATHERED_BYTES = 64 * 1024
    # Of failures in a row; where the count stops growing.
    MAX_FAILURES = 1 << 30

# A kept connection that the engine had closed already tells so within a round trip.
cdef double STALE_S = 1.0

cdef int NO_REASON = Reason.NONE

log = logging.getLogger("headgate.exchange")


cdef class Client(Timed):
    cdef int send(self, bytes data) except -1:
        raise NotImplementedError

    cdef int on_commit(self) except -1:
        raise NotImplementedError

    cdef int on_over(self, int ending) except -1:
        raise NotImplementedError

    cdef int answer(self, int reason, tuple details) except -1:
        raise NotImplementedError


cdef class Place(Waiter):
    cdef bint admit(self, double now) except -1:
        cdef Exchange exchange = self.exchange
        try:
            return exchange.admit(now)
        except Exception as error:
            exchange.on_error(error)    # which leaves the queue
            return True

    cdef int tell(self, double now) except -1:
        self.exchange.attempts.claim(now)
        return 0

    cdef int expelled(self, double now) except -1:
        return self.exchange.expelled(now)


cdef class Exchange(Sink):
    """One per client connection, used for one request after the other."""

    def __init__(self, Plane plane, Client client):
        self.plane = plane
        self.client = client
        self.request = Request(plane)
        self.attempts = Attempts(plane)
        self.account = Account(plane)
        self.relay = Relay()
        self.stage = Stage.IDLE

    # -- dispatch

    cdef int start(self) except -1:
        self.attempts.begin(self.request, self.account.entered_s)
        self.failure = NO_REASON
        if self.request.wants_ids():
            return self._make_ids()
        return self._route()

    cdef int _make_ids(self) except -1:
        self.stage = Stage.HELD
        self.job = make_ids(self.plane, self.request, self._on_ids)
        return self._route() if self.job is None else 0

    def _on_ids(self, ids):
        if self.job is None:
            return              # None at once: `_make_ids` goes on
        self.job = None
        self.account.enter()
        try:
            if ids is not None:
                self.request.take_ids(ids)
                self.attempts.ask.n_tokens = self.request.prompt.n_tokens
            self._route()
            if self.account.is_open:
                self.account.leave()
        except Exception as error:
            self.on_error(error)

    cdef int _route(self) except -1:
        cdef int slot = self.attempts.pick(self.request, self.account.entered_s)
        if slot >= 0 and self.plane.waiting.n and self.attempts.is_behind(self.request, slot):
            # What is free belongs first to those who wait already: it joins them, if it may.
            if self.attempts.patience_s(BUSY, self.request) > 0:
                self.plane.wake_soon(slot)
                return self._hold(BUSY)
            self.plane.waiting.free(slot)
            self.plane.waiting.turn(self.account.entered_s)
            slot = self.attempts.pick(self.request, self.account.entered_s)
        if slot < 0:
            return self._hold(slot)
        return self._dispatch(slot)

    # -- waiting for room

    cdef int _hold(self, int verdict) except -1:
        """No endpoint can have it now: it waits for one, if it may."""
        cdef double now = self.account.entered_s
        cdef double patience_s = self.attempts.patience_s(verdict, self.request)
        if patience_s <= 0:
            if verdict != BUSY:
                return self._nobody()
            return self._no_room(Reason.HOLD_FULL, (self._queue(),))
        self.stage = Stage.HELD
        self.verdict = verdict
        self.held_since_s = now
        self.held_until_s = now + max(0.0, patience_s - self.account.held_s)
        self.place = Place()
        self.place.exchange = self
        self.place.priority = self.request.priority
        self.place.since_s = self.attempts.ask.since_s
        self.place.n_bytes = self.request.body_size
        self.place.only = self.attempts.only()
        self.plane.waiting.join(self.place, self.attempts.wants(self.request), now)
        self.plane.counts[<int>Count.HELD_REQUESTS] += 1
        self.plane.counts[<int>Count.HELD_BYTES] += self.place.n_bytes
        if not self.client.stalled_s:
            self.plane.wheel.set(self.client, self.held_until_s)
        return 0

    cdef bint admit(self, double now) except -1:
        cdef int slot
        cdef Served served = self.plane.current(self.request.served)
        self.account.enter()
        if served is None:
            self.verdict = NOBODY       # for now: it may be a restart
            return False
        self.request.served = served
        # The first in line is asked often: its prompt is looked up only when there is room.
        slot = self.attempts.look(self.request, now)
        if slot >= 0:
            slot = self.attempts.pick(self.request, now)
        if slot < 0:
            self.verdict = slot
            self.place.only = self.attempts.only()
            return False
        self._leave_queue(True)
        self._dispatch(slot)
        if self.account.is_open:
            self.account.leave()
        return True

    cdef int expelled(self, double now) except -1:
        # It is told with the next tick: this is the callback of the one that has its place.
        self.held_until_s = now
        self.plane.wheel.drop(self.client)
        self.plane.wheel.set(self.client, now)
        return 0

    cdef int _held_too_long(self) except -1:
        cdef bint has_place = self.place.line is not None
        self._leave_queue(False)
        if not has_place:
            return self._no_room(Reason.HOLD_FULL, (self._queue(),))
        if self.verdict == BUSY:
            return self._no_room(Reason.HOLD_TIMEOUT, (f"{self.plane.hold_s:g}",))
        return self._nobody()

    cdef int _nobody(self) except -1:
        reason, details = self.attempts.nobody(self.request)
        return self._no_room(reason, details)

    cdef int _no_room(self, int reason, tuple details) except -1:
        if self.failure != NO_REASON:
            return self._give_up(self.failure, self.failure_detail)
        return self.over(Count.REFUSED, self.client.answer(reason, details), reason,
                         self._ending())

    cdef int _leave_queue(self, bint went) except -1:
        cdef double now = self.account.entered_s
        cdef double held_s = now - self.held_since_s
        if self.place is None:
            return 0
        self.plane.waiting.leave(self.place, went, now)
        self.plane.counts[<int>Count.HELD_REQUESTS] -= 1
        self.plane.counts[<int>Count.HELD_BYTES] -= self.place.n_bytes
        self.place.exchange = None
        self.place = None
        self.account.held_s += held_s
        observe(self.request.served.words + <int>ModelWord.M_HELD, latency_bounds_s(), held_s)
        return 0

    cdef str _queue(self):
        return f"{self.plane.waiting.n} requests of {self.plane.waiting.n_bytes} bytes wait"

    cdef int _dispatch(self, int slot) except -1:
        cdef Upstream upstream
        cdef Pool pool = self.plane.pools[slot]
        self.slot = slot
        self.pool = pool
        self.attempts.went(slot)
        self.doomed = self.dying = self.blameless = False
        self.account.first_s = 0
        self.plane.router.book(&self.booking, slot, &self.attempts.ask, self.attempts.hit_tokens,
                               self.request.prompt, self.request.served.demand,
                               self.request.is_stream)
        self.plane.note_sent(slot, pool.generation, self.request.prompt)
        pool.words[<int>EndpointWord.E_DISPATCHED] += 1
        self.plane.counts[<int>Count.DISPATCHED] += 1
        self.stage = Stage.DIALING
        upstream = pool.take(self, self.request.path, self.attempts.fresh)
        self.attempts.fresh = False
        if upstream is not None:
            return self.on_connection(upstream)
        return 0

    cdef int on_connection(self, Upstream upstream) except -1:
        self.upstream = upstream
        self.stage = Stage.WAITING
        self.account.dispatch_s = now_s()
        self.plane.wheel.set(self.client, self.account.dispatch_s + self.plane.first_byte_s)
        return self.pool.ask(upstream, self, self.request)

    # -- the response

    cdef int on_head(self, Upstream upstream, bytes data, const Head* head) except -1:
        cdef const char* p = PyBytes_AS_STRING(data)
        self.account.enter()
        self.status = head.status
        self.pool.words[<int>EndpointWord.E_STATUS + status_index(head.status)] += 1
        self.kind = self._kind(p, head)
        if self.kind == <int>BodyKind.EVENTS:
            self.relay.start(
                head, self.request.is_head, self.kind, self.request.path.dialect,
                self.request.http_1_0, UsageStripper() if self.request.hides_usage else None,
            )
        else:
            self.relay.start(
                head, self.request.is_head, self.kind, 0, self.request.http_1_0, None
            )
        self.reusable = not head.close
        self.gathers = head.status >= 500 or head.status == 429
        self.pending = relayed_head(
            self.plane, self.request, self.relay, p, head,
            decision_line(self.plane, self.attempts, self.slot, self.request.has_ids)
            if self.attempts.weighed is not None else None,
        )
        self.stage = Stage.HOLDING
        self.account.last_s = self.account.entered_s
        return self._feed(data, head.size)

    cdef int on_body(self, Upstream upstream, bytes data) except -1:
        self.account.enter()
        return self._feed(data, 0)

    cdef int on_events(self, Upstream upstream, bytes chunk, int n) except -1:
        if self.stage != <int>Stage.STREAMING or not self.relay.passes_chunks():
            return self.on_body(upstream, chunk)
        self.account.enter()
        self.pool.words[<int>EndpointWord.E_BYTES_IN] += PyBytes_GET_SIZE(chunk)
        self.relay.scanner.n_events += n
        self._count_events(n)
        self._send(chunk)
        return self._wait()

    cdef int _count_events(self, int n) except -1:
        if self.account.count_events(n, self.request, self.pool):
            if self.plane.waiting.n:
                self.plane.wake_soon(self.slot)
            self.plane.router.booker.first_token(&self.booking, self.account.entered_s)
            n -= 1
        self.plane.router.booker.grow(&self.booking, n)
        return 0

    cdef int _kind(self, const char* p, const Head* head) noexcept:
        if head.content_encoding >= 0 or head.content_type < 0:
            return BodyKind.OPAQUE
        return _kind_of(p + head.fields[head.content_type].value.start,
                        head.fields[head.content_type].value.size)

    cdef int _feed(self, bytes data, size_t at) except -1:
        cdef int fault = self.relay.feed(data, at)
        cdef bytes out = self.relay.out
        self.relay.out = None
        self.pool.words[<int>EndpointWord.E_BYTES_IN] += PyBytes_GET_SIZE(data)
        if fault < 0:
            return self.on_malformed(fault)
        if self.relay.ended and self.relay.rest != <size_t>PyBytes_GET_SIZE(data):
            self.reusable = False       # bytes behind the end: not ours to guess at
        if self.relay.new_events and not self._failed_at_once() and not self._gave_up(out):
            self._count_events(self.relay.new_events)
        elif self.kind != <int>BodyKind.EVENTS:
            self.account.last_s = self.account.entered_s
        if self.stage == <int>Stage.STREAMING:
            if out is not None:
                self._send(out)
        elif self._held_back(out):
            return 0
        if self.relay.ended:
            return self._answered()
        return self._wait()

    cdef int _wait(self) except -1:
        """The end of a callback: more is to come from the engine."""
        if not self.client.stalled_s:
            self.plane.wheel.set(self.client, self._patience_s())
        self.account.leave()
        return 0

    cdef bint _held_back(self, bytes out) except -1:
        """Nothing has gone out yet: is it time? True: not yet, or the response was left."""
        if out is not None:
            self.pending = self.pending + out
        if self.gathers:
            if not self.relay.ended and len(self.pending) < GATHERED_BYTES:
                self._wait()
                return True
            self.dying = self._is_dying(self.status)
            if self._turned_away():
                return True
        elif out is None and not self.relay.ended:
            self._wait()
            return True
        elif self._failed_at_once():
            self.dying = self._is_dying(500)
            if self.dying and self._turned_away():
                return True
        elif self._gave_up(out):
            self.dying = True
            if self._turned_away():
                return True
        self._commit()
        return False

    cdef bint _failed_at_once(self) noexcept:
        """The stream's first event is an error: so an engine dies before its first token."""
        return (
            self.stage == <int>Stage.HOLDING
            and self.relay.scanner.failed and self.relay.scanner.n_events == 1
        )

    cdef bint _gave_up(self, bytes out) except -1:
        """The engine does not finish what it began, and nobody has seen that yet."""
        return (
            self.stage == <int>Stage.HOLDING and self.status == 200 and out is not None
            and self.pool.cut_short is not None and self.pool.cut_short in out
        )

    cdef bint _is_dying(self, int status) except -1:
        for known, piece in self.pool.dying_answers:
            if known == status and piece in self.pending:
                return True
        return False

    cdef bint _turned_away(self) except -1:
        """Ask elsewhere because of what the engine answered, if that is allowed and possible."""
        cdef int slot
        if not self.dying and self.status != 429 and self.status != 502 and self.status != 503:
            return False
        slot = self.attempts.again(
            self.request, retry.Cause.DYING if self.dying else retry.Cause.STATUS, self.pool,
            self.account.entered_s,
        )
        if slot == GIVE_UP:
            return False
        if self.relay.ended and not self.dying:
            self._part()
        else:
            self._detach()
        self._release(Count.TURNED_AWAY)
        self.pending = None
        if slot >= 0:
            self._dispatch(slot)
        else:
            self.failure = Reason.TURNED_AWAY
            self.failure_detail = str(self.status)
            self._hold(slot)
        return True

    cdef int _commit(self) except -1:
        """The client gets its first bytes: from here on nothing is repeated."""
        cdef bytes first = self.pending
        self.stage = Stage.STREAMING
        self.pending = None
        self.request.body = self.request.fields = self.request.credentials = None
        self.request.prompt.clear()
        if self.status < 500 and not self.relay.scanner.failed:
            # A trial is won here: its stream may go on for minutes.
            self.pool.load.begun += 1
        if self.upstream is None or self.upstream.closed or self.upstream.is_flushed():
            # An engine may answer before it has read: until then the body is in our memory.
            self.client.on_commit()
        if self.request.path.makes_responses and self.plane.on_made is not None:
            self._remember_response(first)
        return self._send(first)

    cdef int _remember_response(self, bytes first) except -1:
        at = first.find(b'"id":"resp_')
        if at < 0:
            return 0
        end = first.find(b'"', at + 6)
        if 0 < end < at + 200:
            name = first[at + 6:end].decode("latin-1")
            holder = self.request.holder or ""
            self.plane.made(name, self.slot, self.pool.generation, holder)
            self.plane.on_made(name, self.slot, self.pool.generation, holder)
        return 0

    cdef int _send(self, bytes data) except -1:
        self.account.bytes_out += PyBytes_GET_SIZE(data)
        return self.client.send(data)

    cdef int _answered(self) except -1:
        """The response is whole."""
        self._part()
        self._release(Count.ANSWERED)
        self._count_tokens()
        return self.over(Count.COMPLETED, self.status, NO_REASON, self._ending())

    cdef int _part(self) except -1:
        """Give the connection back if it can carry another exchange."""
        cdef Upstream upstream = self.upstream
        self.parted, self.upstream = upstream, None
        if self.reusable and not upstream.closed and upstream.is_flushed():
            if self.client.stalled_s:
                upstream.hold(False)
            self.pool.give(upstream)
        else:
            upstream.abort()
        return 0

    cdef int _detach(self) except -1:
        """Leave the engine at once; closing the connection is what frees its GPU."""
        cdef Upstream upstream = self.upstream
        if self.stage == <int>Stage.DIALING:
            self.pool.leave(self)
        elif self.stage == <int>Stage.HELD:
            self._leave_queue(False)
        self.parted, self.upstream = upstream, None
        if upstream is not None:
            upstream.abort()
        return 0

    cdef int _release(self, int outcome) except -1:
        """Settle the booking; `outcome` is a Count."""
        cdef Pool pool = self.pool
        cdef Upstream parted = self.parted
        self.parted = None
        if self.booking.stage == <int>BookingStage.NONE:
            return 0
        if (parted is not None and outcome != <int>Count.CONDEMNED
                and parted.books_on(&self.booking)):
            self.booking.stage = BookingStage.NONE
        else:
            self.plane.router.booker.release(&self.booking, self.account.entered_s)
            if self.plane.waiting.n:
                self.plane.wake_soon(self.slot)
        self.plane.counts[outcome] += 1
        if outcome == <int>Count.ABANDONED or outcome == <int>Count.CUT:
            pool.words[<int>EndpointWord.E_ABANDONED] += 1
        elif outcome == <int>Count.ANSWERED and (not pool.blames_engine or (
                self.status < 500 and not self.relay.scanner.failed)):
            pool.words[<int>EndpointWord.E_ANSWERED] += 1
            pool.load.failures_in_row = 0
            pool.load.successes += 1
        elif outcome == <int>Count.TURNED_AWAY or (
                outcome == <int>Count.ANSWERED and self.status == 503):
            # Busy is not broken: only failures by its own fault open an endpoint's circuit.
            pool.words[<int>EndpointWord.E_ANSWERED] += 1
        else:
            pool.words[<int>EndpointWord.E_FAILED] += 1
            if outcome != <int>Count.DIAL_FAILED and not self.blameless:
                pool.load.failures_in_row += 1
        if self.dying:
            # It will not recover by itself: the circuit opens at once.
            pool.load.failures_in_row = min(pool.load.failures_in_row, MAX_FAILURES) + DYING
        return 0

    cdef int _count_tokens(self) except -1:
        if self.status == 200:
            self.account.count_tokens(self.request, self.relay.scanner)
            if self.relay.scanner.usage.cached >= 0 and self.booking.hit_tokens > 0:
                self.plane.router.booker.found(&self.booking, self.relay.scanner.usage.cached)
            self.request.served.demand.ended(
                max(self.relay.scanner.usage.tokens_out, self.relay.scanner.n_events or -1),
                self.relay.scanner.usage.tokens_in, self.request.prompt_bytes,
            )
        return 0

    # -- failures

    cdef int on_dial_failed(self, str why) except -1:
        self.account.enter()
        self._release(Count.DIAL_FAILED)
        return self._failed(retry.Cause.DIAL, Reason.CONNECT_FAILED, why)

    cdef int on_lost(self, bint clean) except -1:
        cdef Upstream upstream = self.upstream
        cdef int cause
        self.account.enter()
        if self.stage >= <int>Stage.HOLDING and clean and self.relay.finish():
            return self._finished_by_close()
        self.upstream = None
        # Closed by the engine before it saw the request? Then that shows at once, and once.
        cause = retry.Cause.LOST
        if self.stage == <int>Stage.WAITING and not self.attempts.refreshed and (
                upstream.untouched or upstream.reused
                and self.account.entered_s - self.account.dispatch_s < STALE_S):
            cause = retry.Cause.LOST_REUSED
        self.blameless = cause == retry.Cause.LOST_REUSED
        self._release(Count.LOST)
        return self._failed(
            cause, Reason.UPSTREAM_LOST, "before answering" if self.stage < <int>Stage.HOLDING
            else "in the middle of its answer",
        )

    cdef int _finished_by_close(self) except -1:
        cdef bytes out = self.relay.out
        self.relay.out = None
        self.reusable = False
        if self.stage == <int>Stage.STREAMING:
            if out is not None:
                self._send(out)
        elif self._held_back(out):
            return 0
        self.upstream = None
        self._release(Count.ANSWERED)
        self._count_tokens()
        return self.over(Count.COMPLETED, self.status, NO_REASON, self._ending())

    cdef int on_malformed(self, int fault) except -1:
        self.account.enter()
        self._detach()
        self._release(Count.MALFORMED)
        return self._failed(
            retry.Cause.MALFORMED, Reason.UPSTREAM_MALFORMED, REFUSALS[fault].message
        )

    cdef int on_error(self, object error) except -1:
        """One of our own callbacks raised: a bug, which must cost this request alone."""
        log.error("a request failed in the gateway", exc_info=error)
        if self.stage == <int>Stage.IDLE:
            return 0
        self.account.enter()
        self._detach()
        self._release(Count.CUT)
        return self._give_up(Reason.INTERNAL, type(error).__name__)

    cdef int condemn(self, int slot, unsigned int generation, str why, bint hung) except -1:
        if self.booking.stage == <int>BookingStage.NONE or self.slot != slot or (
                self.pool.generation != generation):
            return 0
        self.account.enter()
        if self.stage == <int>Stage.STREAMING and not hung:
            # Its listener is gone, but it may be finishing what it has: only silence ends this.
            self.doomed = True
            self.doom = why
            return self._wait()
        self._detach()
        self._release(Count.CONDEMNED)
        return self._failed(retry.Cause.CONDEMNED, Reason.ENDPOINT_CONDEMNED, why)

    cdef int on_late(self, double now) except -1:
        self.account.entered_s = now
        if self.client.stalled_s:
            if now - self.client.stalled_s >= self.plane.client_stall_s:
                return self.cancel(Count.CANCEL_CLIENT_SLOW)
            self.plane.wheel.set(self.client, self.client.stalled_s + self.plane.client_stall_s)
            return 0
        if self.stage == <int>Stage.HELD and self.place is not None:
            if now >= self.held_until_s:
                return self._held_too_long()
            self.plane.wheel.set(self.client, self.held_until_s)
            return 0
        if self.stage < <int>Stage.WAITING:
            return 0
        if now < self._patience_s():
            self.plane.wheel.set(self.client, self._patience_s())
            return 0
        if not self.doomed:
            return self._timed_out()
        self._detach()
        self._release(Count.CONDEMNED)
        return self._failed(retry.Cause.CONDEMNED, Reason.ENDPOINT_CONDEMNED, self.doom)

    cdef double _patience_s(self) noexcept:
        """Until when the engine may be silent."""
        if self.doomed:
            return self.account.last_s + self.plane.dead_silence_s
        if self.stage == <int>Stage.WAITING or (
                self.kind == <int>BodyKind.EVENTS and self.account.first_s == 0):
            # vLLM sends the head of a stream at once, long before it has a token.
            return self.account.dispatch_s + self.plane.first_byte_s
        return self.account.last_s + self.plane.event_s

    cdef int _timed_out(self) except -1:
        cdef bint began = self.stage != <int>Stage.WAITING and (
            self.kind != <int>BodyKind.EVENTS or self.account.first_s > 0)
        self._detach()
        self._release(Count.TIMED_OUT)
        if began:
            return self._failed(retry.Cause.TIMEOUT, Reason.EVENT_TIMEOUT,
                                f"{self.plane.event_s:g}")
        return self._failed(retry.Cause.TIMEOUT, Reason.FIRST_BYTE_TIMEOUT,
                            f"{self.plane.first_byte_s:g}")

    cdef int _failed(self, int cause, int reason, str detail) except -1:
        """A dispatch failed and is settled: ask again, or tell the client."""
        cdef int slot
        if self.stage == <int>Stage.STREAMING:
            return self._give_up(reason, detail)
        self.pending = None
        slot = self.attempts.again(self.request, cause, self.pool, self.account.entered_s)
        if slot == GIVE_UP:
            return self._give_up(reason, detail)
        if slot >= 0:
            return self._dispatch(slot)
        self.failure = reason
        self.failure_detail = detail
        return self._hold(slot)

    cdef int _give_up(self, int reason, str detail) except -1:
        """Tell the client, in its dialect, by whatever still fits."""
        cdef bytes end
        if self.stage != <int>Stage.STREAMING:
            return self.over(
                Count.FAILED, self.client.answer(reason, (detail,)), reason, self._ending()
            )
        if not self.relay.takes_events():
            return self.over(Count.FAILED, self.status, reason, Ending.ABORT)
        words = REASONS[Reason(reason)]
        end = self.relay.ending(stream_error(
            self.request.path.dialect, words.status, words.type, words.message.format(detail),
            words.code,
        ))
        self._send(end)
        return self.over(Count.FAILED, self.status, reason, self._ending())

    cdef int _ending(self) noexcept:
        return Ending.CLOSE if self.request.close_after or self.plane.draining else Ending.KEEP

    # -- the client's side

    cdef int cancel(self, int cause) except -1:
        self.account.enter()
        self._detach()
        self._release(Count.ABANDONED)
        self.plane.counts[cause] += 1
        if self.stage == <int>Stage.STREAMING:
            self._count_tokens()
        return self.over(Count.CANCELLED, 499, NO_REASON, Ending.ABORT)

    cdef int cut(self, int reason) except -1:
        self.account.enter()
        self._detach()
        self._release(Count.CUT)
        self.request.close_after = True
        if self.stage == <int>Stage.HELD:
            return self._no_room(Reason.DRAINING, ())
        return self._give_up(reason, "")

    cdef int hold(self, bint full) except -1:
        if self.stage == <int>Stage.HELD and not full:
            self.plane.wheel.set(self.client, self.held_until_s)
        if self.upstream is None or self.upstream.closed:
            return 0
        if not full:
            # The engine was not to blame for the silence.
            self.account.last_s = now_s()
            self.plane.wheel.set(self.client, self._patience_s())
        return self.upstream.hold(full)

    # -- the account

    cdef int over(self, int outcome, int status, int reason, int ending) except -1:
        self.account.end(outcome, status, reason, self.request, self.pool,
                         self.attempts.n_dispatches,
                         self.relay.scanner.n_events)
        self._clear()
        return self.client.on_over(ending)

    cdef int _clear(self) except -1:
        self.stage = Stage.IDLE
        if self.job is not None:
            self.job.cancel()
            self.job = None
        self.relay.clear()
        self.relay.scanner.reset(0)
        self.upstream = None
        self.pool = None
        self.request.clear()
        self.pending = None
        self.doom = self.failure_detail = None
        self.attempts.n_dispatches = 0
        self.doomed = False
        return 0

cdef int _kind_of(const char* value, size_t size) noexcept:
    """What a Content-Type says of a body; media types are case-insensitive, engines lower-case."""
    if size >= 17 and memcmp(value, b"text/event-stream", 17) == 0:
        return BodyKind.EVENTS
    if size >= 16 and memcmp(value, b"application/json", 16) == 0:
        return BodyKind.JSON
    return BodyKind.OPAQUE
