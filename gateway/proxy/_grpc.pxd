"""gRPC calls over one HTTP/2 connection to an engine: the client side, driven by uvloop callbacks.

HTTP/2 is RFC 9113, header compression RFC 7541 (hpack decodes), calls are the gRPC-over-HTTP/2
protocol. Only what a client of such servers needs: no server push, no priorities, no compressed
messages. A call costs no task and no timer; a message costs the bytes that it is.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t

from gateway.http._write cimport Buffer
from gateway.proxy._plane cimport Plane

cdef enum:
    # gRPC's status codes that are used here.
    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INTERNAL = 13
    UNAVAILABLE = 14

cdef enum:
    NOT_SAID = -1

cdef class Call:
    """One call; a subclass hears what comes. After `on_status` or `on_dropped`, or after
    `cancel`, it hears nothing more."""
    cdef Connection connection      # None: it has not begun, or is over
    cdef uint32_t id
    cdef int64_t window             # bytes that the server still takes of it
    cdef bytes unsent               # of the request, from `sent_at`
    cdef Py_ssize_t sent_at
    cdef size_t unread              # bytes received and not given back to the server's window
    cdef bint is_held               # nothing is given back: whoever reads it is slow
    cdef Buffer partial             # of a message; None: nothing of one
    cdef bint is_new                # something came in this read
    cdef int64_t status             # grpc-status, or what HTTP's stands for; NOT_SAID
    cdef str details
    # A message of the answer; it lies in memory during this call only.
    cdef int on_message(self, const char* p, size_t n) except -1
    # All that one read brought of it has been told.
    cdef int on_read(self) except -1
    cdef int on_status(self, int status, str details) except -1
    # The connection has ended, or the server will not do it. `untouched`: it never began to.
    cdef int on_dropped(self, bint untouched) except -1
    cdef int on_error(self, object error) except -1
    # Let the server stop; nothing more is heard.
    cdef int cancel(self) except -1
    # Slow the server down, or no longer.
    cdef int hold(self, bint is_held) except -1

cdef class Connection:
    cdef Plane plane
    cdef object pool                # told by `forget(connection)` when it takes no more calls
    cdef readonly object transport
    cdef readonly object settled    # a future: the server has said its settings, or an OSError
    cdef bint closed
    cdef bint leaving               # the server takes no more calls
    cdef bytes partial              # of a frame
    cdef dict calls                 # id -> Call
    cdef uint32_t next_id
    cdef uint32_t most_calls
    cdef int64_t window             # bytes that the server still takes, of all calls
    cdef int64_t call_window        # of a new one
    cdef size_t most_frame_bytes    # of a frame to the server
    cdef size_t unread
    cdef object decoder             # of header blocks
    cdef bytes block                # a header block that is not whole
    cdef uint32_t block_id
    cdef bint block_ends
    cdef list new                   # calls that something came for in this read
    cdef Buffer out
    cdef uint32_t reserved          # calls that are about to begin
    # May so many further calls begin?
    cdef bint has_room(self, uint32_t n) noexcept
    # Begin one: `head` is its header block, `message` the one message of its request.
    cdef int begin(self, Call call, bytes head, bytes message) except -1
    cdef int close(self) except -1
    # private
    cdef Py_ssize_t _take_frames(self, bytes data) except -1
    cdef int _take(self, uint8_t kind, uint8_t flags, uint32_t id, const uint8_t* p,
                   size_t n) except -1
    cdef int _take_data(self, uint8_t flags, uint32_t id, const uint8_t* p, size_t n) except -1
    cdef int _take_messages(self, Call call, const char* p, size_t n) except -1
    cdef int _take_head(self, uint8_t flags, uint32_t id, const uint8_t* p, size_t n) except -1
    cdef int _take_block(self) except -1
    cdef int _take_settings(self, uint8_t flags, const uint8_t* p, size_t n) except -1
    cdef int _end_call(self, Call call) except -1
    cdef int _pump(self, Call call) except -1
    cdef int _frame(self, size_t n, uint8_t kind, uint8_t flags, uint32_t id) except -1
    cdef int _give_back(self, uint32_t id, size_t n) except -1
    cdef int _flush(self) except -1
    cdef int _fail(self, str why) except -1

# A header block of these fields, each as (name, value): literals, so that it is the same each time.
cdef bytes header_block(list fields)
