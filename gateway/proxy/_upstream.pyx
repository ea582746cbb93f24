"""See _upstream.pxd."""

import socket

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.errno cimport EAGAIN, errno

from gateway._shared cimport Count
from gateway.http._head cimport Fault, Head, head_end, parse_response
from gateway.proxy._plane cimport Plane
from router._booking cimport Booking

cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int fd, void* into, size_t size, int flags)
    int MSG_PEEK
    int MSG_DONTWAIT


cdef class Sink:
    cdef int on_connection(self, Upstream upstream) except -1:
        raise NotImplementedError

    cdef int on_dial_failed(self, str why) except -1:
        raise NotImplementedError

    cdef int on_head(self, Upstream upstream, bytes data, const Head* head) except -1:
        raise NotImplementedError

    cdef int on_body(self, Upstream upstream, bytes data) except -1:
        raise NotImplementedError

    cdef int on_events(self, Upstream upstream, bytes chunk, int n) except -1:
        return self.on_body(upstream, chunk)

    cdef int on_malformed(self, int fault) except -1:
        raise NotImplementedError

    cdef int on_lost(self, bint clean) except -1:
        raise NotImplementedError

    cdef int on_error(self, object error) except -1:
        raise NotImplementedError


cdef class Upstream:
    """A protocol for uvloop (duck-typed): made by `Pool`, one per connection."""

    def __init__(self, Plane plane, pool):
        self.plane = plane
        self.pool = pool

    def connection_made(self, transport):
        self.transport = transport
        self.write = transport.write
        self.plane.counts[<int>Count.UPSTREAM_OPENED] += 1
        sock = transport.get_extra_info("socket")
        self.fd = sock.fileno()
        # An engine node that vanished without a word is found out in about 30 s.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)

    def data_received(self, bytes data):
        cdef Sink sink = self.sink
        self.plane.counts[<int>Count.UPSTREAM_BYTES_IN] += PyBytes_GET_SIZE(data)
        if sink is None:
            # Nobody asked: whatever this is, the connection is out of step.
            self.abort()
            return
        try:
            if self.in_body:
                sink.on_body(self, data)
            else:
                self._take_head(data)
        except Exception as error:
            sink.on_error(error)

    cdef int _take_head(self, bytes data) except -1:
        cdef Head* head = &self.plane.head
        cdef const char* p
        cdef size_t n, at = 0
        cdef Py_ssize_t size
        cdef int fault
        if self.partial is not None:
            data = self.partial + data
            self.partial = None
        while True:
            p = PyBytes_AS_STRING(data) + at
            n = PyBytes_GET_SIZE(data) - at
            size = head_end(p, n, self.seen)
            if size == 0:
                self.partial = data if at == 0 else data[at:]
                self.seen = n
                return 0
            self.seen = 0
            fault = size if size < 0 else parse_response(p, size, head)
            if fault == 0 and head.status == 101:
                fault = Fault.BAD_STATUS_LINE       # we never ask for an upgrade
            if fault < 0:
                return self.sink.on_malformed(fault)
            if head.status >= 200:
                break
            at += size      # 100, 103: not for the client, whose request is complete
        if at:
            data = data[at:]
        self.in_body = True
        return self.sink.on_head(self, data, head)

    def eof_received(self):
        return False        # the transport closes itself, then connection_lost

    def connection_lost(self, error):
        cdef Sink sink = self.sink
        self.closed = True
        self.plane.counts[<int>Count.UPSTREAM_CLOSED] += 1
        self.sink = None
        self.transport = self.write = None
        if sink is None:
            self.pool.forget(self)
            return
        try:
            sink.on_lost(error is None)
        except Exception as failure:
            sink.on_error(failure)

    def pause_writing(self):
        pass        # a request is in memory as a whole: nothing more will be written

    def resume_writing(self):
        pass

    cdef int hold(self, bint is_held) except -1:
        if is_held:
            self.transport.pause_reading()
        else:
            self.transport.resume_reading()
        return 0

    cdef int send(self, Sink sink, bytes message, object body) except -1:
        self.sink = sink
        self.in_body = False
        self.partial = None
        self.seen = 0
        if body is None:
            self.plane.counts[<int>Count.UPSTREAM_BYTES_OUT] += PyBytes_GET_SIZE(message)
            self.write(message)
        else:
            self.plane.counts[<int>Count.UPSTREAM_BYTES_OUT] += (
                PyBytes_GET_SIZE(message) + len(body)
            )
            self.transport.writelines((message, body))
        return 0

    cdef void let_go(self) noexcept:
        self.sink = None
        self.partial = None
        self.reused = True

    cdef int abort(self) except -1:
        self.sink = None
        if not self.closed and self.transport is not None:
            self.transport.abort()
        return 0

    cdef bint books_on(self, const Booking* booking) except -1:
        return False        # a connection that is closed frees vLLM and its kin at once

    cdef bint is_flushed(self) except -1:
        return self.transport.get_write_buffer_size() == 0

    cdef bint is_quiet(self) noexcept nogil:
        cdef char byte
        # Any other error than EAGAIN is the connection's end.
        return recv(self.fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0 and errno == EAGAIN
