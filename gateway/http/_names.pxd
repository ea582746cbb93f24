"""The header names a proxy must know: which is which of FieldId."""

from libc.stdint cimport uint8_t

from gateway.http._head cimport FieldId
from gateway.http._octets cimport lower
from gateway.http._words cimport equals


cdef inline uint8_t field_id(const uint8_t* p, size_t size) noexcept nogil:
    # By length, then by first letter, then one comparison at most.
    cdef uint8_t c = lower(p[0])
    if size == 2:
        if equals(p, b"te", 2):
            return FieldId.TE
    elif size == 4:
        if c == c'h' and equals(p, b"host", 4):
            return FieldId.HOST
        if c == c'd' and equals(p, b"date", 4):
            return FieldId.DATE
    elif size == 6:
        if c == c'c' and equals(p, b"cookie", 6):
            return FieldId.COOKIE
        if c == c'e' and equals(p, b"expect", 6):
            return FieldId.EXPECT
        if c == c'o' and equals(p, b"origin", 6):
            return FieldId.ORIGIN
        if c == c's' and equals(p, b"server", 6):
            return FieldId.SERVER
    elif size == 7:
        if c == c't' and equals(p, b"trailer", 7):
            return FieldId.TRAILER
        if c == c'u' and equals(p, b"upgrade", 7):
            return FieldId.UPGRADE
    elif size == 9:
        if equals(p, b"x-api-key", 9):
            return FieldId.X_API_KEY
    elif size == 10:
        if c == c'c' and equals(p, b"connection", 10):
            return FieldId.CONNECTION
        if c == c'k' and equals(p, b"keep-alive", 10):
            return FieldId.KEEP_ALIVE
    elif size == 12:
        if c == c'c' and equals(p, b"content-type", 12):
            return FieldId.CONTENT_TYPE
        if c == c'x' and equals(p, b"x-request-id", 12):
            return FieldId.X_REQUEST_ID
    elif size == 13:
        if equals(p, b"authorization", 13):
            return FieldId.AUTHORIZATION
    elif size == 14:
        if c == c'c' and equals(p, b"content-length", 14):
            return FieldId.CONTENT_LENGTH
        if c == c'h' and equals(p, b"http2-settings", 14):
            return FieldId.HTTP2_SETTINGS
    elif size == 15:
        if equals(p, b"x-vllm-priority", 15):
            return FieldId.X_VLLM_PRIORITY
    elif size == 16:
        if c == c'c' and equals(p, b"content-encoding", 16):
            return FieldId.CONTENT_ENCODING
        if c == c'p' and equals(p, b"proxy-connection", 16):
            return FieldId.PROXY_CONNECTION
    elif size == 17:
        if equals(p, b"transfer-encoding", 17):
            return FieldId.TRANSFER_ENCODING
    elif size == 18:
        if equals(p, b"proxy-authenticate", 18):
            return FieldId.PROXY_AUTHENTICATE
    elif size == 19:
        if equals(p, b"proxy-authorization", 19):
            return FieldId.PROXY_AUTHORIZATION
    elif size == 20:
        if equals(p, b"x-data-parallel-rank", 20):
            return FieldId.X_DATA_PARALLEL_RANK
    if c == c'x' and size >= 11 and equals(p, b"x-headgate-", 11):
        if size == 19 and equals(p + 11, b"priority", 8):
            return FieldId.X_HEADGATE_PRIORITY
        return FieldId.X_HEADGATE
    return FieldId.OTHER
