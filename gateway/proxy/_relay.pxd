"""What an engine sends, turned into what the client gets: one response body, without I/O.

The rule: only whole frames go out (an HTTP chunk; in an event stream, chunks up to an event's
end), so that an error event can be put behind them at any time. An incomplete tail is held, up
to MAX_HELD_BYTES; a larger one passes and makes the stream abort-only until it is whole again.
Whole frames go out as they came, the framing of chunks included; the last chunk is ours.
"""

from libc.stdint cimport uint8_t

from gateway.http._body cimport Walker
from gateway.http._events cimport Scanner
from gateway.http._head cimport Head
from gateway.http._write cimport Buffer

cdef enum:
    MAX_HELD_BYTES = 64 * 1024

cpdef enum Shape:
    # How the client's body is framed.
    AS_SENT = 0         # the engine's own framing: its chunks, or its Content-Length
    CHUNKS = 1          # our chunks around the payload
    BARE = 2            # the payload alone, until the connection ends (HTTP/1.0 clients)

cpdef enum BodyKind:
    EVENTS = 0          # text/event-stream
    JSON = 1
    OPAQUE = 2          # neither, or compressed: passed without a look

cdef class Relay:
    cdef Walker walker
    cdef readonly Scanner scanner
    cdef uint8_t shape
    cdef uint8_t kind
    cdef object rewriter        # None, or what rewrites payload: see gateway.proxy.usage
    cdef bytes held             # frames that are not whole, as they came
    cdef size_t line_at         # in `held`: where a chunk-size line under way begins
    cdef bint abort_only        # part of a frame has gone out
    cdef bytes out              # what feed found fit to send; None: nothing yet
    cdef bint ended             # the message is complete
    cdef size_t rest            # after the end: where in the input the next message would begin
    cdef int new_events         # data events that ended in the last feed

    # Begin a response. `http_1_0`: the client cannot take chunks.
    cdef void start(self, const Head* head, bint to_head, int kind, int end_mark, bint http_1_0,
                    object rewriter) noexcept
    # Take data[at:], set `out`, `ended`, `rest`, `new_events`. 0, or a Fault; MemoryError possible.
    cdef int feed(self, bytes data, size_t at) except? -1000
    # The engine's connection has ended: is the body whole (UNTIL_CLOSE)? May set `out`.
    cdef bint finish(self) except? -1
    # Bytes that end the body with these frames of events (they may be empty).
    cdef bytes ending(self, bytes frames)
    # Can an error event be put behind what has gone out?
    cdef bint takes_events(self) noexcept
    # Between two chunks, all of which are events and go out as they came.
    cdef bint passes_chunks(self) noexcept
    cdef void clear(self) noexcept
    # private
    cdef int _scan(self, const char* p, size_t n) except -1
    cdef int _end(self, size_t rest) except -1
    cdef int _feed_length(self, bytes data, size_t at) except? -1000
    cdef int _feed_chunks(self, bytes data, size_t at) except? -1000
    cdef int _release(self, bytes data, size_t at, size_t whole, size_t n) except -1
    cdef int _feed_payload(self, bytes data, size_t at) except? -1000
    cdef int _wrap(self, bytes payload) except -1
    cdef bytes _whole_events(self, bytes payload)
    cdef bytes _chunk(self, bytes payload)
    cdef int _hold(self, bytes tail, size_t whole) except -1
    cdef bytes _from(self, bytes data, size_t at, size_t end)
