"""See _answer.pxd."""

from http import HTTPStatus

from engines.dialect import Dialect, refusal_body
from gateway.http.faults import REFUSALS
from gateway.reasons import FROM_QUEUE, REASONS, Reason

from gateway.http._body cimport Framing
from gateway.http._head cimport FieldId, Head, Span
from gateway.http._write cimport Buffer
from gateway.proxy._plane cimport Plane, now_s
from gateway.proxy._relay cimport Relay, Shape
from gateway.proxy._request cimport Request

cdef extern from "strings.h" nogil:
    int strncasecmp(const char* a, const char* b, size_t n)

cdef dict STATUS_LINES = {}


cdef bytes status_line(int status):
    cdef bytes line = STATUS_LINES.get(status)
    if line is None:
        try:
            phrase = HTTPStatus(status).phrase
        except ValueError:
            phrase = ""
        line = f"HTTP/1.1 {status} {phrase}\r\n".encode()
        STATUS_LINES[status] = line
    return line


cdef inline bint is_cors(const char* p, Span name) noexcept nogil:
    # Where CORS is ours the engine's own must not stand beside it: browsers refuse two.
    return name.size > 15 and strncasecmp(p + name.start, b"access-control-", 15) == 0


cdef bytes relayed_head(Plane plane, Request request, Relay relay, const char* p,
                        const Head* head, bytes decision):
    cdef Buffer out = plane.scratch
    cdef int index, id
    out.clear()
    out.put_bytes(status_line(head.status))
    for index in range(head.n_fields):
        id = head.fields[index].id
        if id < <int>FieldId.CONNECTION and id != <int>FieldId.CONTENT_LENGTH and (
                id != <int>FieldId.TRANSFER_ENCODING and id != <int>FieldId.X_REQUEST_ID) and (
                request.cors is None or not is_cors(p, head.fields[index].name)):
            out.put_field(p, head.fields[index].name, head.fields[index].value)
    if relay.shape == <int>Shape.CHUNKS or (
            relay.shape == <int>Shape.AS_SENT
            and relay.walker.framing == <int>Framing.CHUNKED):
        out.put(b"transfer-encoding: chunked\r\n", 28)
    elif head.content_length >= 0 and relay.shape == <int>Shape.AS_SENT and head.status != 204:
        out.put(b"content-length: ", 16)
        out.put_number(head.content_length)
        out.put(b"\r\n", 2)
    out.put(b"x-request-id: ", 14)
    out.put_bytes(request.request_id)
    out.put(b"\r\n", 2)
    if decision is not None:
        out.put_bytes(decision)
    if request.cors is not None:
        out.put_bytes(request.cors)
    if relay.shape == <int>Shape.BARE or plane.draining:
        request.close_after = True
    if request.close_after:
        out.put(b"connection: close\r\n", 19)
    elif request.keep_alive_1_0:
        out.put(b"connection: keep-alive\r\n", 24)
    out.put(b"\r\n", 2)
    return out.take()


cdef bytes own_answer(Plane plane, Request request, int status, bytes content_type, bytes body,
                      bytes lines):
    cdef Buffer out = plane.scratch
    if plane.draining:
        request.close_after = True
    out.clear()
    out.put_bytes(status_line(status))
    out.put(b"date: ", 6)
    out.put_bytes(plane.date)
    out.put(b"\r\n", 2)
    if status != 204:
        out.put(b"content-type: ", 14)
        out.put_bytes(content_type)
        out.put(b"\r\ncontent-length: ", 18)
        out.put_number(len(body))
        out.put(b"\r\n", 2)
    if request.request_id is not None:
        out.put(b"x-request-id: ", 14)
        out.put_bytes(request.request_id)
        out.put(b"\r\n", 2)
    out.put_bytes(lines)
    if request.cors is not None:
        out.put_bytes(request.cors)
    if request.close_after:
        out.put(b"connection: close\r\n", 19)
    elif request.keep_alive_1_0:
        out.put(b"connection: keep-alive\r\n", 24)
    out.put(b"\r\n", 2)
    if not request.is_head:
        out.put_bytes(body)
    return out.take()


cdef bytes refusal(Plane plane, Request request, int reason, tuple details):
    words = REASONS[Reason(reason)]
    lines = f"x-headgate-reason: {Reason(reason).name.lower()}\r\n"
    if words.retry_after_s is not None:
        retry_after_s = words.retry_after_s
        if retry_after_s == FROM_QUEUE:
            retry_after_s = plane.waiting.turn_in_s(now_s())
        lines += f"retry-after: {retry_after_s}\r\n"
    if words.status == 401:
        lines += "www-authenticate: Bearer\r\n"
    if words.status == 405 and request.path is not None:
        lines += "allow: " + ", ".join(sorted([m.decode() for m in request.path.methods])) + "\r\n"
    return error_answer(
        plane, request, words.status, words.type, words.message.format(*details), words.code, lines
    )


cdef bytes fault_answer(Plane plane, Request request, int fault, int reason):
    words = REFUSALS[fault]
    return error_answer(
        plane, request, words.status, "invalid_request_error", words.message, words.code,
        f"x-headgate-reason: {Reason(reason).name.lower()}\r\n",
    )


cdef bytes error_answer(Plane plane, Request request, int status, str kind, str message,
                        str code, str lines):
    cdef int dialect = 0
    if request.path is not None:
        dialect = request.path.dialect
    elif request.target is not None and request.target.startswith(b"/v2/"):
        dialect = Dialect.TRITON
    return own_answer(
        plane, request, status, b"application/json",
        refusal_body(dialect, status, kind, message, code), lines.encode(),
    )
