"""HTTP/1.1 message bodies, walked in place and resumable at any byte.

The caller feeds what it received and is told span by span what it is; nothing is copied. The
framing is decided once, from a parsed head; an error is final (`Fault`), the connection's too.
"""

from libc.stdint cimport int64_t, uint8_t

from gateway.http._head cimport Head

cpdef enum Framing:
    NO_BODY = 0
    LENGTH = 1
    CHUNKED = 2
    UNTIL_CLOSE = 3

cpdef enum Step:
    # What `walk` found. A fault (< 0) comes in its place.
    MORE = 0        # all of the input is used; the message goes on
    DATA = 1        # walker.start, walker.size: a span of payload
    CHUNK_END = 2   # an HTTP chunk, its CRLF included, ends at walker.pos (chunked only)
    END = 3         # the message ends at walker.pos; what follows is another message's

cdef struct Walker:
    uint8_t framing
    uint8_t state
    int64_t left            # payload bytes still to come in this chunk or message
    int size_digits         # of the chunk-size line under way
    int trailer_bytes
    size_t pos              # in the input under way: everything before it is dealt with
    size_t start            # of the last DATA span
    size_t size
    bint terminated         # the last chunk (size 0) has begun: no payload comes any more
    size_t last_chunk       # where the newest chunk-size line began, in the input it began in

# A request without framing has no body. A response: RFC 9112 6.3, `to_head`: it answers HEAD.
cdef void walk_request(Walker* walker, const Head* head) noexcept nogil
cdef void walk_response(Walker* walker, const Head* head, bint to_head) noexcept nogil

# The next step in p[walker.pos:n]. Set walker.pos = 0 before each new input; loop until MORE, END
# or a fault. A DATA span never crosses a chunk; zero-size spans are not reported.
# Chunk extensions are faults; trailers (up to 8 KiB) are read and dropped. UNTIL_CLOSE never
# ends by itself.
cdef int walk(Walker* walker, const char* p, size_t n) noexcept nogil
