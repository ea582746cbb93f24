"""A cursor over one msgpack value: reads in place, makes no objects.

Every length is checked against what is left, where it is read. A fault is a ValueError that names
the byte; the cursor is of no more use then.
"""

from libc.stdint cimport uint32_t, uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>

    /* Of each head byte: how many bytes the value takes with its head, 0 where they are not fixed
       or it is no unsigned integer of 32 bits; how far 8 bytes from the head on, as a big-endian
       number, have to go left and right to leave the integer. */
    struct headgate_small { unsigned char step, left, right; };
    #define FIX {1, 0, 56}
    #define FIX8 FIX, FIX, FIX, FIX, FIX, FIX, FIX, FIX
    #define FIX64 FIX8, FIX8, FIX8, FIX8, FIX8, FIX8, FIX8, FIX8
    static const struct headgate_small headgate_smalls[256] = {
        FIX64, FIX64, [0xcc] = {2, 8, 56}, [0xcd] = {3, 8, 48}, [0xce] = {5, 8, 32},
    };
    #undef FIX64
    #undef FIX8
    #undef FIX

    /* As many tokens as lie there in a row and have 8 bytes to read; their count. No branch
       depends on a token's width: widths change from token to token, and a wrong guess would
       cost more than all the rest. */
    static inline size_t headgate_tokens(const unsigned char **at, const unsigned char *end,
                                         uint32_t *out, size_t n) {
        const unsigned char *p = *at;
        size_t i = 0;
        while (i < n && end - p >= 8) {
            const struct headgate_small *small = &headgate_smalls[*p];
            uint64_t word;
            if (!small->step)
                break;
            memcpy(&word, p, 8);
            out[i++] = (uint32_t)(__builtin_bswap64(word) << small->left >> small->right);
            p += small->step;
        }
        *at = p;
        return i;
    }
    static inline uint64_t headgate_big_endian(const unsigned char *p, int width) {
        uint64_t value = 0;
        while (width--)
            value = value << 8 | *p++;
        return value;
    }
    """
    size_t tokens_in_row "headgate_tokens"(const unsigned char** at, const unsigned char* end,
                                           uint32_t* out, size_t n) noexcept nogil
    uint64_t big_endian "headgate_big_endian"(const unsigned char* p, int width) noexcept nogil

cdef enum Kind:
    NIL
    BOOL
    UINT
    NEGATIVE
    FLOAT32
    FLOAT64
    STR
    BIN
    EXT
    ARRAY
    MAP

cdef struct Cursor:
    const unsigned char* start
    const unsigned char* p
    const unsigned char* end

cdef struct Item:
    int kind
    # The number (two's complement), a float's bits, the bytes that follow, or the elements.
    uint64_t value

cdef struct Span:
    const unsigned char* p      # NULL: none
    size_t n

# Grow only; free `p` in the end.
cdef struct Tokens:
    uint32_t* p
    size_t n
    size_t room

cdef struct Hashes:
    uint64_t* p
    size_t n
    size_t room

cdef void open_cursor(Cursor* cursor, const void* p, size_t size) noexcept nogil
# The head of the next value; of a string, what follows is still to be passed over.
cdef int read_item(Cursor* cursor, Item* item) except -1
cdef int skip(Cursor* cursor) except -1
# Passes over a nil, if that is what comes next.
cdef inline bint take_nil(Cursor* cursor) noexcept nogil:
    if cursor.p < cursor.end and cursor.p[0] == 0xc0:
        cursor.p += 1
        return True
    return False
# Takes a string of up to 31 bytes, if that is what comes next, whole: most are.
cdef inline bint take_short(Cursor* cursor, Span* span) noexcept nogil:
    cdef size_t n
    if cursor.p >= cursor.end:
        return False
    n = <size_t>cursor.p[0] - 0xa0      # of a lower head: a very large number
    if n > 31 or n >= <size_t>(cursor.end - cursor.p):
        return False
    span.p = cursor.p + 1
    span.n = n
    cursor.p += 1 + n
    return True
# How many elements follow.
cdef int read_array(Cursor* cursor, size_t* n) except -1
# A string or bytes.
cdef int read_span(Cursor* cursor, Span* span) except -1
cdef int read_uint(Cursor* cursor, uint64_t* value) except -1
cdef int read_float(Cursor* cursor, double* value) except -1
# An engine's block hash: an integer modulo 2**64, or of a string the first 8 bytes.
cdef int read_hash(Cursor* cursor, uint64_t* value) except -1
cdef int read_hashes(Cursor* cursor, Hashes* hashes) except -1
cdef int read_tokens(Cursor* cursor, Tokens* tokens) except -1
cdef int fail(Cursor* cursor, str what) except -1
