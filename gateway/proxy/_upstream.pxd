"""One connection to an engine: HTTP/1.1 client side, one exchange at a time, no pipelining."""

from gateway.http._head cimport Head
from gateway.proxy._plane cimport Plane
from router._booking cimport Booking

cdef class Sink:
    """Who an upstream works for. Called from loop callbacks; a raised error ends the exchange.

    An upstream that has called on_malformed or on_lost, or was let go by its sink, calls no more.
    """
    # A connection to use, at once, for what `Pool.take` was asked.
    cdef int on_connection(self, Upstream upstream) except -1
    cdef int on_dial_failed(self, str why) except -1
    # A final response head; its body begins at data[head.size]. `head` is valid in this call only.
    cdef int on_head(self, Upstream upstream, bytes data, const Head* head) except -1
    cdef int on_body(self, Upstream upstream, bytes data) except -1
    # As on_body, of one whole chunk with `n` whole events that were made here, and are no errors.
    cdef int on_events(self, Upstream upstream, bytes chunk, int n) except -1
    cdef int on_malformed(self, int fault) except -1
    # The connection is gone; `clean`: by a FIN.
    cdef int on_lost(self, bint clean) except -1
    # The sink itself broke: end the exchange, whatever its state.
    cdef int on_error(self, object error) except -1

cdef class Upstream:
    cdef readonly object transport
    cdef object write               # transport.write, bound once
    cdef object pool                # Pool: told when an idle connection goes
    cdef Plane plane
    cdef Sink sink                  # None: idle
    cdef bytes partial              # of a response head
    cdef size_t seen
    cdef bint in_body
    cdef bint closed
    cdef bint reused                # has carried an exchange before this one
    cdef bint untouched             # its engine said that it never began with this one
    cdef double idle_since_s
    cdef int fd

    # The engine shall wait, as its sink cannot take more, or no longer.
    cdef int hold(self, bint is_held) except -1
    # Begin an exchange: `message` and, if not None, `body` behind it.
    cdef int send(self, Sink sink, bytes message, object body) except -1
    # The exchange has its response, or wants no more of it.
    cdef void let_go(self) noexcept
    # Close at once; the sink hears nothing of it.
    cdef int abort(self) except -1
    # The exchange has left it. True: its engine works on all the same, and what was booked for it
    # is released when that ends.
    cdef bint books_on(self, const Booking* booking) except -1
    cdef bint is_flushed(self) except -1
    # Idle, and nothing came or ended since: one system call. What lies unread before a request
    # is sent would be taken for its answer.
    cdef bint is_quiet(self) noexcept nogil
    # private
    cdef int _take_head(self, bytes data) except -1
