"""See _page_client.pyi."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from gateway.http._body cimport Framing, Step, Walker, walk, walk_response
from gateway.http._head cimport Head, head_end, parse_response

__all__ = ["PageClient"]

cdef enum:
    # What is not followed by a head: ours is done.
    IDLE
    IN_HEAD
    IN_BODY


cdef class PageClient:
    """A protocol for uvloop (duck-typed), one per connection."""

    cdef object _on_page
    cdef object _on_lost
    cdef object _transport
    cdef size_t _max_bytes
    cdef int _phase
    cdef bint _heard
    cdef bint _closes
    cdef int _status
    cdef bytes _head
    cdef size_t _seen
    cdef Walker _walker
    cdef list _pieces
    cdef size_t _size

    def __init__(self, on_page, on_lost, size_t max_bytes):
        self._on_page = on_page
        self._on_lost = on_lost
        self._max_bytes = max_bytes

    def connection_made(self, transport):
        self._transport = transport

    def ask(self, bytes request not None):
        self._phase = IN_HEAD
        self._heard = False
        self._head = b""
        self._seen = 0
        self._pieces = []
        self._size = 0
        self._transport.write(request)

    def close(self):
        self._on_page = self._on_lost = None
        if self._transport is not None:
            self._transport.abort()

    def data_received(self, bytes data not None):
        cdef Py_ssize_t at = 0
        self._heard = True
        if self._phase == IDLE:
            self._fail("speaks unasked")
            return
        if self._phase == IN_HEAD:
            if self._head:
                data = self._head + data
            at = self._take_head(data)
            if at <= 0:
                return
        self._take_body(data, at)

    def eof_received(self):
        return False        # the transport closes itself, then connection_lost

    def connection_lost(self, error):
        cdef bint ended = (
            error is None and self._phase == IN_BODY and self._walker.framing == Framing.UNTIL_CLOSE
        )
        self._transport = None
        if ended:
            self._done()
        elif self._on_lost is not None:
            self._lose("closes the connection" if error is None else str(error))

    def pause_writing(self):
        pass        # a request is some hundred bytes

    def resume_writing(self):
        pass

    cdef Py_ssize_t _take_head(self, bytes data) except? -1:
        """Where the body begins; 0: not known yet, or all is over."""
        cdef Head head
        cdef const char* p = PyBytes_AS_STRING(data)
        cdef size_t n = PyBytes_GET_SIZE(data)
        cdef Py_ssize_t size, at = 0
        while True:
            size = head_end(p + at, n - at, self._seen)
            self._seen = 0
            if size == 0:
                self._head = data[at:]
                self._seen = n - at
                return 0
            if size < 0 or parse_response(p + at, size, &head) or head.status == 101:
                self._fail("answers what is not HTTP")
                return 0
            at += size
            if head.status >= 200:      # 100, 103: the answer is still to come
                break
        self._head = None
        self._status = head.status
        self._phase = IN_BODY
        walk_response(&self._walker, &head, False)
        self._closes = head.close or self._walker.framing == Framing.UNTIL_CLOSE
        return at

    cdef int _take_body(self, bytes data, Py_ssize_t at) except -1:
        cdef const char* p = PyBytes_AS_STRING(data)
        cdef size_t n = PyBytes_GET_SIZE(data)
        cdef int step
        self._walker.pos = at
        while True:
            step = walk(&self._walker, p, n)
            if step == Step.DATA:
                self._size += self._walker.size
                if self._size > self._max_bytes:
                    self._fail(f"answers with more than {self._max_bytes} bytes")
                    return 0
                self._pieces.append((data, self._walker.start, self._walker.size))
            elif step == Step.END:
                self._closes |= self._walker.pos < n
                self._done()
                return 0
            elif step < 0:
                self._fail("answers what is not HTTP")
                return 0
            elif step == Step.MORE:
                return 0

    cdef int _done(self) except -1:
        cdef list pieces = self._pieces
        self._phase = IDLE
        self._pieces = None
        transport, kept = self._transport, self._transport is not None and not self._closes
        if not kept:
            self._transport = self._on_lost = None
            if transport is not None:
                transport.abort()
        data, start = b"", 0
        if len(pieces) == 1 and pieces[0][1] + pieces[0][2] == len(pieces[0][0]):
            data, start, _ = pieces[0]
        elif pieces:
            data = b"".join([data[start:start + size] for data, start, size in pieces])
            start = 0
        self._on_page(self._status, data, start, kept)
        return 0

    cdef int _fail(self, str why) except -1:
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        self._lose(why)
        return 0

    cdef int _lose(self, str why) except -1:
        on_lost, self._on_lost = self._on_lost, None
        if on_lost is not None:
            on_lost(why, self._heard)
        return 0
