"""HTTP/1.x heads, parsed in place: spans into the caller's bytes, no Python objects.

The grammar is RFC 9112 read strictly; whatever two parsers could read in two ways is refused.
Offsets count from the pointer that was given to the parser. Nothing here allocates, blocks,
keeps a reference or raises; a verdict below zero is a `Fault`.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t

cdef enum:
    MAX_FIELDS = 100
    MAX_HEAD_BYTES = 32768
    MAX_TARGET_BYTES = 8192

cpdef enum FieldId:
    # What a header is to a proxy. OTHER passes untouched.
    OTHER = 0
    HOST = 1
    CONTENT_LENGTH = 2
    TRANSFER_ENCODING = 3
    CONTENT_TYPE = 4
    CONTENT_ENCODING = 5
    EXPECT = 6
    AUTHORIZATION = 7
    X_API_KEY = 8
    X_REQUEST_ID = 9
    ORIGIN = 10
    DATE = 11
    SERVER = 12
    COOKIE = 13
    # hop-by-hop (RFC 9110 7.6.1): never forwarded
    CONNECTION = 20
    KEEP_ALIVE = 21
    PROXY_CONNECTION = 22
    PROXY_AUTHENTICATE = 23
    PROXY_AUTHORIZATION = 24
    TE = 25
    TRAILER = 26
    UPGRADE = 27
    HTTP2_SETTINGS = 28
    NAMED_BY_CONNECTION = 29    # any other header that Connection lists
    # ours or the engine's private business: dropped from clients' requests
    X_HEADGATE = 40             # every name that begins with "x-headgate-"
    X_DATA_PARALLEL_RANK = 41
    X_VLLM_PRIORITY = 42
    X_HEADGATE_PRIORITY = 43    # read by the gateway itself

cpdef enum Fault:
    # Why a head or a body is refused. `faults.py` gives each its status and its words.
    HEAD_TOO_LARGE = -1
    TOO_MANY_FIELDS = -2
    BAD_REQUEST_LINE = -3
    BAD_METHOD = -4
    BAD_TARGET = -5
    TARGET_TOO_LONG = -6
    BAD_VERSION = -7
    BAD_STATUS_LINE = -8
    BAD_FIELD_NAME = -9
    BAD_FIELD_VALUE = -10
    OBSOLETE_FOLD = -11
    BARE_LF = -12
    BARE_CR = -13
    NO_HOST = -14
    TWO_HOSTS = -15
    BAD_HOST = -16
    BAD_CONTENT_LENGTH = -17
    TWO_CONTENT_LENGTHS = -18
    LENGTH_AND_CHUNKED = -19
    BAD_TRANSFER_ENCODING = -20
    CHUNKED_IN_HTTP_1_0 = -21
    BAD_CHUNK_SIZE = -22
    CHUNK_EXTENSION = -23
    BAD_CHUNK_END = -24
    BAD_TRAILER = -25
    BAD_EXPECTATION = -26

cdef struct Span:
    uint32_t start
    uint32_t size

cdef struct Field:
    Span name
    Span value          # without the white space around it
    uint8_t id          # FieldId

cdef struct Head:
    uint32_t size       # of the whole head, the empty line included
    int minor           # 0 or 1: HTTP/1.minor
    int status          # of a response
    Span method         # of a request, as the next two
    Span target         # origin-form as sent: path and query
    Span path           # without the query
    int n_fields
    Field fields[MAX_FIELDS]
    int64_t content_length      # -1: absent
    bint chunked
    bint close          # the connection ends after this message
    bint expect_continue
    bint upgrade        # asks for another protocol than h2c
    # index into fields, -1: absent
    int host
    int authorization
    int api_key
    int request_id
    int content_type
    int content_encoding
    int origin
    int priority

# Size of the head that begins at p[0], its empty line included; 0: not all of it is there yet.
# `seen`: how many bytes an earlier call has been through without an end (0 at first).
# A line feed without its carriage return, and more than MAX_HEAD_BYTES, are faults at once.
cdef Py_ssize_t head_end(const char* p, size_t n, size_t seen) noexcept nogil

# p[0:n] is exactly what head_end measured. 0, or a Fault; `head` is valid only after 0.
cdef int parse_request(const char* p, size_t n, Head* head) noexcept nogil
cdef int parse_response(const char* p, size_t n, Head* head) noexcept nogil
