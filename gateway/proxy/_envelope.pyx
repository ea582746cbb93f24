"""See _envelope.pxd."""

import json

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memchr, memcmp, memset


cdef enum:
    MAX_NAME_BYTES = 21     # max_completion_tokens


cdef inline size_t skip_space(const char* p, size_t n, size_t at) noexcept nogil:
    while at < n and (p[at] == c" " or p[at] == c"\n" or p[at] == c"\r" or p[at] == c"\t"):
        at += 1
    return at


cdef size_t string_end(const char* p, size_t n, size_t at) noexcept nogil:
    """One past the quote that closes the string that opens at p[at]; 0: none does."""
    cdef const char* quote
    cdef size_t end, back
    at += 1
    while at < n:
        quote = <const char*>memchr(p + at, c'"', n - at)
        if quote == NULL:
            return 0
        end = quote - p
        back = end
        while back > at and p[back - 1] == c"\\":
            back -= 1
        if (end - back) & 1 == 0:
            return end + 1
        at = end + 1
    return 0


cdef Py_ssize_t value_end(const char* p, size_t n, size_t at, int max_depth) noexcept nogil:
    """One past the value that begins at p[at], or a JsonFault."""
    cdef uint64_t[8] arrays     # one bit per depth, MAX_DEPTH of them: is it an array?
    cdef int depth = 0
    cdef size_t end
    cdef char c
    cdef bint in_array
    while at < n:
        c = p[at]
        if c == c'"':
            end = string_end(p, n, at)
            if end == 0:
                return JsonFault.CUT_OFF
            at = end
        elif c == c"{" or c == c"[":
            if depth >= max_depth:
                return JsonFault.TOO_DEEP
            if c == c"[":
                arrays[depth >> 6] |= <uint64_t>1 << (depth & 63)
            else:
                arrays[depth >> 6] &= ~(<uint64_t>1 << (depth & 63))
            depth += 1
            at += 1
            continue
        elif c == c"}" or c == c"]":
            if depth == 0:
                return JsonFault.BAD_MEMBER
            depth -= 1
            in_array = (arrays[depth >> 6] >> (depth & 63)) & 1
            if in_array != (c == c"]"):
                return JsonFault.UNBALANCED
            at += 1
        elif depth:
            at += 1         # commas, colons, numbers, literals, space: the engine's to judge
            continue
        else:
            end = at
            while at < n and not (
                    p[at] == c"," or p[at] == c"}" or p[at] == c"]" or p[at] == c'"'
                    or p[at] == c"{" or p[at] == c"[" or <unsigned char>p[at] <= 32):
                at += 1
            return <Py_ssize_t>at if at > end else JsonFault.BAD_MEMBER
        if depth == 0:
            return at
    return JsonFault.CUT_OFF


cdef inline int hex_value(char c) noexcept nogil:
    if c"0" <= c <= c"9":
        return c - c"0"
    if c"a" <= (c | 32) <= c"f":
        return (c | 32) - c"a" + 10
    return -1


cdef Py_ssize_t unescape(const char* p, size_t n, char* out, size_t room) noexcept nogil:
    """The ASCII text of a JSON string's inside, in `out`; -1: longer, other text, or malformed."""
    cdef size_t at = 0, size = 0
    cdef int digit, code, k
    while at < n:
        if size == room:
            return -1
        code = <unsigned char>p[at]
        at += 1
        if code == c"\\":
            # None of our names needs an escape but \u: the others stand for signs.
            if at + 5 > n or p[at] != c"u":
                return -1
            code = 0
            for k in range(1, 5):
                digit = hex_value(p[at + k])
                if digit < 0:
                    return -1
                code = code * 16 + digit
            at += 5
        if code > 127:
            return -1
        out[size] = <char>code
        size += 1
    return size


cdef Value* member(const char* p, size_t start, size_t size, Envelope* envelope) noexcept:
    """Where the value of the name p[start:start+size] (quotes included) is kept, or NULL."""
    cdef const char* name = p + start + 1
    cdef char[MAX_NAME_BYTES] plain
    cdef Py_ssize_t plain_size
    size -= 2
    if memchr(name, c"\\", size) != NULL:
        plain_size = unescape(name, size, plain, MAX_NAME_BYTES)
        if plain_size < 0:
            return NULL
        name = plain
        size = plain_size
    if size == 5:
        if memcmp(name, b"model", 5) == 0:
            return &envelope.model
        if memcmp(name, b"input", 5) == 0:
            return &envelope.input
        if memcmp(name, b"tools", 5) == 0:
            return &envelope.tools
    if size == 6:
        if memcmp(name, b"stream", 6) == 0:
            return &envelope.stream
        if memcmp(name, b"prompt", 6) == 0:
            return &envelope.prompt
        if memcmp(name, b"system", 6) == 0:
            return &envelope.system
    if size == 8:
        if memcmp(name, b"messages", 8) == 0:
            return &envelope.messages
        if memcmp(name, b"priority", 8) == 0:
            return &envelope.priority
    if (size == 10 and (memcmp(name, b"max_tokens", 10) == 0)) or (
            size == 17 and memcmp(name, b"max_output_tokens", 17) == 0) or (
            size == 21 and memcmp(name, b"max_completion_tokens", 21) == 0):
        return &envelope.max_tokens
    if size == 10 and memcmp(name, b"cache_salt", 10) == 0:
        return &envelope.cache_salt
    if size == 10 and memcmp(name, b"text_input", 10) == 0:
        return &envelope.prompt     # Triton's generate
    if size == 12 and memcmp(name, b"instructions", 12) == 0:
        return &envelope.system
    if size == 14 and memcmp(name, b"stream_options", 14) == 0:
        return &envelope.stream_options
    if size == 18 and memcmp(name, b"kv_transfer_params", 18) == 0:
        return &envelope.kv_transfer_params
    if size == 20 and memcmp(name, b"previous_response_id", 20) == 0:
        return &envelope.previous_response_id
    return NULL


cdef int read_envelope(const char* p, size_t n, int depth, Envelope* envelope) noexcept:
    cdef size_t at = skip_space(p, n, 0)
    cdef size_t name_at, name_end
    cdef Py_ssize_t end
    cdef Value* value
    memset(envelope, 0, sizeof(Envelope))
    if at == n or p[at] != c"{":
        return JsonFault.NOT_AN_OBJECT
    envelope.brace = at
    at = skip_space(p, n, at + 1)
    if at < n and p[at] == c"}":
        return 0 if skip_space(p, n, at + 1) == n else JsonFault.TRAILING
    while at < n:
        if p[at] != c'"':
            return JsonFault.BAD_MEMBER
        name_at = at
        name_end = string_end(p, n, at)
        if name_end == 0:
            return JsonFault.CUT_OFF
        at = skip_space(p, n, name_end)
        if at < n and p[at] != c":":
            return JsonFault.BAD_MEMBER
        at = skip_space(p, n, at + 1)
        end = value_end(p, n, at, min(depth, <int>MAX_DEPTH))
        if end < 0:
            return <int>end
        value = member(p, name_at, name_end - name_at, envelope)
        if value != NULL:
            value.start = at
            value.size = end - at
        at = skip_space(p, n, end)
        if at == n:
            break
        if p[at] == c"}":
            return 0 if skip_space(p, n, at + 1) == n else JsonFault.TRAILING
        if p[at] != c",":
            return JsonFault.BAD_MEMBER
        at = skip_space(p, n, at + 1)
    return JsonFault.CUT_OFF


cdef bytes string_of(const char* p, Value value):
    if value.size < 2 or p[value.start] != c'"':
        return None
    if memchr(p + value.start, c"\\", value.size) == NULL:
        return p[value.start + 1:value.start + value.size - 1]
    try:
        return json.loads(p[value.start:value.start + value.size]).encode()
    except ValueError:
        return None


cdef int64_t number_of(const char* p, Value value) noexcept nogil:
    cdef int64_t number = 0
    cdef size_t at
    for at in range(value.start, value.start + min(value.size, <size_t>18)):
        if not c"0" <= p[at] <= c"9":
            return -1 if at == value.start else number
        number = 10 * number + p[at] - c"0"
    return number if value.size else -1


cdef bint read_integer(const char* p, size_t n, int64_t* number) noexcept nogil:
    cdef bint negative = n > 0 and p[0] == c"-"
    cdef size_t at
    if not 0 < n - negative <= 18:
        return False
    number[0] = 0
    for at in range(negative, n):
        if not c"0" <= p[at] <= c"9":
            return False
        number[0] = 10 * number[0] + p[at] - c"0"
    if negative:
        number[0] = -number[0]
    return True


cdef bint is_literal(const char* p, Value value, const char* word, size_t size) noexcept nogil:
    return value.size == size and memcmp(p + value.start, word, size) == 0


def probe(bytes body, int depth=128):
    """The envelope as a dict of raw values, or the fault: for tests and debugging."""
    cdef Envelope e
    cdef const char* p = body
    cdef int fault = read_envelope(p, len(body), depth, &e)
    if fault < 0:
        return JsonFault(fault)
    return {
        name: p[value.start:value.start + value.size]
        for name, value in (
            ("model", e.model), ("stream", e.stream), ("stream_options", e.stream_options),
            ("kv_transfer_params", e.kv_transfer_params),
            ("previous_response_id", e.previous_response_id), ("priority", e.priority),
        ) if value.size
    }
