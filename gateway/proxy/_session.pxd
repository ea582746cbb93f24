"""One client connection: reads requests one after the other, and writes what exchanges give it.

    HEAD -head-> BODY -whole-> RUNNING -over-> HEAD          a connection's life
      |            |              |
      +------------+--------------+---> LINGER -> CLOSED     after the connection's last answer
"""

from libc.stdint cimport int64_t

from gateway.http._body cimport Walker
from gateway.http._head cimport Head
from gateway.proxy._exchange cimport Client, Exchange
from gateway.proxy._plane cimport Plane
from gateway.proxy._request cimport Request

cpdef enum Phase:
    HEAD = 0        # between requests, or in a request's head
    BODY = 1
    RUNNING = 2     # the exchange has it
    LINGER = 3      # half-closed by us: what still comes is thrown away
    CLOSED = 4

cdef class Session(Client):
    cdef Plane plane
    cdef readonly Exchange exchange
    cdef Request request            # the exchange's
    cdef object transport
    cdef object write
    cdef int fd                     # its own, to send to past the transport; -1: TLS
    cdef bint is_queued             # the transport has, or had, some of what was sent
    cdef readonly int phase
    cdef bytes input                # received and not used: from `at` on
    cdef size_t at
    cdef size_t seen                # of input[at:], by head_end
    cdef bint advancing             # _advance is on the stack
    cdef Walker walker              # of the request body under way
    cdef bytes body                 # of that request, as far as it is here: nobody else sees it yet
    cdef int64_t received           # bytes of that body
    cdef int64_t window             # bytes since its deadline was set
    cdef int64_t counted            # in Count.BUFFERED_BYTES for this session
    cdef bint starved               # reading is paused for want of memory
    cdef bint eof                   # the client has half-closed, and may
    cdef double closing_s           # since when it is LINGER
    # private
    cdef void _leave(self) noexcept
    cdef int _broke(self, object error) except -1
    cdef int _append(self, bytes data) except -1
    cdef int _take_ahead(self, bytes data) except -1
    cdef int _advance(self) except -1
    cdef bint _next_head(self) except -1
    cdef int _rest(self) except -1
    cdef int _begin(self, const char* p, const Head* head) except -1
    cdef int _begin_body(self, const Head* head) except -1
    cdef object _cut_input(self, size_t n)
    cdef int _take_body(self, bytes data, size_t at) except -1
    cdef int _make_room(self, int64_t size) except -1
    cdef int _count_body(self, int64_t n) except -1
    cdef int _check_memory(self) except -1
    cdef int _free_body(self) except -1
    cdef int _run(self, object body) except -1
    cdef int _answer_local(self) except -1
    cdef int _answer_native(self, int local, object body) except -1
    cdef bytes _models(self)
    cdef int _answer_metrics(self) except -1
    cdef int _respond(self, int status, bytes content_type, bytes body, bytes lines) except -1
    cdef int answer(self, int reason, tuple details) except -1
    cdef int _refuse(self, int reason) except -1
    cdef int _refuse_for(self, int reason, tuple details) except -1
    cdef int _refuse_fault(self, int fault) except -1
    cdef int _send_own(self, bytes data) except -1
    cdef bint _skip_body(self) except -1
    cdef int _ending(self) noexcept
    cdef int send(self, bytes data) except -1
    cdef int on_commit(self) except -1
    cdef int on_over(self, int ending) except -1
    cdef void on_deadline(self, double now) noexcept
    cdef int _late(self, double now) except -1
    cdef int _late_body(self, double now) except -1
