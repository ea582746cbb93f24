"""One KV event of an engine, read from the wire: an array or a map, as the release has it.

Its texts stay where they came: they hold as long as the payload.
"""

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcmp

from engines._msgpack cimport Cursor, Hashes, Span, Tokens

cdef enum:
    NO_EVENT        # none that concerns us
    STORED
    REMOVED
    CLEARED

cdef struct Event:
    int type
    bint has_parent
    uint64_t parent
    uint64_t block_tokens
    int64_t group           # -1: none is named
    Span medium
    Span lora
    Span spec_kind
    Span lora_id            # its msgpack
    Span extras             # its msgpack

# The blocks of an event and their tokens come to `hashes` and `tokens`. ValueError: it is none.
cdef int read_event(Cursor* cursor, Event* event, Hashes* hashes, Tokens* tokens) except -1

# The key of a map; one that is no string is like one that we do not know.
cdef int read_key(Cursor* cursor, Span* key) except -1
# -1: nil.
cdef int64_t read_number_or_nil(Cursor* cursor) except? -2

# The cache salt (its msgpack): the one text beside the adapter's name at the first block.
cdef int find_salt(const Event* event, Span* salt) except -1
# Attention of this kind sees every block; absent, there is one group only.
cdef bint spans_the_prompt(const Span* kind) noexcept nogil
# Whether a value in its msgpack is this string.
cdef bint is_same_text(const Span* raw, const Span* text) except -1

cdef inline bint is_text(const Span* span, const char* text, size_t n) noexcept nogil:
    return span.n == n and memcmp(span.p, text, n) == 0

cdef inline bytes text_of(const Span* span):
    return span.p[:span.n] if span.p != NULL else b""
