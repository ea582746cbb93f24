"""What the gateway reads of a request's JSON body: the spans of a few values, nothing decoded.

Lenient on purpose: whatever an engine can judge for itself is passed. Refused is only what cannot
be read at all: no object, brackets that do not match, too many of them open at once, bytes behind
the end. Of a name that stands twice the last counts, as in Python's own json, which the engines
use; names are compared with their escapes undone, so that no spelling of `model` is overlooked.
"""

from libc.stdint cimport int64_t

cdef enum:
    MAX_DEPTH = 512

cpdef enum JsonFault:
    NOT_AN_OBJECT = -1
    CUT_OFF = -2
    UNBALANCED = -3
    TOO_DEEP = -4
    TRAILING = -5
    BAD_MEMBER = -6

cdef struct Value:
    # The raw value of a member; size 0: absent. A string's quotes belong to it.
    size_t start
    size_t size

cdef struct Envelope:
    Value model
    Value stream
    Value stream_options
    Value kv_transfer_params
    Value previous_response_id
    # the prompt, in whichever dialect
    Value tools
    Value system
    Value messages
    Value prompt
    Value input
    Value cache_salt
    Value max_tokens            # or max_completion_tokens, max_output_tokens
    Value priority
    size_t brace                # where the object begins

# 0, or a JsonFault; at most `depth` (up to MAX_DEPTH) brackets open within a member. Strings are
# passed over by memchr: the cost is that of reading the body once.
cdef int read_envelope(const char* p, size_t n, int depth, Envelope* envelope) noexcept
# The text of a string value, escapes undone; None: not a string, or one with a wrong escape.
cdef bytes string_of(const char* p, Value value)
# A number's whole part; -1: it is none.
cdef int64_t number_of(const char* p, Value value) noexcept nogil
# The value of a whole number, its sign included, as far as it goes; False: it is none.
cdef bint read_integer(const char* p, size_t n, int64_t* number) noexcept nogil
cdef bint is_literal(const char* p, Value value, const char* word, size_t size) noexcept nogil
