"""The relay of response bodies as Python values, for tests.

Nothing that serves requests imports this.
"""

from collections import namedtuple

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from gateway.http._head cimport Head, head_end, parse_response
from gateway.proxy._relay cimport Relay

Relayed = namedtuple(
    "Relayed",
    "out ended finished fault rest n_events tokens_out takes_events endings shape",
)


def relay(bytes head, list pieces, int kind=0, int end_mark=0, bint http_1_0=False,
          bint to_head=False, object rewriter=None, bint eof=False, bytes ending_frames=b""):
    """Relay the pieces of a body that `head` frames. ValueError: not a response's head."""
    cdef Head parsed
    cdef const char* p = PyBytes_AS_STRING(head)
    cdef Py_ssize_t size = head_end(p, PyBytes_GET_SIZE(head), 0)
    cdef Relay relay = Relay()
    cdef bytes piece
    cdef int fault = 0
    cdef size_t rest = 0
    if size != PyBytes_GET_SIZE(head) or parse_response(p, size, &parsed) < 0:
        raise ValueError("not a response's head")
    relay.start(&parsed, to_head, kind, end_mark, http_1_0, rewriter)
    out, takes, endings = [], [], []
    for piece in pieces:
        if relay.ended:
            break
        fault = relay.feed(piece, 0)
        if fault < 0:
            break
        out.append(relay.out or b"")
        takes.append(bool(relay.takes_events()))
        endings.append(relay.ending(ending_frames))
        if relay.ended:
            rest = PyBytes_GET_SIZE(piece) - relay.rest
    finished = False
    if eof and fault >= 0:
        finished = bool(relay.finish())
        out.append(relay.out or b"")
    return Relayed(
        out, bool(relay.ended), finished, fault, rest, relay.scanner.n_events,
        relay.scanner.usage.tokens_out, takes, endings, relay.shape,
    )
