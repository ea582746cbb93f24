"""See _account.pxd."""

from gateway.reasons import Reason

from libc.stdint cimport int64_t

from gateway._shared cimport (
    Area,
    Count,
    EndpointWord,
    ModelWord,
    latency_bounds_s,
    observe,
    short_bounds_s,
    status_index,
)
from gateway.http._events cimport Scanner
from gateway.proxy._plane cimport Plane, now_s
from gateway.proxy._pool cimport Pool
from gateway.proxy._request cimport Request

cdef enum:
    # Access records kept between two ticks; more are counted as dropped.
    MAX_RECORDS = 10_000

cdef dict OUTCOMES = {
    <int>Count.COMPLETED: "completed", <int>Count.CANCELLED: "cancelled",
    <int>Count.FAILED: "failed", <int>Count.REFUSED: "refused",
}


cdef class Account:
    """One per client connection, used for one request after the other."""

    def __cinit__(self, Plane plane):
        self.plane = plane

    cdef void enter(self) noexcept:
        self.entered_s = now_s()

    cdef void leave(self) noexcept:
        self.own_s += now_s() - self.entered_s

    cdef void begin(self) noexcept:
        self.plane.counts[<int>Count.ACCEPTED] += 1
        self.is_open = True
        self.start_s = self.last_s = self.entered_s
        self.first_s = self.own_s = self.dispatch_s = self.held_s = 0
        self.bytes_out = 0
        self.tokens_in = self.tokens_out = -1

    cdef bint count_events(self, int n, Request request, Pool pool) noexcept:
        cdef double now = self.entered_s, gap
        cdef int64_t* words = request.served.words
        cdef bint first = self.first_s == 0
        self.plane.counts[<int>Count.EVENTS] += n
        pool.load.last_event_s = now
        if first:
            self.first_s = now
            observe(words + <int>ModelWord.M_TTFT, latency_bounds_s(), now - self.start_s)
            observe(pool.words + <int>EndpointWord.E_TTFT, latency_bounds_s(),
                    now - self.dispatch_s)
            self.last_s = now       # the head may have come long before
            n -= 1
        if n:
            # Events that came in one read share the time since the one before.
            gap = (now - self.last_s) / n
            while n:
                observe(words + <int>ModelWord.M_ITL, latency_bounds_s(), gap)
                n -= 1
        self.last_s = now
        return first

    cdef void count_tokens(self, Request request, Scanner scanner) noexcept:
        cdef int64_t* words = request.served.words
        self.tokens_in = scanner.usage.tokens_in
        self.tokens_out = scanner.usage.tokens_out
        if scanner.usage.tokens_in >= 0:
            words[<int>ModelWord.M_TOKENS_IN] += scanner.usage.tokens_in
        else:
            # About four bytes to a token, in prose and in JSON.
            words[<int>ModelWord.M_TOKENS_IN_ESTIMATED] += request.body_size // 4
        if scanner.usage.tokens_out >= 0:
            words[<int>ModelWord.M_TOKENS_OUT] += scanner.usage.tokens_out
        else:
            words[<int>ModelWord.M_TOKENS_OUT_ESTIMATED] += scanner.n_events
        if scanner.usage.cached > 0:
            words[<int>ModelWord.M_CACHED_TOKENS] += scanner.usage.cached

    cdef int end(self, int outcome, int status, int reason, Request request, Pool pool,
                 int n_dispatches, int64_t n_events) except -1:
        cdef int64_t* counts = self.plane.counts
        cdef double now = now_s()
        self.is_open = False
        counts[outcome] += 1
        if reason:
            counts[<int>Area.REASONS + reason] += 1
        if request.served is not None:
            request.served.words[<int>ModelWord.M_STATUS + status_index(status)] += 1
            observe(request.served.words + <int>ModelWord.M_TOTAL, latency_bounds_s(),
                    now - self.start_s)
        observe(counts + <int>Area.OWN_TIME, short_bounds_s(),
                self.own_s + now - self.entered_s)
        if not self.plane.logs_access:
            return 0
        if len(self.plane.access) >= MAX_RECORDS:
            counts[<int>Count.ACCESS_LOG_DROPPED] += 1
            return 0
        self.plane.access.append({
            "time": now,        # monotonic: Plane.take_access makes it a time of day
            "request_id": latin(request.request_id),
            "method": latin(request.method),
            "path": latin(request.target),
            "model": request.served.name if request.served is not None else None,
            "key": request.holder,
            "status": status,
            "outcome": OUTCOMES[outcome],
            "reason": Reason(reason).name.lower() if reason else None,
            "endpoint": pool.endpoint.name if pool is not None else None,
            "dispatches": n_dispatches,
            "held_s": round(self.held_s, 6) if self.held_s else None,
            "ttft_s": round(self.first_s - self.start_s, 6) if self.first_s else None,
            "total_s": round(now - self.start_s, 6),
            "events": n_events,
            "tokens_in": self.tokens_in if self.tokens_in >= 0 else None,
            "tokens_out": self.tokens_out if self.tokens_out >= 0 else None,
            "bytes_in": request.body_size,
            "bytes_out": self.bytes_out,
        })
        return 0


cdef str latin(bytes value):
    return None if value is None else value.decode("latin-1")
