"""See _relay.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from gateway.http._body cimport Framing, Step, walk, walk_response
from gateway.http._events cimport Scanner
from gateway.http._head cimport Head
from gateway.http._write cimport Buffer, part_of

cdef bytes LAST_CHUNK = b"0\r\n\r\n"

cdef enum:
    NOWHERE = 0x7fffffffffffffff


cdef class Relay:
    """One per client connection, used for one response after the other."""

    def __cinit__(self):
        self.scanner = Scanner()

    cdef void start(self, const Head* head, bint to_head, int kind, int end_mark, bint http_1_0,
                    object rewriter) noexcept:
        walk_response(&self.walker, head, to_head)
        self.scanner.reset(end_mark)
        self.kind = kind
        self.rewriter = rewriter
        self.held = None
        self.out = None
        self.abort_only = False
        self.ended = self.walker.framing == <int>Framing.NO_BODY
        self.rest = 0
        self.new_events = 0
        if self.walker.framing == <int>Framing.NO_BODY:
            self.shape = Shape.AS_SENT
        elif self.walker.framing == <int>Framing.LENGTH and rewriter is None:
            self.shape = Shape.AS_SENT
        elif http_1_0:
            self.shape = Shape.BARE
        elif self.walker.framing == <int>Framing.CHUNKED and rewriter is None:
            self.shape = Shape.AS_SENT
        else:
            self.shape = Shape.CHUNKS

    cdef int feed(self, bytes data, size_t at) except? -1000:
        self.out = None
        self.new_events = 0
        if self.walker.framing == <int>Framing.NO_BODY:
            self.rest = at
            return 0
        if self.walker.framing == <int>Framing.LENGTH and self.shape == <int>Shape.AS_SENT:
            return self._feed_length(data, at)
        if self.shape == <int>Shape.AS_SENT:
            return self._feed_chunks(data, at)
        return self._feed_payload(data, at)

    cdef int _scan(self, const char* p, size_t n) except -1:
        if self.kind == <int>BodyKind.EVENTS:
            self.new_events += self.scanner.feed(p, n)
        elif self.kind == <int>BodyKind.JSON:
            self.scanner.feed_json(p, n)
        return 0

    cdef bytes _from(self, bytes data, size_t at, size_t end):
        """data[at:end]: the object itself where that is all of it."""
        if at == 0 and end == <size_t>PyBytes_GET_SIZE(data):
            return data
        return part_of(data, at, end)

    cdef int _end(self, size_t rest) except -1:
        self.ended = True
        self.rest = rest
        if self.kind == <int>BodyKind.JSON:
            self.scanner.finish_json()
        return 0

    cdef int _feed_length(self, bytes data, size_t at) except? -1000:
        cdef const char* p = PyBytes_AS_STRING(data)
        cdef size_t n = PyBytes_GET_SIZE(data)
        cdef int step
        self.walker.pos = at
        while True:
            step = walk(&self.walker, p, n)
            if step == <int>Step.DATA:
                self._scan(p + self.walker.start, self.walker.size)
                continue
            if step < 0:
                return step
            if step == <int>Step.END:
                self._end(self.walker.pos)
            break
        if self.walker.pos > at:
            self.out = self._from(data, at, self.walker.pos)
        return 0

    cdef int _feed_chunks(self, bytes data, size_t at) except? -1000:
        cdef const char* p = PyBytes_AS_STRING(data)
        cdef size_t n = PyBytes_GET_SIZE(data)
        cdef size_t whole = at      # everything before it may go out
        cdef bint over_before = self.walker.terminated
        cdef int step
        self.walker.pos = at
        self.walker.last_chunk = NOWHERE
        while True:
            step = walk(&self.walker, p, n)
            if step == <int>Step.DATA:
                self._scan(p + self.walker.start, self.walker.size)
            elif step == <int>Step.CHUNK_END:
                if not self.scanner.in_event:
                    whole = self.walker.pos
            else:
                break
        if step < 0:
            return step
        if step == <int>Step.END:
            self._end(self.walker.pos)
            if (not over_before and self.held is None and self.walker.last_chunk == whole
                    and self.walker.pos - whole == 5):
                self.out = self._from(data, at, self.walker.pos)
                return 0
        if self.walker.terminated:
            # The last chunk and what follows it are never passed on: the end is ours.
            if over_before:
                n = at
            elif self.walker.last_chunk != NOWHERE:
                n = self.walker.last_chunk
            else:
                n = at
                self.held = self.held[:self.line_at]
        self._release(data, at, whole, n)
        if self.ended:
            self.out = LAST_CHUNK if self.out is None else self.out + LAST_CHUNK
        return 0

    cdef int _release(self, bytes data, size_t at, size_t whole, size_t n) except -1:
        """Move whole frames of data[at:n] to `out` and keep the rest; at the end keep nothing."""
        if self.ended:
            whole = n       # an event that never ended still belongs to the client
        if whole > at:
            self.out = self._from(data, at, whole)
        if self.held is not None and (whole > at or self.ended):
            self.out = self.held if self.out is None else self.held + self.out
            self.held = None
        if whole > at:
            self.abort_only = False
        if whole < n:
            self._hold(part_of(data, whole, n), whole)
        return 0

    cdef int _hold(self, bytes tail, size_t whole) except -1:
        """Keep frames that are not whole; too many of them go out, but for a chunk-size line."""
        cdef size_t before = 0
        if self.held is not None:
            before = len(self.held)
            tail = self.held + tail
        if self.walker.size_digits == 0 or self.walker.terminated:
            self.line_at = len(tail)
        elif self.walker.last_chunk != NOWHERE:
            self.line_at = before + self.walker.last_chunk - whole
        self.held = tail
        if self.abort_only or len(tail) > MAX_HELD_BYTES:
            self.abort_only = True
            self.held = tail[self.line_at:] if self.line_at < <size_t>len(tail) else None
            tail = tail[:self.line_at]
            self.out = tail if self.out is None else self.out + tail
            self.line_at = 0
        return 0

    cdef int _feed_payload(self, bytes data, size_t at) except? -1000:
        """Our own framing: take the payload out, maybe rewrite it, and wrap it anew."""
        cdef const char* p = PyBytes_AS_STRING(data)
        cdef size_t n = PyBytes_GET_SIZE(data)
        cdef Buffer payload = Buffer()
        cdef int step
        self.walker.pos = at
        while True:
            step = walk(&self.walker, p, n)
            if step == <int>Step.DATA:
                self._scan(p + self.walker.start, self.walker.size)
                payload.put(p + self.walker.start, self.walker.size)
            elif step == <int>Step.END:
                self._end(self.walker.pos)
                break
            elif step == <int>Step.MORE:
                break
            elif step < 0:
                return step
        self._wrap(payload.take())
        return 0

    cdef int _wrap(self, bytes payload) except -1:
        if self.rewriter is not None:
            payload = self.rewriter.feed(payload)
            self.abort_only = self.rewriter.is_passing
            if self.ended:
                payload += self.rewriter.finish()
        elif self.kind == <int>BodyKind.EVENTS:
            payload = self._whole_events(payload)
        self.out = self._chunk(payload)
        if self.ended and self.shape == <int>Shape.CHUNKS:
            self.out = LAST_CHUNK if self.out is None else self.out + LAST_CHUNK
        return 0

    cdef bytes _whole_events(self, bytes payload):
        """Hold payload back until the event under way has ended."""
        if self.held is not None:
            payload = self.held + payload
            self.held = None
        if self.ended or not self.scanner.in_event:
            self.abort_only = False
            return payload
        cut = max(payload.rfind(b"\n\n"), payload.rfind(b"\n\r\n"))
        cut = 0 if cut < 0 else cut + (2 if payload[cut + 1] == 10 else 3)
        if len(payload) - cut > MAX_HELD_BYTES or self.abort_only:
            self.abort_only = True
            return payload
        self.held = payload[cut:]
        return payload[:cut]

    cdef bytes _chunk(self, bytes payload):
        cdef Buffer chunk
        if not payload:
            return None
        if self.shape != <int>Shape.CHUNKS:
            return payload
        chunk = Buffer()
        chunk.put_chunk_size(len(payload))
        chunk.put_bytes(payload)
        chunk.put(b"\r\n", 2)
        return chunk.take()

    cdef bint finish(self) except? -1:
        self.out = None
        if self.ended:
            return True
        if self.walker.framing != <int>Framing.UNTIL_CLOSE:
            return False
        if self.scanner.end_mark and self.kind == <int>BodyKind.EVENTS and not self.scanner.over:
            return False        # a stream that was cut looks just like one that ended
        self._end(0)
        self._wrap(b"")
        return True

    cdef bytes ending(self, bytes frames):
        cdef Buffer chunk = Buffer()
        if self.shape == <int>Shape.BARE:
            return frames
        if frames:
            chunk.put_chunk_size(len(frames))
            chunk.put_bytes(frames)
            chunk.put(b"\r\n", 2)
        chunk.put_bytes(LAST_CHUNK)
        return chunk.take()

    cdef bint takes_events(self) noexcept:
        return (
            self.kind == <int>BodyKind.EVENTS
            and not self.abort_only
            and self.walker.framing != <int>Framing.LENGTH
            and self.walker.framing != <int>Framing.NO_BODY
        )

    cdef bint passes_chunks(self) noexcept:
        return (
            self.shape == <int>Shape.AS_SENT and self.kind == <int>BodyKind.EVENTS
            and self.walker.framing == <int>Framing.CHUNKED and self.held is None
        )

    cdef void clear(self) noexcept:
        """Let go of what a response held; counts and usage stay readable until `start`."""
        self.held = None
        self.out = None
        self.rewriter = None
