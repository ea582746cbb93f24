"""The body walker: a small machine for chunks, plain subtraction for lengths.

    SIZE -CR-> SIZE_LF -LF-> DATA_LEFT -> DATA_CR -> DATA_LF -> SIZE            a chunk
                        \\-> LINE -> NAME -> VALUE -> VALUE_LF -> LINE          trailers
                                \\-CR-> END_LF -LF-> OVER                       the end

One state per place where an input may stop. A fault keeps the machine in BROKEN, with the fault
in `left`.
"""

from libc.stdint cimport int64_t, uint8_t

from gateway.http._head cimport Fault, Head
from gateway.http._octets cimport is_digit, is_text, is_token, lower

cdef enum:
    MAX_SIZE_DIGITS = 8             # 4 GiB in one chunk; leading zeros count
    MAX_TRAILER_BYTES = 8192

cdef enum:
    SIZE = 0        # in a chunk-size line
    SIZE_LF = 1
    DATA_LEFT = 2   # in a chunk's payload
    DATA_CR = 3
    DATA_LF = 4
    LINE = 5        # at the start of a trailer line, or of the empty line that ends it all
    NAME = 6
    VALUE = 7
    VALUE_LF = 8
    END_LF = 9
    OVER = 10
    BROKEN = 11


cdef inline void begin(Walker* walker, uint8_t framing, int64_t left) noexcept nogil:
    walker.framing = framing
    walker.state = SIZE
    walker.left = left
    walker.size_digits = 0
    walker.trailer_bytes = 0
    walker.pos = 0
    walker.start = 0
    walker.size = 0
    walker.terminated = False
    walker.last_chunk = 0


cdef inline void begin_framed(Walker* walker, const Head* head, uint8_t unframed) noexcept nogil:
    if head.chunked:
        begin(walker, Framing.CHUNKED, 0)
    elif head.content_length >= 0:
        begin(walker, Framing.LENGTH, head.content_length)
    else:
        begin(walker, unframed, 0)


cdef void walk_request(Walker* walker, const Head* head) noexcept nogil:
    begin_framed(walker, head, Framing.NO_BODY)


cdef void walk_response(Walker* walker, const Head* head, bint to_head) noexcept nogil:
    # RFC 9112 6.3, rule 1: whatever the fields say
    if to_head or head.status < 200 or head.status == 204 or head.status == 304:
        begin(walker, Framing.NO_BODY, 0)
    else:
        begin_framed(walker, head, Framing.UNTIL_CLOSE)


cdef inline int take_data(Walker* walker, size_t size) noexcept nogil:
    walker.start = walker.pos
    walker.size = size
    walker.pos += size
    return Step.DATA


cdef inline int take_left(Walker* walker, size_t n) noexcept nogil:
    # As much of `left` as there is; not called with nothing to take.
    cdef size_t size = n - walker.pos
    if <int64_t>size > walker.left:
        size = <size_t>walker.left
    walker.left -= <int64_t>size
    return take_data(walker, size)


cdef int fail(Walker* walker, int fault) noexcept nogil:
    walker.state = BROKEN
    walker.left = fault
    return fault


cdef inline int hex_digit(uint8_t c) noexcept nogil:
    # -1: none
    if is_digit(c):
        return c - c'0'
    c = lower(c)
    return c - c'a' + 10 if c'a' <= c <= c'f' else -1


cdef int read_size(Walker* walker, const uint8_t* p, size_t n) noexcept nogil:
    # chunk-size (RFC 9112 7.1), digits and nothing else. 0 or a Fault.
    cdef int digit
    if walker.size_digits == 0:
        walker.last_chunk = walker.pos
    while walker.pos < n:
        digit = hex_digit(p[walker.pos])
        if digit < 0:
            return end_size(walker, p[walker.pos])
        if walker.size_digits == MAX_SIZE_DIGITS:
            return fail(walker, Fault.BAD_CHUNK_SIZE)
        walker.left = walker.left * 16 + digit
        walker.size_digits += 1
        walker.pos += 1
    return 0


cdef inline int end_size(Walker* walker, uint8_t c) noexcept nogil:
    if walker.size_digits == 0:
        return fail(walker, Fault.BAD_CHUNK_SIZE)
    if c == c'\r':
        walker.state = SIZE_LF
        walker.pos += 1
        return 0
    if c == c';':
        return fail(walker, Fault.CHUNK_EXTENSION)
    return fail(walker, Fault.BARE_LF if c == c'\n' else Fault.BAD_CHUNK_SIZE)


cdef inline void begin_chunk(Walker* walker) noexcept nogil:
    walker.size_digits = 0
    if walker.left > 0:
        walker.state = DATA_LEFT
    else:
        walker.terminated = True
        walker.state = LINE


cdef int read_trailer(Walker* walker, uint8_t c) noexcept nogil:
    # One octet of the trailer section: field lines (RFC 9112 7.1.2), read to be dropped. 0 or a
    # Fault.
    walker.trailer_bytes += 1
    if walker.trailer_bytes > MAX_TRAILER_BYTES:
        return fail(walker, Fault.BAD_TRAILER)
    if walker.state == VALUE and is_text(c):
        return 0
    if c == c'\n':
        return fail(walker, Fault.BARE_LF)
    if walker.state == VALUE and c == c'\r':
        walker.state = VALUE_LF
    elif walker.state == LINE and c == c'\r':
        walker.state = END_LF
    elif walker.state == NAME and c == c':':
        walker.state = VALUE
    elif walker.state != VALUE and is_token(c):
        walker.state = NAME
    else:
        return fail(walker, Fault.BAD_TRAILER)
    return 0


cdef int walk_chunks(Walker* walker, const uint8_t* p, size_t n) noexcept nogil:
    cdef int fault
    cdef uint8_t c
    while walker.pos < n:
        if walker.state == DATA_LEFT:
            if walker.left > 0:
                return take_left(walker, n)
            walker.state = DATA_CR
        if walker.state == SIZE:
            fault = read_size(walker, p, n)
            if fault:
                return fault
            continue
        if walker.state >= OVER:
            break
        c = p[walker.pos]
        if LINE <= walker.state <= VALUE:
            fault = read_trailer(walker, c)
            if fault:
                return fault
            walker.pos += 1
            continue
        if walker.state == DATA_CR:
            if c != c'\r':
                return fail(walker, Fault.BAD_CHUNK_END)
            walker.state = DATA_LF
            walker.pos += 1
            continue
        # what is left awaits a line feed
        if c != c'\n':
            return fail(walker, Fault.BAD_CHUNK_END if walker.state == DATA_LF else Fault.BARE_CR)
        walker.pos += 1
        if walker.state == SIZE_LF:
            begin_chunk(walker)
        elif walker.state == DATA_LF:
            walker.state = SIZE
            return Step.CHUNK_END
        elif walker.state == VALUE_LF:
            walker.state = LINE
        else:
            walker.state = OVER
    if walker.state == BROKEN:
        return <int>walker.left
    return Step.END if walker.state == OVER else Step.MORE


cdef int walk(Walker* walker, const char* p, size_t n) noexcept nogil:
    if walker.framing == Framing.CHUNKED:
        return walk_chunks(walker, <const uint8_t*>p, n)
    if walker.framing == Framing.LENGTH:
        if walker.left == 0:
            return Step.END
        return take_left(walker, n) if walker.pos < n else Step.MORE
    if walker.framing == Framing.UNTIL_CLOSE:
        return take_data(walker, n - walker.pos) if walker.pos < n else Step.MORE
    return Step.END
