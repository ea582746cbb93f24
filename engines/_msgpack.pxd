"""A cursor over one msgpack value: reads in place, makes no objects.

Every length is checked against what is left, where it is read. A fault is a ValueError that names
the byte; the cursor is of no more use then.
"""

from libc.stdint cimport uint32_t, uint64_t

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
cdef bint take_nil(Cursor* cursor) noexcept nogil
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
