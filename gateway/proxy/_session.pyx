"""See _session.pxd."""

import logging
from urllib.parse import unquote

import msgspec

from engines.kserve import asks_for_ready
from gateway.http.faults import REFUSALS
from gateway.reasons import REASONS, Reason

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t
from libc.string cimport memcpy
from posix.unistd cimport close, dup

from gateway._shared cimport Count
from gateway.http._body cimport Framing, Step, walk, walk_request
from gateway.http._head cimport Head, MAX_HEAD_BYTES, head_end, parse_request
from gateway.http._write cimport part_of
from gateway.proxy._answer cimport fault_answer, own_answer, refusal
from gateway.proxy._exchange cimport Client, Ending, Exchange
from gateway.proxy._native cimport model_is_ready, native_is_ready, repository_index, server_card
from gateway.proxy._path cimport Local
from gateway.proxy._plane cimport Plane, now_s
from gateway.proxy._request cimport shown

cdef extern from "<sys/socket.h>" nogil:
    ssize_t send(int fd, const void* data, size_t n, int flags)
    int MSG_DONTWAIT, MSG_NOSIGNAL

cdef enum:
    # How much that still comes is read (and thrown away) after the last answer, before the
    # connection is cut.
    LINGER_BYTES = 1024 * 1024
    # Up to here a copy is cheaper than a view.
    COPIED_BYTES = 16 * 1024

cdef double LINGER_S = 2.0
cdef bytes JSON = b"application/json"
cdef str FULL = "its memory for request bodies is in use"
cdef bytes PREFLIGHT = (
    b"access-control-allow-methods: GET, POST, DELETE, OPTIONS\r\n"
    b"access-control-allow-headers: *, authorization\r\n"
    b"access-control-max-age: 600\r\n"
)
log = logging.getLogger("headgate.session")


cdef class Session(Client):
    """A protocol for uvloop (duck-typed): one per accepted connection."""

    def __init__(self, Plane plane):
        self.plane = plane
        self.exchange = Exchange(plane, self)
        self.request = self.exchange.request
        self.phase = Phase.HEAD

    # -- the transport's calls

    def connection_made(self, transport):
        self.transport = transport
        self.write = transport.write
        self.fd = -1
        if transport.get_extra_info("ssl_object") is None:
            # A descriptor of our own: the transport may close its own at any time, and its number
            # may be another client's before we hear of that.
            self.fd = dup(transport.get_extra_info("socket").fileno())
        self.plane.sessions.add(self)
        self.plane.counts[<int>Count.CLIENT_OPENED] += 1
        self.plane.wheel.set(self, now_s() + self.plane.head_s)

    def connection_lost(self, error):
        self.phase = Phase.CLOSED
        try:
            if self.exchange.stage:
                self.exchange.cancel(Count.CANCEL_CLIENT_GONE)
            elif self.exchange.account.is_open:
                self.exchange.account.enter()
                self.plane.counts[<int>Count.CANCEL_CLIENT_GONE] += 1
                self.exchange.over(Count.CANCELLED, 499, Reason.NONE, Ending.ABORT)
        finally:
            self.plane.wheel.drop(self)
            self.plane.leave(self)
            self.plane.counts[<int>Count.CLIENT_CLOSED] += 1
            self._free_body()
            if self.fd >= 0:
                close(self.fd)
                self.fd = -1
            self.exchange.client = None     # the pair is a cycle
            self.transport = self.write = self.input = None

    def data_received(self, bytes data):
        cdef double entered_s = now_s()
        self.plane.counts[<int>Count.CLIENT_BYTES_IN] += PyBytes_GET_SIZE(data)
        self.exchange.account.entered_s = entered_s
        try:
            if self.phase == <int>Phase.HEAD and self.stalled_s:
                self._take_ahead(data)
            elif self.phase == <int>Phase.HEAD:
                self._append(data)
                self._advance()
                self._leave()
            elif self.phase == <int>Phase.BODY:
                self._take_body(data, 0)
                self._leave()
            elif self.phase == <int>Phase.RUNNING:
                self._take_ahead(data)
            elif self.phase == <int>Phase.LINGER:
                self.received += PyBytes_GET_SIZE(data)
                if self.received > LINGER_BYTES:
                    self.transport.abort()
        except Exception as error:
            self._broke(error)

    cdef void _leave(self) noexcept:
        if self.exchange.account.is_open:
            self.exchange.account.leave()

    def eof_received(self):
        if self.plane.half_close and self.phase == <int>Phase.RUNNING:
            self.eof = True
            return True
        # FIN means gone: nothing that is still in our buffer is worth the engine's time.
        if self.phase == <int>Phase.RUNNING or self.phase == <int>Phase.BODY:
            self.transport.abort()
        return False

    def pause_writing(self):
        """More has been written than the client takes: nothing is read for it until it does."""
        self.stalled_s = now_s()
        self.plane.wheel.set(self, self.stalled_s + self.plane.client_stall_s)
        if self.exchange.stage:
            self.exchange.hold(True)

    def resume_writing(self):
        self.stalled_s = 0
        if self.exchange.stage:
            self.exchange.hold(False)
        elif self.phase == <int>Phase.HEAD:
            self.exchange.account.enter()
            try:
                self._advance()
            except Exception as error:
                self._broke(error)

    cdef int _broke(self, object error) except -1:
        """Our own code raised: a bug, which must cost this connection alone."""
        log.error("a connection failed in the gateway", exc_info=error)
        if self.exchange.stage:
            self.exchange.on_error(error)
        elif self.exchange.account.is_open:
            self.exchange.over(Count.FAILED, 500, Reason.INTERNAL, Ending.ABORT)
        if self.transport is not None:
            self.transport.abort()
        return 0

    # -- heads

    cdef int _append(self, bytes data) except -1:
        if self.input is None or self.at == <size_t>PyBytes_GET_SIZE(self.input):
            self.input = data
        else:
            self.input = self.input[self.at:] + data
        self.at = 0
        return 0

    cdef int _take_ahead(self, bytes data) except -1:
        """A pipelined request: kept up to one head's size while the response runs."""
        self._append(data)
        self.seen = 0
        if PyBytes_GET_SIZE(self.input) <= MAX_HEAD_BYTES:
            return 0
        if self.exchange.stage:
            return self.exchange.cancel(Count.CANCEL_PIPELINE)
        self.transport.abort()
        return 0

    cdef int _advance(self) except -1:
        """Serve what is in `input`, one request after the other."""
        if self.advancing:
            return 0
        self.advancing = True
        try:
            while self.phase == <int>Phase.HEAD and self._next_head():
                pass
        except Exception as error:
            # Caught here: the caller may be an engine's callback, which has nothing to do with it.
            self._broke(error)
        finally:
            self.advancing = False
        return 0

    cdef bint _next_head(self) except -1:
        """One step; False: more input is needed, or the connection is done."""
        cdef const char* p
        cdef size_t n
        cdef Py_ssize_t size
        cdef int fault
        if self.stalled_s:
            # What was asked before has not been read: no more until it is.
            self.plane.wheel.set(self, self.stalled_s + self.plane.client_stall_s)
            return False
        if self.input is None or self.at == <size_t>PyBytes_GET_SIZE(self.input):
            self._rest()
            return False
        p = PyBytes_AS_STRING(self.input) + self.at
        n = PyBytes_GET_SIZE(self.input) - self.at
        size = head_end(p, n, self.seen)
        if size == 0:
            if self.seen == 0:
                self.plane.wheel.drop(self)
                self.plane.wheel.set(self, self.exchange.account.entered_s + self.plane.head_s)
            self.seen = n
            return False
        self.seen = 0
        fault = size if size < 0 else parse_request(p, size, &self.plane.head)
        self.exchange.account.begin()
        if fault < 0:
            self._refuse_fault(fault)
            return False
        self.at += size
        self._begin(p, &self.plane.head)
        return True

    cdef int _rest(self) except -1:
        """Between requests: hold no memory, wait for the next one."""
        self.input = None
        self.at = 0
        if self.eof or self.plane.draining:
            self.transport.close()
            return 0
        self.plane.wheel.set(self, self.exchange.account.entered_s + self.plane.client_keep_alive_s)
        return 0

    cdef int _begin(self, const char* p, const Head* head) except -1:
        """A request's head is here: decide all that can be decided without its body."""
        cdef int reason
        walk_request(&self.walker, head)
        reason = self.request.read_head(p, head)
        if reason:
            return self._refuse(reason)
        if self.request.is_preflight:
            return self._respond(204, b"", b"", PREFLIGHT)
        if self.request.path.local and not self.request.path.has_body:
            return self._answer_local()
        return self._begin_body(head)

    # -- bodies

    cdef int _begin_body(self, const Head* head) except -1:
        cdef size_t n = PyBytes_GET_SIZE(self.input) - self.at
        cdef bytes input
        cdef size_t at
        self.received = 0
        if self.walker.framing == <int>Framing.NO_BODY:
            self._cut_input(0)
            return self._run(None)
        if self.walker.framing == <int>Framing.LENGTH and <size_t>head.content_length <= n:
            self.received = head.content_length
            self._count_body(self.received)
            if self.plane.is_full():
                return self._refuse_for(Reason.OVERLOADED, (FULL,))
            return self._run(self._cut_input(head.content_length))
        self.phase = Phase.BODY
        self.body = None
        self.window = 0
        self.plane.wheel.drop(self)
        self.plane.wheel.set(self, self.exchange.account.entered_s + self.plane.body_idle_s)
        if n == 0:
            self.input = None
            self.at = 0
            if head.expect_continue:
                self.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            return 0
        input, at = self.input, self.at
        self.input = None
        self.at = 0
        return self._take_body(input, at)

    cdef object _cut_input(self, size_t n):
        """The next n bytes of the input; large ones as a view, without a copy."""
        cdef size_t at = self.at
        cdef object cut
        self.at += n
        if n > COPIED_BYTES:
            cut = memoryview(self.input)[at:at + n]
        else:
            cut = part_of(self.input, at, at + n)
        if self.at == <size_t>PyBytes_GET_SIZE(self.input):
            # A stream may run for minutes: it shall not keep what it was asked with.
            self.input = None
            self.at = 0
        return cut

    cdef int _take_body(self, bytes data, size_t at) except -1:
        cdef const char* p = PyBytes_AS_STRING(data)
        cdef size_t n = PyBytes_GET_SIZE(data)
        cdef int64_t before = self.received
        cdef int step
        self.walker.pos = at
        while True:
            step = walk(&self.walker, p, n)
            if step == <int>Step.DATA:
                if self.received + <int64_t>self.walker.size > self.plane.body_bytes:
                    return self._refuse_for(Reason.BODY_TOO_LARGE, (self.plane.body_bytes,))
                self._make_room(self.received + self.walker.size)
                memcpy(PyBytes_AS_STRING(self.body) + self.received, p + self.walker.start,
                       self.walker.size)
                self.received += self.walker.size
            elif step != <int>Step.CHUNK_END:
                break
        self._count_body(self.received - before)
        if step < 0:
            return self._refuse_fault(step)
        if step == <int>Step.MORE:
            return self._check_memory()
        if self.walker.pos < n:
            self.input = data
            self.at = self.walker.pos
        body, self.body = self.body, None
        if body is None:
            body = b""
        elif PyBytes_GET_SIZE(body) != self.received:
            body = part_of(body, 0, self.received)
        return self._run(body)

    cdef int _make_room(self, int64_t size) except -1:
        """Let `body`, which nobody else has seen yet, hold that many bytes."""
        cdef int64_t room = 0 if self.body is None else PyBytes_GET_SIZE(self.body)
        cdef bytes larger
        if size <= room:
            return 0
        if self.walker.framing == <int>Framing.LENGTH:
            # Memory that is not written to is not taken: a claim costs the claimer's bytes only.
            room = size + self.walker.left
        else:
            room = min(max(2 * room, size, <int64_t>COPIED_BYTES), self.plane.body_bytes)
        larger = PyBytes_FromStringAndSize(NULL, room)
        if self.body is not None:
            memcpy(PyBytes_AS_STRING(larger), PyBytes_AS_STRING(self.body), self.received)
        self.body = larger
        return 0

    cdef int _count_body(self, int64_t n) except -1:
        self.window += n
        self.counted += n
        self.plane.counts[<int>Count.BUFFERED_BYTES] += n
        return 0

    cdef int _check_memory(self) except -1:
        """All of the worker's body memory is in use: stop reading until some is free."""
        if self.plane.is_full() and not self.starved:
            self.starved = True
            self.plane.starved.append(self)
            self.transport.pause_reading()
        return 0

    def resume_body(self):
        """There is memory again; called by the plane."""
        if self.starved and self.phase == <int>Phase.BODY:
            # The client was not to blame for the silence.
            self.window = 0
            self.plane.wheel.drop(self)
            self.plane.wheel.set(self, now_s() + self.plane.body_idle_s)
            self.transport.resume_reading()
        self.starved = False

    cdef int _free_body(self) except -1:
        self.plane.counts[<int>Count.BUFFERED_BYTES] -= self.counted
        self.counted = 0
        self.body = None
        self.starved = False
        return 0

    # -- requests

    cdef int _run(self, object body) except -1:
        """The request is here as a whole: read what it asks for and hand it over."""
        cdef int reason
        self.phase = Phase.RUNNING
        if self.request.path.local:
            return self._answer_native(self.request.path.local, body)
        reason = self.request.read_body(body, self.received)
        if reason:
            return self._refuse(reason)
        return self.exchange.start()

    # -- answers of our own

    cdef int _answer_local(self) except -1:
        """The small routes that are ours."""
        cdef int local = self.request.path.local
        if local == <int>Local.HEALTH:
            return self._respond(200, JSON, b'{"status":"ok"}', b"")
        if local == <int>Local.METRICS:
            return self._answer_metrics()
        if local == <int>Local.MODELS:
            return self._respond(200, JSON, self._models(), b"")
        if local >= <int>Local.LIVE:
            return self._answer_native(local, None)
        target = self.request.target.split(b"?")[0].decode("latin-1")
        name = unquote(target.removeprefix("/v1/models/"))
        card = self.plane.cards.get(name)
        if self.request.allowed is not None and name.encode() not in self.request.allowed:
            self.request.details = (shown(name.encode()),)
            return self._refuse(Reason.FORBIDDEN_MODEL)
        if card is None:
            self.request.details = (name, self.plane.served_names(self.request.allowed))
            return self._refuse(Reason.UNKNOWN_MODEL)
        return self._respond(200, JSON, card, b"")

    cdef int _answer_native(self, int local, object body) except -1:
        """What KServe's v2 protocol asks of a server, said of the whole fleet."""
        if local == <int>Local.LIVE:
            return self._respond(200, JSON, b"", b"")
        if local == <int>Local.READY:
            return self._respond(200 if native_is_ready(self.plane) else 400, JSON, b"", b"")
        if local == <int>Local.SERVER:
            return self._respond(200, JSON, server_card(), b"")
        if local == <int>Local.MODEL_READY:
            if model_is_ready(self.plane, self.request.path.model, self.request.allowed):
                return self._respond(200, JSON, b"", b"")
            return self._respond(400, JSON, b'{"error":"Model version not ready"}', b"")
        if local == <int>Local.INDEX:
            found = repository_index(self.plane, self.request.allowed, asks_for_ready(body))
            return self._respond(200, JSON, msgspec.json.encode(found), b"")
        self.plane.loop.create_task(self._change_repository(bytes(body or b"")))
        return 0

    async def _change_repository(self, bytes body):
        """The control process does it, at every engine, if it likes the token."""
        try:
            status, text = await self.plane.change_repository(
                self.request.target, self.request.credentials or b"", body)
        except Exception as error:      # whatever it is: the client waits for an answer
            log.warning("loading or unloading a model: %r", error)
            status = 0
        if self.phase != <int>Phase.RUNNING:
            return
        self.exchange.account.enter()
        if status == 0:
            self._refuse_for(Reason.NO_ENDPOINT, ("the control process does not answer",))
        elif status == 403:
            self._refuse_for(Reason.FORBIDDEN_REPOSITORY, ())
        else:
            self._respond(status, JSON, text, b"")

    cdef bytes _models(self):
        """The model list; of a key that is restricted, its own."""
        cdef frozenset allowed = self.request.allowed
        if allowed is None:
            return self.plane.models_json
        cards = [card for name, card in self.plane.cards.items() if name.encode() in allowed]
        return b'{"object":"list","data":[' + b",".join(cards) + b"]}"

    cdef int _answer_metrics(self) except -1:
        if not self.plane.settings.metrics_on_data_port:
            return self._refuse_for(Reason.UNKNOWN_PATH, ("/metrics", "It is on the admin port."))
        if not self._skip_body():
            return self._refuse_for(Reason.METHOD_NOT_ALLOWED, ("GET with a body",))
        self.phase = Phase.RUNNING
        self.plane.loop.create_task(self._fetch_metrics())
        return 0

    async def _fetch_metrics(self):
        """The control process renders them: here that would hold up every stream."""
        try:
            text = await self.plane.fetch_metrics()
        except Exception as error:      # whatever it is: the client waits for an answer
            log.warning("metrics for the data port: %r", error)
            text = None
        if self.phase != <int>Phase.RUNNING:
            return
        self.exchange.account.enter()
        if text is None:
            self._refuse_for(Reason.NO_ENDPOINT, ("the control process does not answer",))
        else:
            self._respond(200, b"text/plain; version=0.0.4; charset=utf-8", text, b"")

    cdef int _respond(self, int status, bytes content_type, bytes body, bytes lines) except -1:
        """A whole answer of our own, and the request's end."""
        self._skip_body()
        self._send_own(own_answer(self.plane, self.request, status, content_type, body, lines))
        return self.exchange.over(Count.COMPLETED, status, Reason.NONE, self._ending())

    cdef int answer(self, int reason, tuple details) except -1:
        self._send_own(refusal(self.plane, self.request, reason, details))
        return REASONS[Reason(reason)].status

    cdef int _refuse(self, int reason) except -1:
        """Answer with an error, before anything was dispatched; its details are the request's."""
        cdef int status
        self._skip_body()
        status = self.answer(reason, self.request.details)
        return self.exchange.over(Count.REFUSED, status, reason, self._ending())

    cdef int _refuse_for(self, int reason, tuple details) except -1:
        self.request.details = details
        return self._refuse(reason)

    cdef int _refuse_fault(self, int fault) except -1:
        """Bytes that are not HTTP as we read it: nothing behind them can be trusted."""
        cdef int status = REFUSALS[fault].status
        cdef int reason = Reason.HEAD_TOO_LARGE if status == 431 else Reason.BAD_FRAMING
        self.request.close_after = True
        self._send_own(fault_answer(self.plane, self.request, fault, reason))
        return self.exchange.over(Count.REFUSED, status, reason, Ending.CLOSE)

    cdef int _send_own(self, bytes data) except -1:
        self.exchange.account.bytes_out += PyBytes_GET_SIZE(data)
        return self.send(data)

    cdef bint _skip_body(self) except -1:
        """Pass over the body of a request that is answered without it; False: it is to come."""
        cdef size_t n
        if self.phase == <int>Phase.RUNNING or self.walker.framing == <int>Framing.NO_BODY:
            return True
        if self.phase == <int>Phase.HEAD and self.walker.framing == <int>Framing.LENGTH:
            n = PyBytes_GET_SIZE(self.input) - self.at
            if <size_t>self.walker.left <= n:
                self.at += self.walker.left
                return True
        self.request.close_after = True
        return False

    cdef int _ending(self) noexcept:
        return Ending.CLOSE if self.request.close_after else Ending.KEEP

    cdef int send(self, bytes data) except -1:
        cdef ssize_t n
        self.plane.counts[<int>Count.CLIENT_BYTES_OUT] += PyBytes_GET_SIZE(data)
        if self.write is None:
            return 0
        if self.is_queued and self.transport.get_write_buffer_size() == 0:
            self.is_queued = False
        if self.fd >= 0 and not self.is_queued:
            # An event costs this call alone; through the transport it costs a turn of its queue.
            n = send(self.fd, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data),
                     MSG_DONTWAIT | MSG_NOSIGNAL)
            if n == PyBytes_GET_SIZE(data):
                return 0
            if n > 0:
                data = part_of(data, n, PyBytes_GET_SIZE(data))
        self.is_queued = True
        self.write(data)        # also where the connection is gone: the transport will say so
        return 0

    cdef int on_commit(self) except -1:
        return self._free_body()

    cdef int on_over(self, int ending) except -1:
        self._free_body()
        self.received = 0
        self.walker.framing = Framing.NO_BODY
        if self.phase == <int>Phase.CLOSED:
            return 0
        self.plane.wheel.drop(self)
        if ending == <int>Ending.KEEP:
            self.phase = Phase.HEAD
            return self._advance()
        self.phase = Phase.LINGER
        self.input = None
        if ending == <int>Ending.ABORT:
            self.transport.abort()
            return 0
        # What comes until the client closes is read and thrown away: a socket that is closed with
        # unread bytes resets the connection, and takes the end of our answer with it.
        self.closing_s = now_s()
        self.plane.wheel.set(self, self.closing_s + LINGER_S)
        if self.eof or not self.transport.can_write_eof():
            self.transport.close()
            return 0
        self.transport.resume_reading()
        self.transport.write_eof()
        return 0

    # -- deadlines and the worker's orders

    cdef void on_deadline(self, double now) noexcept:
        try:
            self.exchange.account.entered_s = now
            self._late(now)
        except Exception as error:
            self._broke(error)

    cdef int _late(self, double now) except -1:
        if self.phase == <int>Phase.RUNNING:
            return self.exchange.on_late(now)
        if self.phase == <int>Phase.BODY:
            return self._late_body(now)
        if self.phase == <int>Phase.HEAD and self.seen and not self.stalled_s:
            self.exchange.account.begin()
            self.request.close_after = True
            return self._refuse_for(Reason.HEAD_TIMEOUT, ())
        if (self.phase == <int>Phase.LINGER and now < self.closing_s + self.plane.client_stall_s
                and self.transport.get_write_buffer_size()):
            self.plane.wheel.set(self, now + LINGER_S)      # it still reads what we said
            return 0
        self.transport.abort()
        return 0

    cdef int _late_body(self, double now) except -1:
        if self.starved:
            return self._refuse_for(Reason.OVERLOADED, (FULL,))
        if self.window < self.plane.body_bytes_per_s * self.plane.body_idle_s:
            return self._refuse_for(Reason.BODY_TIMEOUT, ())
        self.window = 0
        self.plane.wheel.set(self, now + self.plane.body_idle_s)
        return 0

    def condemn(self, int slot, unsigned int generation, str why, bint hung):
        """See Plane.condemn."""
        self.exchange.condemn(slot, generation, why, hung)

    def drain(self):
        """Close when idle; else after the response under way."""
        if self.phase == <int>Phase.HEAD and self.seen == 0:
            self.transport.close()

    def cut(self):
        """End at once, with an error that says why where one still fits."""
        self.exchange.account.enter()
        if self.exchange.stage:
            self.exchange.cut(Reason.DRAIN_GRACE_OVER)
        elif self.phase == <int>Phase.BODY:
            self._refuse_for(Reason.DRAINING, ())
        elif self.transport is not None:
            self.transport.close()
