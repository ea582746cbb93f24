"""The times and counts of one request, and how they are added up in the worker's column."""

from libc.stdint cimport int64_t

from gateway.http._events cimport Scanner
from gateway.proxy._plane cimport Plane
from gateway.proxy._pool cimport Pool
from gateway.proxy._request cimport Request

cdef class Account:
    cdef Plane plane
    cdef bint is_open               # begun and not ended
    cdef double start_s             # when its head was complete
    cdef double entered_s           # when the callback under way began
    cdef double own_s               # spent in our callbacks so far
    cdef double dispatch_s          # when it was sent to its endpoint
    cdef double first_s             # of its first event; 0: none yet
    cdef double last_s              # of its last event, or byte where there are no events
    cdef double held_s              # waited for an engine with room
    cdef int64_t bytes_out          # to the client
    cdef int64_t tokens_in          # as the engine said; -1: it did not
    cdef int64_t tokens_out

    # A callback begins.
    cdef void enter(self) noexcept
    # A callback ends while the request goes on: what was spent in it is our own time.
    cdef void leave(self) noexcept
    # The request is in the account and will leave it, by `end`, exactly once.
    cdef void begin(self) noexcept
    # n > 0 data events have come. True: the stream's first ones.
    cdef bint count_events(self, int n, Request request, Pool pool) noexcept
    cdef void count_tokens(self, Request request, Scanner scanner) noexcept
    # `outcome`: one of Count's ends of a request; `pool`: where it was last, or None.
    cdef int end(self, int outcome, int status, int reason, Request request, Pool pool,
                 int n_dispatches, int64_t n_events) except -1
