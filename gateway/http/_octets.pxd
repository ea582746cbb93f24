"""Classes of octets in HTTP/1.x, one definition for heads and trailers."""

from libc.stdint cimport uint8_t
from libc.string cimport memchr


cdef inline bint is_digit(uint8_t c) noexcept nogil:
    return c'0' <= c <= c'9'


cdef inline uint8_t lower(uint8_t c) noexcept nogil:
    return c | 0x20 if c'A' <= c <= c'Z' else c


cdef inline bint is_letter(uint8_t c) noexcept nogil:
    return c'a' <= lower(c) <= c'z'


cdef inline bint is_blank(uint8_t c) noexcept nogil:
    # white space inside a line: SP, HTAB (RFC 9110 5.6.3)
    return c == c' ' or c == c'\t'


cdef inline bint is_token(uint8_t c) noexcept nogil:
    # tchar (RFC 9110 5.6.2)
    return is_letter(c) or is_digit(c) or (c != 0 and memchr(b"!#$%&'*+-.^_`|~", c, 15) != NULL)


cdef inline bint is_text(uint8_t c) noexcept nogil:
    # what a field value may hold: VCHAR, obs-text, SP, HTAB (RFC 9110 5.5)
    return (c >= 0x20 and c != 0x7F) or c == c'\t'


cdef inline bint is_target(uint8_t c) noexcept nogil:
    # Visible ASCII. Wider than RFC 3986 (clients send `|` and `{` as they are), but a fragment
    # never reaches a server, and what raw bytes above 0x7F mean is anybody's guess.
    return 0x20 < c < 0x7F and c != c'#'
