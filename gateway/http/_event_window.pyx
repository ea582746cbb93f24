"""The scanner of response bodies as Python values, for tests.

Nothing that serves requests imports this.
"""

from collections import namedtuple

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from gateway.http._events cimport Scanner

Seen = namedtuple("Seen", "n_events in_event over failed tokens_in tokens_out cached")


cdef object seen(Scanner scanner):
    return Seen(
        scanner.n_events, bool(scanner.in_event), bool(scanner.over), bool(scanner.failed),
        scanner.usage.tokens_in, scanner.usage.tokens_out, scanner.usage.cached,
    )


def events(list pieces, int end_mark=0):
    """Feed the pieces of an event stream."""
    cdef Scanner scanner = Scanner()
    cdef bytes piece
    scanner.reset(end_mark)
    for piece in pieces:
        scanner.feed(PyBytes_AS_STRING(piece), PyBytes_GET_SIZE(piece))
    return seen(scanner)


def json_body(list pieces):
    """Feed the pieces of a JSON body, and end it."""
    cdef Scanner scanner = Scanner()
    cdef bytes piece
    for piece in pieces:
        scanner.feed_json(PyBytes_AS_STRING(piece), PyBytes_GET_SIZE(piece))
    scanner.finish_json()
    return seen(scanner)
