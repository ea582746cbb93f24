"""One request of a transport that brings its own connections: read, routed, booked, accounted for.

    begin -> read -> place -> (events)* -> release -> end
                       ^                      |
                       +------- again <-------+      nothing has gone to the client

It does for coroutines what an Exchange does for callbacks: the same readers, policy, queue and
counts, but no bytes. Between `begin` and `end` it is one of the plane's sessions. Who condemns an
endpoint, or ends what runs, leaves word of it (`doom`, `is_cut`) and ends its `patience`: whatever
waits on its behalf does so under one, and looks for such words before and after.
"""

from libc.stdint cimport int64_t

from gateway.proxy._account cimport Account
from gateway.proxy._attempts cimport Attempts
from gateway.proxy._plane cimport Plane
from gateway.proxy._pool cimport Pool
from gateway.proxy._request cimport Request
from gateway.proxy._waiting cimport Waiter
from router._booking cimport Booking

cdef class Errand(Waiter):
    cdef Plane plane
    cdef readonly Request request
    cdef Attempts attempts
    cdef Account account
    cdef Pool pool                  # where it is, or was last
    cdef Booking booking
    cdef object turn                # a future: it waits for room
    cdef int verdict                # of the router, the last time: NOBODY or BUSY
    cdef double held_since_s
    cdef int64_t buffered           # in Count.BUFFERED_BYTES for it
    cdef int64_t n_events
    cdef int failure                # why its last dispatch failed: a Reason; NONE: it had none
    cdef str failure_detail
    cdef bint has_status            # the engine's answer to its dispatch is counted
    cdef public object patience     # the asyncio.Timeout of what it waits for; None: for nothing
    cdef readonly str doom          # its endpoint was declared dead or hung: why
    cdef readonly bint is_cut       # the gateway ends it
    # private
    cdef int _check(self, int reason) except -1
    cdef int _route(self, double now_s) except? -9
    cdef int _book(self, int slot, double now_s) except -1
    cdef bint _admit(self, double now_s) except -1
    cdef object _hold(self, int verdict, double now_s)
    cdef int _leave_queue(self, bint went, double now_s) except -1
    cdef object _no_room(self, bint has_waited)
    cdef object _refused(self, int reason, tuple details)
    cdef bint _note_status(self, int status) except -1
    cdef int _hurry(self) except -1
    cdef int _free_bytes(self) except -1
