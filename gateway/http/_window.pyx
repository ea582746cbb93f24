"""The sans-IO layer as Python values, for tests, benchmarks and debugging.

Nothing that serves requests imports this: it builds the objects the parsers exist to avoid.
"""

from collections import namedtuple

from gateway.http._body import Framing as FramingType
from gateway.http._head import Fault as FaultType, FieldId as FieldIdType

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from gateway.http cimport _body, _head
from gateway.http._body cimport Walker
from gateway.http._head cimport Head as CHead, Span

Head = namedtuple(
    "Head",
    "method target path status minor fields content_length chunked close expect_continue upgrade "
    "indices size",
)
Body = namedtuple(
    "Body", "payload chunk_ends ended leftover fault framing terminated last_chunk"
)


cdef bytes cut(bytes data, Span span):
    return data[span.start:span.start + span.size]


cdef object head_value(bytes data, const CHead* head):
    return Head(
        method=cut(data, head.method),
        target=cut(data, head.target),
        path=cut(data, head.path),
        status=head.status,
        minor=head.minor,
        fields=[
            (
                cut(data, head.fields[i].name),
                cut(data, head.fields[i].value),
                FieldIdType(head.fields[i].id),
            )
            for i in range(head.n_fields)
        ],
        content_length=None if head.content_length < 0 else head.content_length,
        chunked=bool(head.chunked),
        close=bool(head.close),
        expect_continue=bool(head.expect_continue),
        upgrade=bool(head.upgrade),
        indices={
            name: index
            for name, index in (
                ("host", head.host),
                ("authorization", head.authorization),
                ("api_key", head.api_key),
                ("request_id", head.request_id),
                ("content_type", head.content_type),
                ("content_encoding", head.content_encoding),
                ("origin", head.origin),
                ("priority", head.priority),
            )
            if index >= 0
        },
        size=head.size,
    )


cdef Py_ssize_t measure_and_parse(bytes data, bint is_request, CHead* head):
    # head_end's 0 or Fault; after a parse, its size or Fault.
    cdef const char* p = PyBytes_AS_STRING(data)
    cdef Py_ssize_t size = _head.head_end(p, PyBytes_GET_SIZE(data), 0)
    cdef int fault
    if size <= 0:
        return size
    fault = parse(p, size, is_request, head)
    return fault if fault else size


cdef inline int parse(const char* p, size_t n, bint is_request, CHead* head) noexcept nogil:
    return _head.parse_request(p, n, head) if is_request else _head.parse_response(p, n, head)


cdef object measured(bytes data, bint is_request):
    cdef CHead head
    cdef Py_ssize_t size = measure_and_parse(data, is_request, &head)
    if size <= 0:
        return FaultType(size) if size < 0 else None
    return head_value(data, &head)


cdef object unmeasured(bytes data, bint is_request):
    cdef CHead head
    cdef int fault = parse(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), is_request, &head)
    return FaultType(fault) if fault else head_value(data, &head)


def head_end(bytes data not None, size_t seen=0):
    cdef Py_ssize_t size = _head.head_end(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), seen)
    return FaultType(size) if size < 0 else size


def request(bytes data not None):
    return measured(data, True)


def response(bytes data not None):
    return measured(data, False)


def parse_request_unmeasured(bytes data not None):
    return unmeasured(data, True)


def parse_response_unmeasured(bytes data not None):
    return unmeasured(data, False)


cdef void begin(Walker* walker, bytes head, bint is_request, bint to_head) except *:
    cdef CHead parsed
    if measure_and_parse(head, is_request, &parsed) <= 0:
        raise ValueError("this head frames no body: it is refused or incomplete")
    if is_request:
        _body.walk_request(walker, &parsed)
    else:
        _body.walk_response(walker, &parsed, to_head)


def body(list data_pieces not None, bytes head not None, bint is_request, bint to_head=False):
    cdef Walker walker
    cdef int step = _body.Step.MORE
    cdef Py_ssize_t before = 0
    cdef bytes piece
    begin(&walker, head, is_request, to_head)
    payload, chunk_ends, leftover, last_chunk = [], [], b"", None
    for i, piece in enumerate(data_pieces or [b""]):
        walker.pos = 0
        was_terminated = walker.terminated
        while True:
            step = _body.walk(&walker, PyBytes_AS_STRING(piece), PyBytes_GET_SIZE(piece))
            if step == _body.Step.DATA:
                payload.append(piece[walker.start:walker.start + walker.size])
            elif step == _body.Step.CHUNK_END:
                chunk_ends.append(before + <Py_ssize_t>walker.pos)
            else:
                break
        if walker.terminated and not was_terminated:
            last_chunk = before + <Py_ssize_t>walker.last_chunk
        if step != _body.Step.MORE:
            leftover = piece[walker.pos:] + b"".join(data_pieces[i + 1:])
            break
        before += PyBytes_GET_SIZE(piece)
    return Body(
        payload=b"".join(payload),
        chunk_ends=chunk_ends,
        ended=step == _body.Step.END,
        leftover=leftover,
        fault=FaultType(step) if step < 0 else None,
        framing=FramingType(walker.framing),
        terminated=bool(walker.terminated),
        last_chunk=last_chunk,
    )
