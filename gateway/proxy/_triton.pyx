"""See _triton.pxd."""

import logging
import re
import time
from collections import deque
from http import HTTPStatus
from urllib.parse import quote

from engines.dialect import Dialect, refusal_body, stream_error
from engines.triton.request import RefusedError, read_request
from engines.triton.status import http_status
from gateway.proxy.patience import patience

from cpython.bytes cimport PyBytes_GET_SIZE

from engines.triton._wire cimport Response, read_response
from gateway._shared cimport Count, EndpointWord
from gateway.http._write cimport Buffer
from gateway.proxy._grpc cimport OK, Call, Connection, header_block
from gateway.proxy._path cimport Path
from gateway.proxy._plane cimport Plane, now_s
from gateway.proxy._pool cimport Pool
from gateway.proxy._request cimport Request
from gateway.proxy._triton_reply cimport Choice, Reply
from gateway.proxy._upstream cimport Sink, Upstream
from router._booking cimport Booking
from router._booking cimport Stage as BookingStage

cdef double COMPLAINT_S = 60.0
cdef bytes METHOD = b"/inference.GRPCInferenceService/ModelStreamInfer"
PORT = re.compile(r"(?<=[^:]):\d+$|(?<=\]):\d+$")
cdef bytes STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
cdef bytes LAST_CHUNK = b"0\r\n\r\n"
log = logging.getLogger("headgate.triton")

# Of printable ASCII all that `quote` would write otherwise.
SAFE = "".join(map(chr, range(0x20, 0x7f)))


cdef class TritonPool(Pool):
    """HTTP connections for Triton's own paths, gRPC ones for all that is generated."""

    def __init__(self, Plane plane, endpoint):
        Pool.__init__(self, plane, endpoint)
        self.connections = []
        self.callers = deque()
        self.leftovers = []
        self.grpc_port = endpoint.grpc_port
        host = PORT.sub("", endpoint.host)
        fields = [
            (b":method", b"POST"), (b":scheme", b"https" if endpoint.tls else b"http"),
            (b":path", METHOD), (b":authority", f"{host}:{self.grpc_port}".encode()),
            (b"te", b"trailers"), (b"content-type", b"application/grpc"),
            (b"user-agent", b"headgate"),
        ]
        if endpoint.api_key:
            fields.append((b"authorization", f"Bearer {endpoint.api_key}".encode()))
        self.head = header_block(fields)
        if endpoint.tls:
            self.grpc_tls = plane.tls_context(endpoint.ca_file, True)

    cdef Upstream take(self, Sink sink, Path path, bint fresh):
        cdef Connection connection
        if path is None or path.dialect == <int>Dialect.TRITON:
            return Pool.take(self, sink, path, fresh)
        connection = self._connection()
        if connection is not None:
            return TritonUpstream(self.plane, self, connection)
        self.callers.append(sink)
        self.plane.counts[<int>Count.WAITING_FOR_DIAL] += 1
        self._dial_more()
        return None

    cdef int ask(self, Upstream upstream, Sink sink, Request request) except -1:
        cdef TritonUpstream generating
        if not isinstance(upstream, TritonUpstream):
            return Pool.ask(self, upstream, sink, request)
        generating = upstream
        generating.sink = sink
        generating.request = request
        # Later: an answer must not come before whoever asks is ready for it.
        self.plane.loop.call_soon(generating._start)
        return 0

    def _read(self, Request request):
        """The Generation that it asks for. RefusedError: the model there cannot do it."""
        name = request.served.name
        model = self.endpoint.triton.get(name)
        if model is None:
            raise RefusedError(f"the model '{name}' generates no text", "model", 404)
        generation = read_request(request.path.name, bytes(request.body or b""), model)
        if generation.is_chat and not self.plane.has_tokenizer(name):
            raise RefusedError(
                f"the model '{name}' has no chat template: set `tokenizer` under `models: {name}:` "
                "to a folder with its tokenizer, or ask /v1/completions", "messages")
        return generation

    cdef dict refusal(self, Request request):
        if request.path.dialect == <int>Dialect.TRITON:
            return None
        try:
            self._read(request)
        except RefusedError as error:
            return {"status": error.status, "reason": "not_in_triton", "message": str(error)}
        return None

    cdef Connection _connection(self):
        cdef Connection connection
        for connection in self.connections:
            if connection.has_room(1):
                return connection
        return None

    cdef int give(self, Upstream upstream) except -1:
        if isinstance(upstream, TritonUpstream):
            return upstream.abort()
        return Pool.give(self, upstream)

    cdef int leave(self, Sink sink) except -1:
        if sink in self.callers:
            self.callers.remove(sink)
            self.plane.counts[<int>Count.WAITING_FOR_DIAL] -= 1
            return 0
        return Pool.leave(self, sink)

    async def _dial_grpc(self):
        """Open one connection; it carries all that wait for it."""
        cdef Connection connection
        cdef Sink sink
        self.words[<int>EndpointWord.E_DIALS] += 1
        connection = Connection(self.plane, self)
        try:
            async with patience(self.plane.connect_s):
                await self.plane.loop.create_connection(
                    lambda: connection, self.endpoint.address, self.grpc_port, ssl=self.grpc_tls,
                    server_hostname=(
                        self.endpoint.server_name or None if self.grpc_tls else None),
                )
                await connection.settled
        except Exception as error:      # whatever it is: who waits must hear of it
            self.dialing = False
            connection.close()
            self._fail_callers(f"its gRPC port: {_why(error)}")
            return
        self.dialing = False
        if not connection.has_room(1):
            connection.close()
            self._fail_callers("its gRPC server takes no calls")
            return
        self.load.dials_in_row = 0
        self.connections.append(connection)
        while self.callers and connection.has_room(1):
            sink = self.callers.popleft()
            self._connected(sink, TritonUpstream(self.plane, self, connection))
        if self.callers:
            self._dial_more()
        if self.closed:
            self._retire(connection)

    def _dial_more(self):
        if not self.dialing:
            self.dialing = True
            task = self.plane.loop.create_task(self._dial_grpc())
            self.dials.add(task)
            task.add_done_callback(self.dials.discard)

    cdef int _fail_callers(self, str why) except -1:
        cdef Sink sink
        self.words[<int>EndpointWord.E_DIALS_FAILED] += 1
        self.load.dials_in_row += 1
        if now_s() >= self.next_complaint_s:
            # Its probes go to another port, and know nothing of this.
            self.next_complaint_s = now_s() + COMPLAINT_S
            log.warning("%s: no text comes from port %d: %s; is that its gRPC port? (`grpc_port`)",
                        self.endpoint.name, self.grpc_port, why)
        callers, self.callers = self.callers, deque()
        for sink in callers:
            self.plane.counts[<int>Count.WAITING_FOR_DIAL] -= 1
            try:
                sink.on_dial_failed(why)
            except Exception as error:
                sink.on_error(error)
        return 0

    def forget_connection(self, Connection connection):
        """It takes no more calls; those that it has go on."""
        if connection in self.connections:
            self.connections.remove(connection)

    def drop_idle(self):
        """The endpoint was declared dead: what is open there is not worth a try."""
        cdef Connection connection
        cdef TritonUpstream upstream
        Pool.drop_idle(self)
        for upstream in list(self.leftovers):
            upstream._release()
        for connection in list(self.connections):
            self._retire(connection)

    def _retire(self, Connection connection):
        """It takes no more calls, and ends with those that it has."""
        if connection.calls:
            connection._leave()
        else:
            connection.close()


def _why(error):
    """A dial's failure in a few words."""
    if isinstance(error, TimeoutError):
        return "no gRPC connection in time"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


cdef class TritonCall(Call):
    """What a model is asked for one choice."""

    def __init__(self, TritonUpstream upstream, Choice choice):
        self.upstream = upstream
        self.choice = choice

    cdef int on_message(self, const char* p, size_t n) except -1:
        cdef Response response
        cdef TritonUpstream upstream = self.upstream
        cdef Pool pool = upstream.pool
        if self.is_left:
            pool.load.last_event_s = now_s()   # its engine does not hang
            return 0
        if self.is_final:
            return 0
        if not read_response(p, n, &response):
            return upstream._fail(500, "Triton sent what is no ModelStreamInferResponse")
        if response.error.size:
            text = response.error.start[:response.error.size].decode("utf-8", "replace")
            return upstream._fail(http_status(None, text), text)
        if not upstream.has_head:
            upstream._begin_stream()
        try:
            upstream.reply.take(self.choice, &response, upstream.out)
        except ValueError as error:
            return upstream._fail(500, f"Triton's answer cannot be read: {error}")
        self.is_final = response.is_final
        if self.choice.is_over or response.is_final:
            return upstream._close_call(self)
        return 0

    cdef int on_read(self) except -1:
        return 0 if self.is_left else self.upstream._flush()

    cdef int on_status(self, int status, str details) except -1:
        if self.is_left:
            return self.upstream._end_left(self)
        if self.is_final:
            return self.upstream._begin_calls()
        if status != OK:
            return self.upstream._fail(http_status(status, details), details)
        # All messages came, and none said that it was the last: older servers do not.
        return self.upstream._close_call(self)

    cdef int on_dropped(self, bint untouched) except -1:
        if self.is_left:
            return self.upstream._end_left(self)
        return 0 if self.is_final else self.upstream._drop(untouched)

    cdef int on_error(self, object error) except -1:
        cdef Sink sink = self.upstream.sink
        if sink is not None:
            sink.on_error(error)
        return 0


cdef class TritonUpstream(Upstream):
    """One request's share of a gRPC connection. Made for it, and never used again."""

    def __init__(self, Plane plane, TritonPool pool, Connection connection):
        Upstream.__init__(self, plane, pool)
        self.connection = connection
        connection.reserved += 1
        self.is_reserved = True
        self.head = pool.head
        self.calls = []
        self.unasked = []
        self.left = []
        self.out = Buffer()
        self.out.open_chunk()

    def _start(self):
        cdef Sink sink = self.sink
        if sink is None:
            return
        try:
            self._begin()
        except Exception as error:
            sink.on_error(error)

    cdef int _begin(self) except -1:
        cdef TritonPool pool = self.pool
        self.tokenizer = self.request.served.name
        try:
            self.generation = pool._read(self.request)
        except RefusedError as error:
            return self._refuse(error.status, str(error), error.field)
        if not self.generation.is_chat:
            return self._ask_model(list(self.generation.prompts), None)
        body = bytes(self.request.body or b"")
        self.job = self.plane.tokenizing.render(self.tokenizer, body, self._on_prompt)
        return 0

    def _on_prompt(self, prompt):
        """A chat's prompt as its model reads it; None: its tokenizer could not be loaded."""
        cdef Sink sink = self.sink
        self.job = None
        if sink is None:
            return
        try:
            if prompt is None:
                # No fault of the engine's, nor mended by another one.
                self._refuse(
                    400, f"chats with '{self.tokenizer}' cannot be read: its tokenizer could not "
                    "be loaded, see the gateway's log", None)
            elif prompt.refused:
                self._refuse(400, prompt.refused, "messages")
            else:
                self._ask_model([prompt.text], prompt.n_tokens)
        except Exception as error:
            sink.on_error(error)

    cdef int _ask_model(self, list prompts, object n_tokens) except -1:
        cdef Choice choice
        # What an HTTP header may hold and metadata may not is written in ASCII.
        cdef bytes id = quote(self.request.request_id, safe=SAFE).encode()
        self.counts = not self.generation.asks_counts and (
            self.plane.has_tokenizer(self.tokenizer)) and (
            self.generation.include_usage or not self.generation.stream)
        self.head += header_block([(b"x-request-id", id)])
        self.reply = Reply(
            self.generation, prompts, id, self.request.served.name, <long long>time.time(),
            -1 if n_tokens is None else n_tokens, self.counts,
        )
        try:
            messages = [
                self.generation.message(choice.prompt, choice.index, id)
                for choice in self.reply.choices
            ]
        except RefusedError as error:
            return self._refuse(error.status, str(error), error.field)
        self._unreserve()
        if not self.connection.has_room(1):
            return self._drop(True)
        self.unasked = list(zip(self.reply.choices, messages))
        return self._begin_calls()

    cdef int _begin_calls(self) except -1:
        cdef TritonPool pool = self.pool
        cdef TritonCall call
        cdef bytes message
        if self.unasked and self.connection.leaving:
            connection = pool._connection()
            if connection is None:
                return self._drop(False)
            self.connection = connection
        while self.unasked and self.connection.has_room(1):
            choice, message = self.unasked.pop(0)
            call = TritonCall(self, choice)
            call.is_held = self.is_held
            self.calls.append(call)
            pool.words[<int>EndpointWord.E_BYTES_OUT] += PyBytes_GET_SIZE(message)
            self.connection.begin(call, self.head, message)
        return 0

    cdef int _begin_stream(self) except -1:
        self.has_head = True
        if self.generation.stream:
            self._take_head(STREAM_HEAD)
        return 0

    cdef int _flush(self) except -1:
        cdef Sink sink = self.sink
        cdef bytes chunk = self.out.take_chunk()
        cdef int n = self.reply.n_events
        self.reply.n_events = 0
        self.out.open_chunk()
        if chunk is not None and sink is not None:
            sink.on_events(self, chunk, n)
        return 0

    cdef int _flush_last(self, bytes events) except -1:
        cdef Sink sink = self.sink
        self.out.put_bytes(events)
        if sink is not None:
            sink.on_body(self, self.out.take_chunk() + LAST_CHUNK)
        return self._part(True)

    cdef int _close_call(self, TritonCall call) except -1:
        """Its choice has all it needs."""
        if call in self.calls:
            self.calls.remove(call)
        # The status is on its way behind the last response. A stream that is reset there, or whose
        # connection is closed, leaves Triton with a request, and its model is never unloaded.
        if not call.is_final:
            self._leave(call)
        self.reply.finish(call.choice, self.out)
        return self._finish() if self.reply.n_open == 0 else self._begin_calls()

    cdef int _finish(self) except -1:
        if self.counts:
            self._flush()
            return self._count()
        return self._end()

    cdef int _count(self) except -1:
        prompts = () if self.generation.is_chat else self.generation.prompts
        self.job = self.plane.tokenizing.count(
            self.tokenizer, prompts, self.reply.texts(), self._on_count)
        return 0

    def _on_count(self, n_tokens):
        cdef Sink sink = self.sink
        self.job = None
        if sink is None:
            return
        try:
            if n_tokens is not None:
                n_prompt, self.reply.n_counted = n_tokens
                if not self.generation.is_chat:
                    self.reply.prompt_tokens = n_prompt
            self._end()
        except Exception as error:
            sink.on_error(error)

    cdef int _end(self) except -1:
        cdef Sink sink = self.sink
        cdef bytes body = self.reply.ending()
        if sink is None:
            return 0
        if not self.generation.stream:
            return self._answer(200, body)
        if not self.has_head:
            self._begin_stream()
        return self._flush_last(body)

    cdef int _answer(self, int status, bytes body) except -1:
        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:
            phrase = ""
        head = (
            f"HTTP/1.1 {status} {phrase}\r\nContent-Type: application/json\r\n"
            f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.has_head = True
        return self._take_head(head.encode() + body)

    cdef int _part(self, bint clean) except -1:
        cdef Sink sink = self.sink
        self._unreserve()
        self._cancel_calls()
        self.sink = None
        self.closed = True
        return 0 if sink is None else sink.on_lost(clean)

    cdef int _refuse(self, int status, str text, str field) except -1:
        kind = "invalid_request_error" if status < 500 else "server_error"
        body = refusal_body(self.request.path.dialect, status, kind, text, field=field)
        return self._answer(status, body)

    cdef int _fail(self, int status, str text) except -1:
        """The model, or Triton, ended it with an error."""
        self._cancel_calls()
        if self.sink is None:
            return 0
        if not self.has_head or not self.generation.stream:
            return self._refuse(status, text, None)
        return self._flush_last(stream_error(
            self.request.path.dialect, status,
            "invalid_request_error" if status < 500 else "server_error", text))

    cdef int _drop(self, bint untouched) except -1:
        self.untouched = untouched
        return self._part(False)

    cdef int _unreserve(self) except -1:
        if self.is_reserved:
            self.is_reserved = False
            self.connection.reserved -= 1
        return 0

    cdef int _cancel_calls(self) except -1:
        cdef TritonCall call
        calls, self.calls = self.calls, []
        self.unasked = []
        for call in calls:
            self._leave(call)
        return 0

    cdef int _leave(self, TritonCall call) except -1:
        if self.generation.model.cancels or call.connection is None:
            return call.cancel()
        # A reset would not stop an ensemble; heard to its end, it tells when its engine is free.
        call.is_left = True
        call.hold(False)
        self.left.append(call)
        return 0

    cdef int _end_left(self, TritonCall call) except -1:
        self.left.remove(call)
        self._begin_calls()
        return 0 if self.left else self._release()

    cdef bint books_on(self, const Booking* booking) except -1:
        cdef TritonPool pool = self.pool
        if not self.left:
            return False
        self.booking = booking[0]
        pool.leftovers.append(self)
        return True

    cdef int _release(self) except -1:
        cdef TritonPool pool = self.pool
        if self.booking.stage != <int>BookingStage.NONE:
            pool.leftovers.remove(self)
            self.plane.router.booker.release(&self.booking, now_s())
            self.plane.wake_soon(self.booking.slot)
        return 0

    cdef int abort(self) except -1:
        self.sink = None
        self.closed = True
        if self.job is not None:
            self.job.cancel()
            self.job = None
        self._unreserve()
        return self._cancel_calls()

    cdef void let_go(self) noexcept:
        self.sink = None

    cdef int hold(self, bint is_held) except -1:
        cdef TritonCall call
        self.is_held = is_held
        for call in self.calls:
            call.hold(is_held)
        return 0

    cdef bint is_flushed(self) except -1:
        return True

    cdef bint is_quiet(self) noexcept nogil:
        return False
