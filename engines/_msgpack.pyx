"""See _msgpack.pxd."""

from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport realloc
from libc.string cimport memcpy

cdef enum:
    CUT = -1
    NO_TYPE = -2

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    static inline float headgate_float(uint32_t bits) {
        float value;
        memcpy(&value, &bits, 4);
        return value;
    }
    static inline double headgate_double(uint64_t bits) {
        double value;
        memcpy(&value, &bits, 8);
        return value;
    }
    """
    float float_of "headgate_float"(uint32_t bits) noexcept nogil
    double double_of "headgate_double"(uint64_t bits) noexcept nogil

# Of the types 0xc0 to 0xdf: their kind, and how many bytes of number or length follow.
cdef signed char[32] KINDS = [
    NIL, NO_TYPE, BOOL, BOOL, BIN, BIN, BIN, EXT, EXT, EXT, FLOAT32, FLOAT64,
    UINT, UINT, UINT, UINT, NEGATIVE, NEGATIVE, NEGATIVE, NEGATIVE,
    EXT, EXT, EXT, EXT, EXT, STR, STR, STR, ARRAY, ARRAY, MAP, MAP,
]
cdef signed char[32] WIDTHS = [
    0, 0, 0, 0, 1, 2, 4, 1, 2, 4, 4, 8,
    1, 2, 4, 8, 1, 2, 4, 8,
    0, 0, 0, 0, 0, 1, 2, 4, 2, 4, 2, 4,
]
cdef tuple NAMES = (
    "nil", "a boolean", "an integer", "a negative integer", "a float", "a float", "a string",
    "bytes", "an extension", "an array", "a map",
)


cdef void open_cursor(Cursor* cursor, const void* p, size_t size) noexcept nogil:
    cursor.start = cursor.p = <const unsigned char*>p
    cursor.end = cursor.p + size


cdef inline int next_item(Cursor* cursor, Item* item) noexcept nogil:
    """0, CUT or NO_TYPE. All bounds are checked here."""
    cdef size_t left = cursor.end - cursor.p
    cdef unsigned char head
    cdef int width
    if left == 0:
        return CUT
    head = cursor.p[0]
    cursor.p += 1
    left -= 1
    if head < 0x80:
        item.kind = UINT
        item.value = head
        return 0
    if head >= 0xe0:
        item.kind = NEGATIVE
        item.value = <uint64_t><int64_t><int8_t>head
        return 0
    if head >= 0xc0:
        item.kind = KINDS[head - 0xc0]
        width = WIDTHS[head - 0xc0]
        if <size_t>width > left:
            return CUT
        item.value = big_endian(cursor.p, width)
        cursor.p += width
        left -= width
        if item.kind == NEGATIVE:
            item.value = signed(item.value, width)
            if <int64_t>item.value >= 0:
                item.kind = UINT
            return 0
        if item.kind == EXT:
            # One byte more, of its type.
            item.value = 1 + (item.value if width else <uint64_t>1 << (head - 0xd4))
        elif head == 0xc3:
            item.value = 1
    elif head >= 0xa0:
        item.kind = STR
        item.value = head & 31
    else:
        item.kind = ARRAY if head & 0x10 else MAP
        item.value = head & 15
    if item.kind < STR:
        return 0 if item.kind >= 0 else NO_TYPE
    # An element takes a byte at least: what is promised beyond that cannot be there.
    return CUT if item.value > (left >> 1 if item.kind == MAP else left) else 0


cdef inline uint64_t signed(uint64_t value, int width) noexcept nogil:
    if width == 1:
        return <uint64_t><int64_t><int8_t>value
    if width == 2:
        return <uint64_t><int64_t><int16_t>value
    if width == 4:
        return <uint64_t><int64_t><int32_t>value
    return value


cdef int fail(Cursor* cursor, str what) except -1:
    raise ValueError(f"byte {cursor.p - cursor.start}: {what}")


cdef int read_item(Cursor* cursor, Item* item) except -1:
    cdef int fault = next_item(cursor, item)
    if fault == CUT:
        fail(cursor, "cut short")
    if fault == NO_TYPE:
        fail(cursor, "0xc1 is no type of msgpack")
    return 0


cdef inline bint is_one_byte(unsigned char head) noexcept nogil:
    """A small integer, or nil."""
    return head < 0x80 or head >= 0xe0 or head == 0xc0


cdef int skip(Cursor* cursor) except -1:
    cdef uint64_t left = 1
    cdef Item item
    while left:
        left -= 1
        if cursor.p < cursor.end and is_one_byte(cursor.p[0]):
            cursor.p += 1
            continue
        read_item(cursor, &item)
        if item.kind == ARRAY:
            left += item.value
        elif item.kind == MAP:
            left += 2 * item.value
        elif item.kind >= STR:
            cursor.p += item.value
    return 0


cdef int refuse(Cursor* cursor, const Item* item, str wanted) except -1:
    return fail(cursor, f"{NAMES[item.kind]} where {wanted} belongs")


cdef int read_array(Cursor* cursor, size_t* n) except -1:
    cdef Item item
    cdef size_t small
    if cursor.p < cursor.end:
        small = <size_t>cursor.p[0] - 0x90
        if small < 16 and small < <size_t>(cursor.end - cursor.p):
            cursor.p += 1
            n[0] = small
            return 0
    read_item(cursor, &item)
    if item.kind != ARRAY:
        refuse(cursor, &item, "an array")
    n[0] = item.value
    return 0


cdef int read_span(Cursor* cursor, Span* span) except -1:
    cdef Item item
    if take_short(cursor, span):
        return 0
    read_item(cursor, &item)
    if item.kind != STR and item.kind != BIN:
        refuse(cursor, &item, "a string")
    span.p = cursor.p
    span.n = item.value
    cursor.p += item.value
    return 0


cdef int read_uint(Cursor* cursor, uint64_t* value) except -1:
    cdef Item item
    if cursor.p < cursor.end and cursor.p[0] < 0x80:
        value[0] = cursor.p[0]
        cursor.p += 1
        return 0
    read_item(cursor, &item)
    if item.kind != UINT:
        refuse(cursor, &item, "an unsigned integer")
    value[0] = item.value
    return 0


cdef int read_float(Cursor* cursor, double* value) except -1:
    cdef Item item
    read_item(cursor, &item)
    if item.kind == FLOAT64:
        value[0] = double_of(item.value)
    elif item.kind == FLOAT32:
        value[0] = float_of(<uint32_t>item.value)
    elif item.kind == UINT:
        value[0] = <double>item.value
    elif item.kind == NEGATIVE:
        value[0] = <double><int64_t>item.value
    else:
        refuse(cursor, &item, "a number")
    return 0


cdef int read_hash(Cursor* cursor, uint64_t* value) except -1:
    cdef Item item
    read_item(cursor, &item)
    if item.kind == UINT or item.kind == NEGATIVE:
        value[0] = item.value
    elif item.kind == BIN or item.kind == STR:
        if item.value < 8:
            fail(cursor, f"a block hash of {item.value} bytes, fewer than 8")
        memcpy(value, cursor.p, 8)
        cursor.p += item.value
    else:
        refuse(cursor, &item, "a block hash")
    return 0


cdef int read_hashes(Cursor* cursor, Hashes* hashes) except -1:
    cdef size_t n, at
    read_array(cursor, &n)
    hashes.n = 0
    if n > hashes.room:
        hashes.p = <uint64_t*>roomier(hashes.p, n * sizeof(uint64_t))
        hashes.room = n
    for at in range(n):
        if cursor.end - cursor.p >= 9 and cursor.p[0] == 0xcf:
            hashes.p[at] = big_endian(cursor.p + 1, 8)
            cursor.p += 9
        else:
            read_hash(cursor, &hashes.p[at])
    hashes.n = n
    return 0


cdef int read_tokens(Cursor* cursor, Tokens* tokens) except -1:
    cdef size_t n, at = 0
    cdef uint64_t token
    read_array(cursor, &n)
    tokens.n = 0
    if n > tokens.room:
        tokens.p = <uint32_t*>roomier(tokens.p, n * sizeof(uint32_t))
        tokens.room = n
    while at < n:
        at += tokens_in_row(&cursor.p, cursor.end, tokens.p + at, n - at)
        if at < n:
            read_uint(cursor, &token)
            if token > 0xffffffff:
                fail(cursor, f"token {token} is none of 32 bits")
            tokens.p[at] = <uint32_t>token
            at += 1
    tokens.n = n
    return 0


cdef void* roomier(void* before, size_t size) except NULL:
    cdef void* p = realloc(before, size)
    if p == NULL:
        raise MemoryError
    return p
