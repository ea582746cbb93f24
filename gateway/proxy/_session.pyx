"""See _session.pxd."""

import json
import logging
from urllib.parse import unquote

from engines.dialect import Body, refusal_body
from gateway.http.faults import REFUSALS
from gateway.proxy.multipart import model_part
from gateway.proxy.usage import with_usage
from gateway.reasons import REASONS, Reason

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t
from libc.string cimport memcmp

cdef extern from "strings.h" nogil:
    int strncasecmp(const char* a, const char* b, size_t n)

from gateway._shared cimport Count
from gateway.http._body cimport Framing, Step, walk, walk_request
from gateway.http._head cimport (
    Fault,
    FieldId,
    Head,
    MAX_HEAD_BYTES,
    Span,
    head_end,
    parse_request,
)
from gateway.http._write cimport Buffer, part_of
from gateway.proxy._envelope cimport Envelope, Value, is_literal, read_envelope, string_of
from gateway.proxy._exchange cimport Client, Ending, Exchange, start_of, status_line
from gateway.proxy._plane cimport Holder, Local, Path, Plane, Served, now_s

cdef enum:
    # After a refusal: how much of an unwanted body is read (and thrown away) before the connection
    # is cut, so that the client gets to read the answer instead of a reset.
    LINGER_BYTES = 1024 * 1024
    # Up to here a copy is cheaper than a view.
    COPIED_BYTES = 16 * 1024

cdef double LINGER_S = 2.0
cdef bytes JSON = b"application/json"
cdef int BODY_JSON = Body.JSON
cdef int BODY_MULTIPART = Body.MULTIPART

# What is said of each JsonFault.
cdef dict JSON_FAULTS = {
    -1: "it does not begin with '{'",
    -2: "it is cut off",
    -3: "its brackets do not match",
    -4: "it is nested too deeply",
    -5: "there is something behind its end",
    -6: "a member is not written as \"name\": value",
}

log = logging.getLogger("headgate.session")


cdef class Session(Client):
    """A protocol for uvloop (duck-typed): one per accepted connection."""

    def __init__(self, Plane plane):
        self.plane = plane
        self.exchange = Exchange(plane, self)
        self.phase = Phase.HEAD

    # -- the transport's calls

    def connection_made(self, transport):
        self.transport = transport
        self.write = transport.write
        self.plane.sessions.add(self)
        self.plane.counts[<int>Count.CLIENT_OPENED] += 1
        self.plane.wheel.set(self, now_s() + self.plane.head_s)

    def connection_lost(self, error):
        cdef int before = self.phase
        self.phase = Phase.CLOSED
        try:
            if self.exchange.stage:
                self.exchange.cancel(Count.CANCEL_CLIENT_GONE)
            elif before == <int>Phase.BODY or before == <int>Phase.RUNNING:
                self.exchange.entered_s = now_s()
                self.plane.counts[<int>Count.CANCEL_CLIENT_GONE] += 1
                self.exchange.over(Count.CANCELLED, 499, Reason.NONE, Ending.ABORT)
        finally:
            self.plane.wheel.drop(self)
            self.plane.leave(self)
            self.plane.counts[<int>Count.CLIENT_CLOSED] += 1
            self._free_body()
            self.exchange.client = None     # the pair is a cycle
            self.transport = self.write = self.input = None

    def data_received(self, bytes data):
        cdef double entered_s = now_s()
        self.plane.counts[<int>Count.CLIENT_BYTES_IN] += PyBytes_GET_SIZE(data)
        self.exchange.entered_s = entered_s
        try:
            if self.phase == <int>Phase.HEAD:
                self._append(data)
                self._advance()
                self.exchange.leave()
            elif self.phase == <int>Phase.BODY:
                self._take_body(data, 0)
                self.exchange.leave()
            elif self.phase == <int>Phase.RUNNING:
                self._take_ahead(data)
            elif self.phase == <int>Phase.LINGER:
                self.received += PyBytes_GET_SIZE(data)
                if self.received > LINGER_BYTES:
                    self.transport.abort()
        except Exception as error:
            self._broke(error)

    def eof_received(self):
        if self.plane.half_close and self.phase == <int>Phase.RUNNING:
            self.eof = True
            return True
        # FIN means gone: nothing that is still in our buffer is worth the engine's time.
        if self.phase == <int>Phase.RUNNING or self.phase == <int>Phase.BODY:
            self.transport.abort()
        return False

    def pause_writing(self):
        if self.exchange.stage:
            self.exchange.hold(True)

    def resume_writing(self):
        if self.exchange.stage:
            self.exchange.hold(False)

    cdef int _broke(self, object error) except -1:
        """Our own code raised: a bug, which must cost this connection alone."""
        log.error("a connection failed in the gateway", exc_info=error)
        if self.exchange.stage:
            self.exchange.on_error(error)
        elif self.phase == <int>Phase.BODY:
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
        if PyBytes_GET_SIZE(self.input) > MAX_HEAD_BYTES:
            self.exchange.cancel(Count.CANCEL_PIPELINE)
        return 0

    cdef int _advance(self) except -1:
        """Serve what is in `input`, one request after the other."""
        if self.advancing:
            return 0
        self.advancing = True
        try:
            while self.phase == <int>Phase.HEAD and self._next_head():
                pass
        finally:
            self.advancing = False
        return 0

    cdef bint _next_head(self) except -1:
        """One step; False: more input is needed, or the connection is done."""
        cdef const char* p
        cdef size_t n
        cdef Py_ssize_t size
        cdef int fault
        if self.input is None or self.at == <size_t>PyBytes_GET_SIZE(self.input):
            self._rest()
            return False
        p = PyBytes_AS_STRING(self.input) + self.at
        n = PyBytes_GET_SIZE(self.input) - self.at
        size = head_end(p, n, self.seen)
        if size == 0:
            if self.seen == 0:
                self.plane.wheel.drop(self)
                self.plane.wheel.set(self, self.exchange.entered_s + self.plane.head_s)
            self.seen = n
            return False
        self.seen = 0
        fault = size if size < 0 else parse_request(p, size, &self.plane.head)
        self._accept()
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
        self.plane.wheel.set(self, self.exchange.entered_s + self.plane.client_keep_alive_s)
        return 0

    cdef int _accept(self) except -1:
        """From here on the request is in the account and will leave it exactly once."""
        cdef Exchange exchange = self.exchange
        self.plane.counts[<int>Count.ACCEPTED] += 1
        exchange.start_s = exchange.entered_s
        exchange.pinned = -1
        exchange.request_id = None
        exchange.path = None
        exchange.close_after = exchange.keep_alive_1_0 = exchange.is_head = False
        exchange.http_1_0 = False
        exchange.n_dispatches = 0
        exchange.method = exchange.target = None
        return 0

    cdef int _begin(self, const char* p, const Head* head) except -1:
        """A request's head is here: decide all that can be decided without its body."""
        cdef Exchange exchange = self.exchange
        exchange.method = p[head.method.start:head.method.start + head.method.size]
        exchange.target = p[head.target.start:head.target.start + head.target.size]
        exchange.is_head = exchange.method == b"HEAD"
        exchange.http_1_0 = head.minor == 0
        exchange.close_after = head.close
        exchange.keep_alive_1_0 = head.minor == 0 and not head.close
        exchange.request_id = self._request_id(p, head)
        walk_request(&self.walker, head)
        if head.upgrade:
            return self._refuse(Reason.UPGRADE, ())
        if self.plane.origins and self._answer_cors(p, head):
            return 0
        cdef bytes name = p[head.path.start:head.path.start + head.path.size]
        cdef Path path = self.plane.path(name)
        exchange.path = path
        if path is None:
            return self._refuse(Reason.UNKNOWN_PATH, (name.decode("latin-1"),))
        if not (path.posts and exchange.method == b"POST") and (
                exchange.method not in path.methods):
            return self._refuse(Reason.METHOD_NOT_ALLOWED, (exchange.method.decode("latin-1"),))
        if path.local:
            return self._answer_local(path.local, name, p, head)
        if not self._authorize(p, head):
            return self._refuse(Reason.UNAUTHORIZED, ())
        if head.content_encoding >= 0 and not _is(
                p, head.fields[head.content_encoding].value, b"identity", 8):
            return self._refuse(
                Reason.CONTENT_ENCODING, (_text(p, head.fields[head.content_encoding].value),)
            )
        if head.content_length > self.plane.body_bytes:
            return self._refuse(Reason.BODY_TOO_LARGE, (self.plane.body_bytes,))
        exchange.fields = self._fields_to_forward(p, head)
        self.content_type = None
        if path.body == BODY_MULTIPART and head.content_type >= 0:
            self.content_type = _text(p, head.fields[head.content_type].value).encode("latin-1")
        return self._begin_body(head)

    cdef bytes _request_id(self, const char* p, const Head* head):
        cdef Span value
        if head.request_id >= 0:
            value = head.fields[head.request_id].value
            if 0 < value.size <= 128:
                return p[value.start:value.start + value.size]
        return self.plane.new_request_id()

    cdef bint _authorize(self, const char* p, const Head* head) except -1:
        """Find the key's holder; without keys everybody may."""
        cdef Exchange exchange = self.exchange
        cdef Holder holder
        cdef Span value
        cdef bytes key
        exchange.holder = self.allowed = None
        exchange.exact_usage = self.usage_is_set = False
        if not self.plane.keys:
            return True
        if head.authorization >= 0:
            value = head.fields[head.authorization].value
            if value.size < 8 or strncasecmp(p + value.start, b"bearer ", 7) != 0:
                return False
            key = p[value.start + 7:value.start + value.size]
        elif head.api_key >= 0:
            value = head.fields[head.api_key].value
            key = p[value.start:value.start + value.size]
        else:
            return False
        holder = self.plane.holder(key)
        if holder is None:
            return False
        exchange.holder = holder.name
        self.allowed = holder.models
        exchange.exact_usage = holder.usage == "exact"
        self.usage_is_set = holder.usage != ""
        return True

    cdef bytes _fields_to_forward(self, const char* p, const Head* head):
        """The request's end-to-end header lines, with our request id."""
        cdef Buffer out = self.plane.scratch
        cdef bint keeps_credentials = not self.plane.keys
        cdef int index, id
        for index in range(head.n_fields):
            id = head.fields[index].id
            if id == <int>FieldId.OTHER or id == <int>FieldId.CONTENT_TYPE or (
                    keeps_credentials
                    and (id == <int>FieldId.AUTHORIZATION or id == <int>FieldId.X_API_KEY)) or (
                    <int>FieldId.ORIGIN <= id < <int>FieldId.CONNECTION) or (
                    id == <int>FieldId.CONTENT_ENCODING):
                out.put_field(p, head.fields[index].name, head.fields[index].value)
        out.put(b"x-request-id: ", 14)
        out.put_bytes(self.exchange.request_id)
        out.put(b"\r\n", 2)
        return out.take()

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
            return self._run(self._cut_input(head.content_length))
        self.phase = Phase.BODY
        self.pieces = []
        self.window = 0
        self.plane.wheel.drop(self)
        self.plane.wheel.set(self, self.exchange.entered_s + self.plane.body_idle_s)
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
        cdef size_t start
        cdef int step
        self.walker.pos = at
        while True:
            step = walk(&self.walker, p, n)
            if step != <int>Step.DATA:
                if step == <int>Step.CHUNK_END:
                    continue
                break
            start = self.walker.start
            self.received += self.walker.size
            if self.received > self.plane.body_bytes:
                return self._refuse(Reason.BODY_TOO_LARGE, (self.plane.body_bytes,))
            if self.walker.size == n:
                self.pieces.append(data)
            elif self.walker.size > COPIED_BYTES:
                self.pieces.append(memoryview(data)[start:start + self.walker.size])
            else:
                self.pieces.append(part_of(data, start, start + self.walker.size))
        self._count_body(self.received - before)
        if step < 0:
            return self._refuse_fault(step)
        if step == <int>Step.MORE:
            return self._check_memory()
        if self.walker.pos < n:
            self.input = data
            self.at = self.walker.pos
        pieces, self.pieces = self.pieces, None
        return self._run(pieces[0] if len(pieces) == 1 else b"".join(pieces))

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
            self.transport.resume_reading()
        self.starved = False

    cdef int _free_body(self) except -1:
        self.plane.counts[<int>Count.BUFFERED_BYTES] -= self.counted
        self.counted = 0
        self.pieces = None
        self.starved = False
        return 0

    # -- requests

    cdef int _run(self, object body) except -1:
        """The request is here as a whole: read what it asks for and hand it over."""
        cdef Exchange exchange = self.exchange
        cdef Path path = exchange.path
        self.phase = Phase.RUNNING
        exchange.body = body
        exchange.body_size = self.received
        if path.body == BODY_JSON and (body is not None or exchange.method == b"POST"):
            if not self._read_json():
                return 0
        elif path.body == BODY_MULTIPART:
            try:
                model = model_part(
                    bytes(body or b""), (self.content_type or b"").decode("latin-1")
                )
            except ValueError as error:
                return self._refuse(Reason.BAD_JSON, (error,))
            if not self._choose_model(None if model is None else model.encode()):
                return 0
        else:
            if path.names_response and not self._pin(
                    exchange.target.split(b"?")[0].split(b"/")[3].decode("latin-1")):
                return 0
            exchange.served = self.plane.unnamed
        return exchange.start()

    cdef bint _read_json(self) except -1:
        """Model, alias, usage and what is forbidden, from a JSON body; False: refused."""
        cdef Exchange exchange = self.exchange
        cdef Envelope envelope
        cdef const char* p = start_of(exchange.body)
        cdef bytes asked = None
        cdef int fault
        fault = read_envelope(p, self.received, self.plane.json_depth, &envelope)
        if fault < 0:
            self._refuse(Reason.BAD_JSON, (JSON_FAULTS[fault],))
            return False
        if envelope.model.size and not is_literal(p, envelope.model, b"null", 4):
            asked = string_of(p, envelope.model)
            if asked is None:
                self._refuse(Reason.BAD_MODEL, ())
                return False
        if (envelope.kv_transfer_params.size and not self.plane.kv_transfer_params
                and not is_literal(p, envelope.kv_transfer_params, b"null", 4)):
            self._refuse(Reason.FORBIDDEN_FIELD, ("kv_transfer_params",))
            return False
        if envelope.previous_response_id.size and (
                not is_literal(p, envelope.previous_response_id, b"null", 4)):
            if not self._pin((string_of(p, envelope.previous_response_id) or b"").decode()):
                return False
        if not self._choose_model(asked):
            return False
        if asked is not None and asked != exchange.served.key:
            self._rewrite(envelope.model, json.dumps(exchange.served.name).encode())
            return self._read_json_again()
        if exchange.exact_usage:
            self._ask_for_usage(p, &envelope)
        return True

    cdef bint _read_json_again(self) except -1:
        """An alias was replaced; what stands behind it has moved."""
        cdef Exchange exchange = self.exchange
        cdef Envelope envelope
        cdef const char* p = <bytes>exchange.body
        if exchange.exact_usage and read_envelope(
                p, exchange.body_size, self.plane.json_depth, &envelope) == 0:
            self._ask_for_usage(p, &envelope)
        return True

    cdef int _rewrite(self, Value old, bytes new) except -1:
        """Splice a value of the body; the other bytes stay as they were sent."""
        cdef Exchange exchange = self.exchange
        body = bytes(exchange.body)
        exchange.body = body[:old.start] + new + body[old.start + old.size:]
        exchange.body_size = len(exchange.body)
        return 0

    cdef int _ask_for_usage(self, const char* p, const Envelope* envelope) except -1:
        """Usage mode `exact`: make the engine send usage in a stream that did not ask for it."""
        cdef Exchange exchange = self.exchange
        cdef Value options = envelope.stream_options
        cdef bytes asked = p[options.start:options.start + options.size]
        if not exchange.path.takes_stream_options or (
                not is_literal(p, envelope.stream, b"true", 4)):
            exchange.exact_usage = False
            return 0
        wanted = with_usage(asked)
        if wanted is None:
            exchange.exact_usage = False        # the client asks itself and shall see it
        elif asked:
            self._rewrite(options, wanted)
        else:
            options.start = envelope.brace + 1
            self._rewrite(options, b'"stream_options":' + wanted + b",")
        return 0

    cdef bint _choose_model(self, bytes asked) except -1:
        """Set the exchange's model from the name that was sent; False: refused."""
        cdef Exchange exchange = self.exchange
        cdef Plane plane = self.plane
        cdef Served served
        cdef bytes name = asked
        if name is None:
            if len(plane.models) != 1:
                if plane.models:
                    self._refuse(Reason.NO_MODEL, (plane.served_names(),))
                else:
                    self._refuse(Reason.NO_ENDPOINT, ("no engine has told its models yet",))
                return False
            name = next(iter(plane.models))
        if self.allowed is not None and name not in self.allowed:
            self._refuse(Reason.FORBIDDEN_MODEL, (name.decode("utf-8", "replace"),))
            return False
        served = plane.models.get(name)
        if served is None:
            split = plane.aliases.get(name)
            if split is not None:
                served = plane.models.get(split.next().encode())
        if served is None:
            text = name.decode("utf-8", "replace")
            if plane.complete:
                self._refuse(Reason.UNKNOWN_MODEL, (text, plane.served_names()))
            else:
                self._refuse(
                    Reason.NO_ENDPOINT, (f"no engine that is up is known to have '{text}'",)
                )
            return False
        exchange.served = served
        if not self.usage_is_set:
            exchange.exact_usage = served.exact_usage
        return True

    cdef bint _pin(self, str response) except -1:
        """Only the endpoint that made a response knows it; False: refused."""
        found = self.plane.responses.get(response)
        if found is not None:
            slot, generation = found
            pool = self.plane.pools[slot]
            if pool is not None and pool.generation == generation:
                self.exchange.pinned = slot
                return True
        self._refuse(Reason.UNKNOWN_RESPONSE, (response,))
        return False

    # -- answers of our own

    cdef int _answer_local(self, int local, bytes name, const char* p, const Head* head) except -1:
        """The small routes that are ours; the model list needs a key where there are keys."""
        if local == <int>Local.HEALTH:
            return self._respond(200, JSON, b'{"status":"ok"}', b"")
        if local == <int>Local.METRICS:
            return self._answer_metrics()
        if not self._authorize(p, head):
            return self._refuse(Reason.UNAUTHORIZED, ())
        if local == <int>Local.MODELS:
            return self._respond(200, JSON, self.plane.models_json, b"")
        cdef str model = unquote(name[11:].decode("latin-1"))
        card = self.plane.cards.get(model)
        if card is None:
            return self._refuse(Reason.UNKNOWN_MODEL, (model, self.plane.served_names()))
        return self._respond(200, JSON, card, b"")

    cdef int _answer_metrics(self) except -1:
        if not self.plane.settings.metrics_on_data_port:
            return self._refuse(Reason.UNKNOWN_PATH, ("/metrics (it is on the admin port)",))
        if not self._skip_body():
            return self._refuse(Reason.METHOD_NOT_ALLOWED, ("GET with a body",))
        self.phase = Phase.RUNNING
        self.plane.loop.create_task(self._fetch_metrics())
        return 0

    async def _fetch_metrics(self):
        """The control process renders them: here that would hold up every stream."""
        try:
            text = await self.plane.fetch_metrics()
        except OSError:
            text = None
        if self.phase != <int>Phase.RUNNING:
            return
        self.exchange.entered_s = now_s()
        if text is None:
            self._refuse(Reason.NO_ENDPOINT, ("the control process does not answer",))
        else:
            self._respond(200, b"text/plain; version=0.0.4; charset=utf-8", text, b"")

    cdef bint _answer_cors(self, const char* p, const Head* head) except -1:
        """Remember the headers for an allowed origin; answer a preflight. True: answered."""
        cdef Exchange exchange = self.exchange
        cdef bytes origin
        exchange.cors = None
        if head.origin < 0:
            return False
        origin = _text(p, head.fields[head.origin].value).encode("latin-1")
        if b"*" not in self.plane.origins and origin not in self.plane.origins:
            return False
        exchange.cors = (
            b"access-control-allow-origin: " + origin + b"\r\nvary: Origin\r\n"
            b"access-control-expose-headers: x-request-id, x-headgate-reason, retry-after\r\n"
        )
        if exchange.method != b"OPTIONS":
            return False
        self._respond(
            204, b"", b"",
            b"access-control-allow-methods: GET, POST, DELETE, OPTIONS\r\n"
            b"access-control-allow-headers: *, authorization\r\n"
            b"access-control-max-age: 600\r\n",
        )
        return True

    cdef int _respond(self, int status, bytes content_type, bytes body, bytes lines) except -1:
        """A whole answer of our own, and the request's end."""
        cdef bint unread = not self._skip_body()
        self._write_answer(status, content_type, body, lines)
        return self.exchange.over(
            Count.COMPLETED, status, Reason.NONE, self._ending(unread)
        )

    cdef int answer(self, int reason, tuple details) except -1:
        words = REASONS[Reason(reason)]
        return self._answer_error(
            words.status, Reason(reason).name.lower(), words.type,
            words.message.format(*details), words.code, words.retry_after_s,
        )

    cdef int _answer_error(self, int status, str reason, str kind, str message, object code,
                           object retry_after_s) except -1:
        cdef int dialect = 0 if self.exchange.path is None else self.exchange.path.dialect
        lines = f"x-headgate-reason: {reason}\r\n"
        if retry_after_s is not None:
            lines += f"retry-after: {retry_after_s}\r\n"
        if status == 401:
            lines += "www-authenticate: Bearer\r\n"
        self._write_answer(
            status, JSON,
            refusal_body(dialect, status, kind, message, code),
            lines.encode(),
        )
        return status

    cdef int _write_answer(self, int status, bytes content_type, bytes body, bytes lines) except -1:
        cdef Buffer out = self.plane.scratch
        cdef Exchange exchange = self.exchange
        if self.plane.draining:
            exchange.close_after = True
        out.put_bytes(status_line(status))
        out.put(b"date: ", 6)
        out.put_bytes(self.plane.date)
        out.put(b"\r\n", 2)
        if content_type:
            out.put(b"content-type: ", 14)
            out.put_bytes(content_type)
            out.put(b"\r\n", 2)
        if status != 204:
            out.put(b"content-length: ", 16)
            out.put_number(len(body))
            out.put(b"\r\n", 2)
        if exchange.request_id is not None:
            out.put(b"x-request-id: ", 14)
            out.put_bytes(exchange.request_id)
            out.put(b"\r\n", 2)
        out.put_bytes(lines)
        if exchange.cors is not None:
            out.put_bytes(exchange.cors)
        if exchange.close_after:
            out.put(b"connection: close\r\n", 19)
        elif exchange.keep_alive_1_0:
            out.put(b"connection: keep-alive\r\n", 24)
        out.put(b"\r\n", 2)
        if not exchange.is_head:
            out.put_bytes(body)
        exchange.bytes_out += out.size
        return self.send(out.take())

    cdef int _refuse(self, int reason, tuple details) except -1:
        """Answer with an error before anything was dispatched."""
        cdef bint unread = not self._skip_body()
        cdef int status = self.answer(reason, details)
        return self.exchange.over(Count.REFUSED, status, reason, self._ending(unread))

    cdef int _refuse_fault(self, int fault) except -1:
        """Bytes that are not HTTP as we read it: nothing behind them can be trusted."""
        refusal = REFUSALS[Fault(fault)]
        self.exchange.close_after = True
        self._answer_error(
            refusal.status, refusal.reason, "invalid_request_error", refusal.message, None, None
        )
        return self.exchange.over(
            Count.REFUSED, refusal.status,
            Reason.HEAD_TOO_LARGE if refusal.status == 431 else Reason.BAD_FRAMING, Ending.LINGER,
        )

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
        self.exchange.close_after = True
        return False

    cdef int _ending(self, bint unread) noexcept:
        if unread:
            return Ending.LINGER
        return Ending.CLOSE if self.exchange.close_after else Ending.KEEP

    cdef int send(self, bytes data) except -1:
        self.plane.counts[<int>Count.CLIENT_BYTES_OUT] += PyBytes_GET_SIZE(data)
        if self.write is not None:
            self.write(data)
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
        if ending == <int>Ending.LINGER and self.transport.can_write_eof():
            self.phase = Phase.LINGER
            self.input = None
            self.plane.wheel.set(self, now_s() + LINGER_S)
            self.transport.resume_reading()
            self.transport.write_eof()
            return 0
        self.phase = Phase.LINGER       # whatever comes until the close is not for us
        if ending == <int>Ending.ABORT:
            self.transport.abort()
        else:
            self.plane.wheel.set(self, now_s() + self.plane.client_stall_s)
            self.transport.close()
        return 0

    # -- deadlines and the worker's orders

    cdef void on_deadline(self, double now) noexcept:
        try:
            self.exchange.entered_s = now
            self._late(now)
        except Exception as error:
            self._broke(error)

    cdef int _late(self, double now) except -1:
        if self.phase == <int>Phase.RUNNING:
            return self.exchange.on_late(now)
        if self.phase == <int>Phase.BODY:
            return self._late_body(now)
        if self.phase == <int>Phase.HEAD and self.seen:
            self._accept()
            self.exchange.close_after = True
            return self._refuse(Reason.HEAD_TIMEOUT, ())
        self.transport.abort()
        return 0

    cdef int _late_body(self, double now) except -1:
        if self.starved:
            return self._refuse(Reason.OVERLOADED, ("its memory for request bodies is in use",))
        if self.window < self.plane.body_bytes_per_s * self.plane.body_idle_s:
            return self._refuse(Reason.BODY_TIMEOUT, ())
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
        self.exchange.entered_s = now_s()
        if self.exchange.stage:
            self.exchange.cut(Reason.DRAIN_GRACE_OVER)
        elif self.phase == <int>Phase.BODY:
            self._refuse(Reason.DRAINING, ())
        elif self.transport is not None:
            self.transport.close()


cdef bint _is(const char* p, Span value, const char* word, size_t size) noexcept nogil:
    return value.size == size and memcmp(p + value.start, word, size) == 0


cdef str _text(const char* p, Span value):
    return p[value.start:value.start + value.size].decode("latin-1")

