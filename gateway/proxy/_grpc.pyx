"""See _grpc.pxd."""

import logging
import socket
from urllib.parse import unquote

from hpack import Decoder, HPACKError

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from gateway._shared cimport Count
from gateway.http._write cimport Buffer
from gateway.proxy._plane cimport Plane

cdef enum:
    # Frame types (RFC 9113 6).
    DATA = 0
    HEADERS = 1
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9

cdef enum:
    # Flags.
    END_STREAM = 0x1        # and ACK
    END_HEADERS = 0x4
    PADDED = 0x8
    HAS_PRIORITY = 0x20

cdef enum:
    # Settings.
    MAX_CONCURRENT_STREAMS = 3
    INITIAL_WINDOW_SIZE = 4
    MAX_FRAME_SIZE = 5

cdef enum:
    # Errors of a stream.
    NO_ERROR = 0
    REFUSED_STREAM = 7
    CANCEL = 8

cdef enum:
    FRAME_HEAD_BYTES = 9
    MESSAGE_HEAD_BYTES = 5
    # What we let a server send ahead: of a call, and of all together. A message per token is some
    # 200 bytes, so a client that reads nothing has its engine wait after 5,000 tokens.
    CALL_WINDOW = 1 << 20
    WINDOW = 64 << 20
    # Largest frame that we take (the protocol's default), header block and message.
    FRAME_BYTES = 16384
    BLOCK_BYTES = 64 << 10
    MESSAGE_BYTES = 64 << 20
    MAX_WINDOW = 0x7fffffff
    MAX_ID = 0x7fffffff
    MAX_FRAME_BYTES = (1 << 24) - 1

# What a proxy's answer means where gRPC says nothing itself (gRPC's http-grpc-status-mapping).
cdef dict STATUS_OF_HTTP = {
    b"400": INTERNAL, b"401": 16, b"403": 7, b"404": 12, b"429": UNAVAILABLE, b"502": UNAVAILABLE,
    b"503": UNAVAILABLE, b"504": UNAVAILABLE,
}

log = logging.getLogger("headgate.grpc")


cdef class Call:
    cdef int on_message(self, const char* p, size_t n) except -1:
        raise NotImplementedError

    cdef int on_read(self) except -1:
        raise NotImplementedError

    cdef int on_status(self, int status, str details) except -1:
        raise NotImplementedError

    cdef int on_dropped(self, bint untouched) except -1:
        raise NotImplementedError

    cdef int on_error(self, object error) except -1:
        raise NotImplementedError

    cdef int cancel(self) except -1:
        cdef Connection connection = self.connection
        if connection is None:
            return 0
        if not connection.closed:
            connection._frame(4, RST_STREAM, 0, self.id)
            put_number(connection.out, CANCEL, 4)
            connection._flush()
        return connection._end_call(self)

    cdef int hold(self, bint is_held) except -1:
        self.is_held = is_held
        if self.connection is not None and not is_held and self.unread:
            self.connection._give_back(self.id, self.unread)
            self.unread = 0
            self.connection._flush()
        return 0


cdef class Connection:
    """A protocol for uvloop (duck-typed). `pool`: its `forget(connection)` is called once, when no
    call may begin any more."""

    def __init__(self, Plane plane, pool):
        self.plane = plane
        self.pool = pool
        self.calls = {}
        self.new = []
        self.out = Buffer()
        self.decoder = Decoder()
        self.next_id = 1
        self.most_calls = MAX_ID
        self.window = self.call_window = 65535
        self.most_frame_bytes = FRAME_BYTES
        self.settled = plane.loop.create_future()

    # -- the connection

    def connection_made(self, transport):
        self.transport = transport
        self.plane.counts[<int>Count.UPSTREAM_OPENED] += 1
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        self.out.put(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 24)
        self._frame(12, SETTINGS, 0, 0)
        put_number(self.out, 2, 2)          # no server push
        put_number(self.out, 0, 4)
        put_number(self.out, INITIAL_WINDOW_SIZE, 2)
        put_number(self.out, CALL_WINDOW, 4)
        self._give_back(0, WINDOW - 65535)
        self._flush()

    def data_received(self, bytes data):
        cdef Py_ssize_t at
        cdef Call call
        cdef list new
        self.plane.counts[<int>Count.UPSTREAM_BYTES_IN] += PyBytes_GET_SIZE(data)
        if self.partial is not None:
            data = self.partial + data
            self.partial = None
        try:
            at = self._take_frames(data)
        except (ValueError, HPACKError) as error:
            self._fail(str(error))
            return
        if at < PyBytes_GET_SIZE(data) and not self.closed:
            self.partial = data[at:] if at else data
        if self.new:
            new, self.new = self.new, []
            for call in new:
                call.is_new = False
                if call.connection is not None:
                    try:
                        call.on_read()
                    except Exception as error:
                        call.on_error(error)
        if self.out.size:
            self._flush()

    def eof_received(self):
        return False

    def connection_lost(self, error):
        self.closed = True
        self.plane.counts[<int>Count.UPSTREAM_CLOSED] += 1
        self._leave()
        if not self.settled.done():
            self.settled.set_exception(error or ConnectionResetError("closed at once"))
        self.transport = None
        for call in list(self.calls.values()):
            self._drop(call, False)

    def pause_writing(self):
        pass        # bounded by the server's window

    def resume_writing(self):
        pass

    cdef int close(self) except -1:
        self._leave()
        if not self.closed and self.transport is not None:
            self.closed = True
            self.transport.abort()
        return 0

    cdef int _fail(self, str why) except -1:
        """The server breaks the protocol: nothing that it says can be trusted any more."""
        log.warning("a gRPC connection is given up: %s", why)
        if not self.settled.done():
            self.settled.set_exception(ConnectionError(f"it does not speak gRPC: {why}"))
        return self.close()

    def _leave(self):
        """No call may begin any more."""
        if not self.leaving:
            self.leaving = True
            self.pool.forget_connection(self)

    def _drop(self, Call call, bint untouched):
        self._end_call(call)
        try:
            call.on_dropped(untouched)
        except Exception as error:
            call.on_error(error)

    # -- calls

    cdef bint has_room(self, uint32_t n) noexcept:
        return not self.leaving and not self.closed and (
            <uint64_t>len(self.calls) + self.reserved + n <= self.most_calls)

    cdef int begin(self, Call call, bytes head, bytes message) except -1:
        cdef size_t n = PyBytes_GET_SIZE(head)
        if n > self.most_frame_bytes:
            raise ValueError(f"a header block of {n} bytes")
        call.connection = self
        call.id = self.next_id
        call.window = self.call_window
        call.status = NOT_SAID
        self.next_id += 2
        self.calls[call.id] = call
        self._frame(n, HEADERS, END_HEADERS, call.id)
        self.out.put_bytes(head)
        call.unsent = b"".join((
            b"\0", PyBytes_GET_SIZE(message).to_bytes(4, "big"), message,
        ))
        call.sent_at = 0
        self._pump(call)
        self._flush()
        if self.next_id > MAX_ID - 2:
            self._leave()
        return 0

    cdef int _pump(self, Call call) except -1:
        """Send of a request what the server's windows take."""
        cdef Py_ssize_t left, n
        while call.unsent is not None:
            left = PyBytes_GET_SIZE(call.unsent) - call.sent_at
            n = min(left, min(<int64_t>self.most_frame_bytes, min(self.window, call.window)))
            if n <= 0:
                return 0
            self._frame(n, DATA, END_STREAM if n == left else 0, call.id)
            self.out.put(PyBytes_AS_STRING(call.unsent) + call.sent_at, n)
            self.window -= n
            call.window -= n
            call.sent_at += n
            if n == left:
                call.unsent = None
        return 0

    cdef int _end_call(self, Call call) except -1:
        self.calls.pop(call.id, None)
        call.connection = None
        call.unsent = call.partial = None
        if self.leaving and not self.calls and not self.closed and self.transport is not None:
            self.transport.close()
        return 0

    # -- frames

    cdef int _frame(self, size_t n, uint8_t kind, uint8_t flags, uint32_t id) except -1:
        cdef uint8_t[9] head
        head[0] = n >> 16
        head[1] = (n >> 8) & 255
        head[2] = n & 255
        head[3] = kind
        head[4] = flags
        head[5] = id >> 24
        head[6] = (id >> 16) & 255
        head[7] = (id >> 8) & 255
        head[8] = id & 255
        return self.out.put(<const char*>head, 9)

    cdef int _give_back(self, uint32_t id, size_t n) except -1:
        self._frame(4, WINDOW_UPDATE, 0, id)
        return put_number(self.out, n, 4)

    cdef int _flush(self) except -1:
        if self.out.size and not self.closed and self.transport is not None:
            self.plane.counts[<int>Count.UPSTREAM_BYTES_OUT] += self.out.size
            self.transport.write(self.out.take())
        return 0

    cdef Py_ssize_t _take_frames(self, bytes data) except -1:
        """Where the first frame begins that is not whole."""
        cdef const uint8_t* p = <const uint8_t*>PyBytes_AS_STRING(data)
        cdef Py_ssize_t at = 0, n = PyBytes_GET_SIZE(data)
        cdef size_t size
        while n - at >= FRAME_HEAD_BYTES and not self.closed:
            size = read_number(p + at, 3)
            if size > FRAME_BYTES:
                raise ValueError(f"a frame of {size} bytes")
            if n - at - FRAME_HEAD_BYTES < <Py_ssize_t>size:
                break
            self._take(p[at + 3], p[at + 4], read_number(p + at + 5, 4) & MAX_ID,
                       p + at + FRAME_HEAD_BYTES, size)
            at += FRAME_HEAD_BYTES + size
        return at

    cdef int _take(self, uint8_t kind, uint8_t flags, uint32_t id, const uint8_t* p,
                   size_t n) except -1:
        cdef Call call
        cdef uint32_t number
        if self.block is not None and kind != CONTINUATION:
            raise ValueError("another frame within a header block")
        if not self.settled.done() and kind != SETTINGS:
            raise ValueError("the first frame is not SETTINGS")
        if kind == DATA:
            return self._take_data(flags, id, p, n)
        if kind == HEADERS:
            return self._take_head(flags, id, p, n)
        if kind == CONTINUATION:
            self._continue_head(flags, id, PyBytes_FromStringAndSize(<const char*>p, n))
            return 0
        if kind == SETTINGS:
            return self._take_settings(flags, p, n)
        if kind == PING:
            if n != 8:
                raise ValueError("a PING of another size than 8")
            if not flags & END_STREAM:
                self._frame(8, PING, END_STREAM, 0)
                self.out.put(<const char*>p, 8)
        elif kind == WINDOW_UPDATE:
            if n != 4:
                raise ValueError("a WINDOW_UPDATE of another size than 4")
            self._widen(id, read_number(p, 4) & MAX_ID)
        elif kind == RST_STREAM:
            if n != 4:
                raise ValueError("a RST_STREAM of another size than 4")
            call = self.calls.get(id)
            number = read_number(p, 4)
            if call is not None:
                self._reset(call, number)
        elif kind == GOAWAY:
            if n < 8:
                raise ValueError("a GOAWAY of less than 8 bytes")
            self._go_away(read_number(p, 4) & MAX_ID)
        elif kind == PUSH_PROMISE:
            raise ValueError("a PUSH_PROMISE that was not allowed")
        return 0        # PRIORITY and what is not known is to be passed over

    def _reset(self, Call call, uint32_t why):
        if why == REFUSED_STREAM:
            self._drop(call, True)
        elif why == NO_ERROR and call.status >= 0:
            self._tell_status(call)
        else:
            self._end_call(call)
            try:
                call.on_status(UNAVAILABLE if why != CANCEL else CANCELLED,
                               f"the server reset the call (error {why})")
            except Exception as error:
                call.on_error(error)

    def _go_away(self, uint32_t last_id):
        self._leave()
        cdef Call call
        for call in [call for id, call in self.calls.items() if id > last_id]:
            if call.connection is not None:     # else its request has left it with another one
                self._drop(call, True)
        if not self.calls and self.transport is not None:
            self.transport.close()

    def _widen(self, uint32_t id, uint32_t n):
        cdef Call call
        if id == 0:
            self.window += n
            if self.window > MAX_WINDOW:
                raise ValueError("a window of more than 2^31 bytes")
            for call in list(self.calls.values()):
                if call.unsent is not None:
                    self._pump(call)
            return
        call = self.calls.get(id)
        if call is not None:
            call.window += n
            if call.window > MAX_WINDOW:
                raise ValueError("a window of more than 2^31 bytes")
            self._pump(call)

    cdef int _take_settings(self, uint8_t flags, const uint8_t* p, size_t n) except -1:
        cdef size_t at = 0
        cdef uint32_t value
        cdef int64_t grown
        cdef Call call
        if flags & END_STREAM:
            return 0
        if n % 6:
            raise ValueError("SETTINGS of a size that is no multiple of 6")
        # Before what they allow is used: until then a server may hold to the old ones.
        self._frame(0, SETTINGS, END_STREAM, 0)
        while at < n:
            value = read_number(p + at + 2, 4)
            if p[at] == 0 and p[at + 1] == MAX_CONCURRENT_STREAMS:
                self.most_calls = value
            elif p[at] == 0 and p[at + 1] == INITIAL_WINDOW_SIZE:
                if value > MAX_WINDOW:
                    raise ValueError("a window of more than 2^31 bytes")
                grown = <int64_t>value - self.call_window
                self.call_window = value
                for call in self.calls.values():
                    call.window += grown
                    self._pump(call)
            elif p[at] == 0 and p[at + 1] == MAX_FRAME_SIZE:
                self.most_frame_bytes = min(
                    max(value, <uint32_t>FRAME_BYTES), <uint32_t>MAX_FRAME_BYTES)
            at += 6
        if not self.settled.done():
            self.settled.set_result(None)
        return 0

    # -- answers

    cdef int _take_data(self, uint8_t flags, uint32_t id, const uint8_t* p, size_t n) except -1:
        cdef Call call = self.calls.get(id)
        cdef size_t taken = n
        self.unread += n
        if self.unread > WINDOW // 2:
            self._give_back(0, self.unread)
            self.unread = 0
        if call is None:
            return 0        # cancelled: what was under way
        if flags & PADDED:
            if n == 0 or p[0] >= n:
                raise ValueError("padding larger than its frame")
            n -= 1 + p[0]
            p += 1
        call.unread += taken
        if call.unread > CALL_WINDOW // 2 and not call.is_held:
            self._give_back(id, call.unread)
            call.unread = 0
        try:
            if n:
                if not call.is_new:
                    call.is_new = True
                    self.new.append(call)
                self._take_messages(call, <const char*>p, n)
            if flags & END_STREAM and call.connection is not None:
                self._tell_status(call)
        except Exception as error:
            call.on_error(error)
        return 0

    cdef int _take_messages(self, Call call, const char* p, size_t n) except -1:
        cdef Buffer partial = call.partial
        cdef size_t size, at = 0
        if partial is not None:
            partial.put(p, n)
            p = partial.start
            n = partial.size
        while n - at >= MESSAGE_HEAD_BYTES and call.connection is not None:
            size = read_number(<const uint8_t*>p + at + 1, 4)
            if p[at] != 0 or size > MESSAGE_BYTES:
                text = "a compressed message" if p[at] else f"a message of {size} bytes"
                call.cancel()
                return call.on_status(INTERNAL, text)
            if n - at - MESSAGE_HEAD_BYTES < size:
                break
            call.on_message(p + at + MESSAGE_HEAD_BYTES, size)
            at += MESSAGE_HEAD_BYTES + size
        if call.connection is None or at == n:
            call.partial = None
        elif partial is None or at:
            call.partial = Buffer()
            call.partial.put(p + at, n - at)
        return 0

    cdef int _take_head(self, uint8_t flags, uint32_t id, const uint8_t* p, size_t n) except -1:
        if flags & PADDED:
            if n == 0 or p[0] >= n:
                raise ValueError("padding larger than its frame")
            n -= 1 + p[0]
            p += 1
        if flags & HAS_PRIORITY:
            if n < 5:
                raise ValueError("a priority that is cut off")
            n -= 5
            p += 5
        self.block = PyBytes_FromStringAndSize(<const char*>p, n)
        self.block_id = id
        self.block_ends = flags & END_STREAM
        if flags & END_HEADERS:
            self._take_block()
        return 0

    def _continue_head(self, uint8_t flags, uint32_t id, bytes more):
        if self.block is None or id != self.block_id:
            raise ValueError("a CONTINUATION of nothing")
        self.block += more
        if len(self.block) > BLOCK_BYTES:
            raise ValueError(f"a header block of more than {BLOCK_BYTES} bytes")
        if flags & END_HEADERS:
            self._take_block()

    cdef int _take_block(self) except -1:
        """Head or trailers: of both only gRPC's status counts, and HTTP's where it is not 200."""
        cdef Call call = self.calls.get(self.block_id)
        block, self.block = self.block, None
        # For calls that are over too: the decoder's state is the connection's.
        fields = self.decoder.decode(block, raw=True)
        if call is None:
            return 0
        for name, value in fields:
            if name == b"grpc-status":
                call.status = int(value) if value.isdigit() and len(value) < 6 else UNKNOWN
            elif name == b"grpc-message":
                call.details = unquote(value.decode("latin-1"))
            elif name == b":status" and value != b"200" and not value.startswith(b"1"):
                call.status = STATUS_OF_HTTP.get(value, UNKNOWN)
                call.details = f"the server answers HTTP {value.decode('latin-1')}"
        if self.block_ends:
            self._tell_status(call)
        return 0

    def _tell_status(self, Call call):
        """The call is over, as the server says."""
        cdef int status = UNKNOWN if call.status == NOT_SAID else call.status
        if status == OK and call.partial is not None:
            status = INTERNAL
            call.details = "its answer ends within a message"
        if call.unsent is not None and not self.closed:
            # It wants no more of the request; we end our side of the call too.
            self._frame(4, RST_STREAM, 0, call.id)
            put_number(self.out, NO_ERROR, 4)
        try:
            if call.is_new:
                call.is_new = False
                call.on_read()
            if call.connection is not None:
                self._end_call(call)
                call.on_status(status, call.details or f"its call ends with gRPC status {status}")
        except Exception as error:
            self._end_call(call)
            call.on_error(error)


cdef inline uint32_t read_number(const uint8_t* p, int n) noexcept nogil:
    cdef uint32_t number = 0
    cdef int index
    for index in range(n):
        number = (number << 8) | p[index]
    return number


cdef int put_number(Buffer out, uint32_t number, int n) except -1:
    cdef uint8_t[4] digits
    cdef int index
    for index in range(n):
        digits[index] = (number >> (8 * (n - 1 - index))) & 255
    return out.put(<const char*>digits, n)


cdef bytes prefixed(bytes text):
    """A string with its length as a 7-bit prefix integer (RFC 7541 5.1, 5.2), not Huffman-coded."""
    cdef Py_ssize_t n = len(text)
    out = bytearray()
    if n < 127:
        out.append(n)
    else:
        out.append(127)
        n -= 127
        while n > 127:
            out.append(n & 127 | 128)
            n >>= 7
        out.append(n)
    return bytes(out) + text


cdef bytes header_block(list fields):
    cdef bytes name, value
    # 0: a literal that goes into no table (RFC 7541 6.2.2).
    return b"".join([b"\0" + prefixed(name) + prefixed(value) for name, value in fields])
