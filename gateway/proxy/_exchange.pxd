"""One request's way through the gateway: pick, dispatch, relay, retry, account.

    IDLE -start-> (HELD ->) DIALING -> WAITING -head-> HOLDING -first frame-> STREAMING -> IDLE
                   ^         ^____________|______________|
                   |______________________|   (retry: nothing has gone to the client)

Every path back to IDLE goes through `over`, which counts the request once; every dispatch is
booked in `_dispatch` and released in `_release`, once.
"""

from libc.stdint cimport int32_t, int64_t

from gateway.http._head cimport Head
from gateway.proxy._account cimport Account
from gateway.proxy._attempts cimport Attempts
from gateway.proxy._plane cimport Plane
from gateway.proxy._pool cimport Pool
from gateway.proxy._relay cimport Relay
from gateway.proxy._request cimport Request
from gateway.proxy._upstream cimport Sink, Upstream
from gateway.proxy._waiting cimport Waiter
from gateway.proxy._wheel cimport Timed
from router._booking cimport Booking

cpdef enum Stage:
    IDLE = 0
    HELD = 1        # at no endpoint: waits for its token ids, or for one with room
    DIALING = 2     # booked; waits for a connection
    WAITING = 3     # sent; no response head
    HOLDING = 4     # head is here; nothing has gone to the client
    STREAMING = 5   # the client has bytes

cpdef enum Ending:
    KEEP = 0        # may carry the next request
    CLOSE = 1       # close when all is sent, and has had the time to be read
    ABORT = 2       # broken off in the middle: close so that the client sees it

cdef class Client(Timed):
    """What an exchange needs of its client's connection."""
    cdef double stalled_s           # since when its buffer is full; 0: it is not
    cdef int send(self, bytes data) except -1
    # The response has begun: the request's body is of no more use.
    cdef int on_commit(self) except -1
    # The response is over; `ending` says what becomes of the connection.
    cdef int on_over(self, int ending) except -1
    # Send an error of ours as the whole answer. Returns its status.
    cdef int answer(self, int reason, tuple details) except -1

cdef class Place(Waiter):
    """Of an exchange that is HELD, in the plane's queue."""
    cdef Exchange exchange

cdef class Exchange(Sink):
    cdef Plane plane
    cdef Client client
    cdef Relay relay
    cdef readonly int stage
    cdef readonly Request request
    cdef Account account
    # the dispatch under way
    cdef Pool pool
    cdef Upstream upstream
    cdef Upstream parted            # what was asked, until its booking is settled
    cdef int32_t slot
    cdef Booking booking
    cdef Attempts attempts
    cdef bint doomed                # its endpoint is dead, though it may still be sending
    cdef str doom
    # while it is HELD
    cdef Place place
    cdef int verdict                # of the router, the last time: NOBODY or BUSY
    cdef double held_since_s
    cdef double held_until_s
    cdef int failure                # why its last dispatch failed: a Reason; NONE: it had none
    cdef str failure_detail
    # the response
    cdef int status
    cdef int kind                   # BodyKind
    cdef bint blameless             # the dispatch failed by no fault of the endpoint
    cdef bint dying                 # its answer says that its engine is going down
    cdef bint gathers               # may be turned away: not sent before its body is known
    cdef bint reusable
    cdef object job                 # what makes the ids that it is HELD for; has `cancel`
    cdef bytes pending              # what has not gone to the client yet
    # The request has been read. Ends in `client.on_over`.
    cdef int start(self) except -1
    # The client has gone, or must go: `cause` is a Count of cancels.
    cdef int cancel(self, int cause) except -1
    # The client's buffer is full (or has room again).
    cdef int hold(self, bint full) except -1
    cdef int on_late(self, double now_s) except -1      # the client's deadline has passed
    cdef int condemn(self, int slot, unsigned int generation, str why, bint hung) except -1
    cdef int cut(self, int reason) except -1
    # End a request that was never dispatched: answered by us, or given up by its client.
    cdef int over(self, int outcome, int status, int reason, int ending) except -1
    # private
    cdef int _make_ids(self) except -1
    cdef int _route(self) except -1
    cdef int _hold(self, int verdict) except -1
    cdef bint admit(self, double now_s) except -1
    cdef int expelled(self, double now_s) except -1
    cdef int _held_too_long(self) except -1
    cdef int _no_room(self, int reason, tuple details) except -1
    cdef int _leave_queue(self, bint went) except -1
    cdef str _queue(self)
    cdef int _nobody(self) except -1
    cdef int _dispatch(self, int slot) except -1
    cdef int on_connection(self, Upstream upstream) except -1
    cdef int on_head(self, Upstream upstream, bytes data, const Head* head) except -1
    cdef int on_body(self, Upstream upstream, bytes data) except -1
    cdef int on_events(self, Upstream upstream, bytes chunk, int n) except -1
    cdef int _kind(self, const char* p, const Head* head) noexcept
    cdef int _feed(self, bytes data, size_t at) except -1
    cdef bint _held_back(self, bytes out) except -1
    cdef bint _gave_up(self, bytes out) except -1
    cdef bint _is_dying(self, int status) except -1
    cdef int _commit(self) except -1
    cdef int _remember_response(self, bytes first) except -1
    cdef int _send(self, bytes data) except -1
    cdef int _detach(self) except -1
    cdef int _release(self, int outcome) except -1
    cdef int _count_tokens(self) except -1
    cdef int on_dial_failed(self, str why) except -1
    cdef int on_lost(self, bint clean) except -1
    cdef int _finished_by_close(self) except -1
    cdef int on_malformed(self, int fault) except -1
    cdef int on_error(self, object error) except -1
    cdef int _failed(self, int cause, int reason, str detail) except -1
    cdef int _give_up(self, int reason, str detail) except -1
    cdef int _ending(self) noexcept
    cdef int _clear(self) except -1
    cdef bint _turned_away(self) except -1
    cdef int _part(self) except -1
    cdef double _patience_s(self) noexcept
    cdef int _timed_out(self) except -1
    cdef bint _failed_at_once(self) noexcept
    cdef int _answered(self) except -1
    cdef int _count_events(self, int n) except -1
    cdef int _wait(self) except -1
