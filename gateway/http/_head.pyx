"""The head parser: one pass over the bytes, every decision where the byte is read.

No length is checked inside the loops. They need none: a head ends in CRLF CRLF, CR and LF are in
no class of octets, so a loop over a class stops at the latest there; and the line that begins at
the last CRLF is the empty one, after which nothing is read.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp

from gateway.http._names cimport field_id
from gateway.http._octets cimport (
    is_blank, is_digit, is_letter, is_target, is_text, is_token, lower,
)
from gateway.http._words cimport equals, first_mark, load, unprintable, unusual

cdef enum:
    MAX_METHOD_BYTES = 24           # the longest registered one has 17 (UPDATEREDIRECTREF)
    MAX_LENGTH_DIGITS = 18          # 10**18 - 1 < 2**63: no overflow to look for
    MAX_PORT_DIGITS = 5
    MAX_CONNECTION_OPTIONS = 32     # each is compared with every field

cdef enum:
    # bits in CLASS
    TOKEN = 1
    TARGET = 2
    TEXT = 4
    HOST_NAME = 8

cdef uint8_t CLASS[256]


cdef bint is_host_name(uint8_t c) noexcept nogil:
    # unreserved (RFC 3986 2.3); `_` is common among container names
    return is_letter(c) or is_digit(c) or c == c'-' or c == c'.' or c == c'_' or c == c'~'


cdef void fill_classes() noexcept nogil:
    cdef int c
    for c in range(256):
        CLASS[c] = (
            (TOKEN if is_token(<uint8_t>c) else 0)
            | (TARGET if is_target(<uint8_t>c) else 0)
            | (TEXT if is_text(<uint8_t>c) else 0)
            | (HOST_NAME if is_host_name(<uint8_t>c) else 0)
        )


fill_classes()


# Where a head ends

cdef Py_ssize_t head_end(const char* p, size_t n, size_t seen) noexcept nogil:
    cdef size_t limit = n if n < MAX_HEAD_BYTES else <size_t>MAX_HEAD_BYTES
    cdef size_t i = seen
    cdef const char* found
    while i < limit:
        found = <const char*>memchr(p + i, c'\n', limit - i)
        if found == NULL:
            break
        i = found - p
        if i == 0 or p[i - 1] != c'\r':
            return BARE_LF
        # An empty line ends the head, also as its first line: the parser refuses that one.
        if i == 1 or p[i - 2] == c'\n':
            return <Py_ssize_t>(i + 1)
        i += 1
    return HEAD_TOO_LARGE if n >= MAX_HEAD_BYTES else 0


cdef inline bint is_ended(const char* p, size_t n) noexcept nogil:
    # What every loop below relies on.
    return 4 <= n <= MAX_HEAD_BYTES and memcmp(p + n - 4, b"\r\n\r\n", 4) == 0


# Text

cdef inline size_t skip_text(const uint8_t* p, size_t n, size_t i) noexcept nogil:
    # The first octet at or after p[i] that no field value may hold; eight at a time.
    cdef uint64_t marks
    while i + 8 <= n:
        marks = unprintable(load(p + i))
        if marks == 0:
            i += 8
            continue
        i += first_mark(marks)
        if not CLASS[p[i]] & TEXT:
            return i
        i += 1                      # HTAB or obs-text
    while CLASS[p[i]] & TEXT:
        i += 1
    return i


cdef inline size_t skip_token(const uint8_t* p, size_t n, size_t i) noexcept nogil:
    # The first octet at or after p[i] that no token may hold.
    cdef uint64_t marks
    while i + 8 <= n:
        marks = unusual(load(p + i))
        if marks:
            i += first_mark(marks)
            break
        i += 8
    while CLASS[p[i]] & TOKEN:
        i += 1
    return i


cdef inline bint is_word(
    const uint8_t* p, Span span, const char* lower_case, size_t size
) noexcept nogil:
    return span.size == size and equals(p + span.start, lower_case, size)


cdef bint next_element(const uint8_t* p, Span* rest, Span* element) noexcept nogil:
    # Takes the first element off a list; empty ones do not count (RFC 9110 5.6.1.2).
    cdef uint32_t i = rest.start
    cdef uint32_t end = rest.start + rest.size
    cdef const uint8_t* comma
    while i < end and (p[i] == c',' or is_blank(p[i])):
        i += 1
    element.start = i
    comma = <const uint8_t*>memchr(p + i, c',', end - i)
    i = end if comma == NULL else <uint32_t>(comma - p)
    rest.start = i
    rest.size = end - i
    while i > element.start and is_blank(p[i - 1]):
        i -= 1
    element.size = i - element.start
    return element.size > 0


# One field line

cdef int name_fault(const uint8_t* p, size_t start, size_t i) noexcept nogil:
    # p[i] ended the name that began at `start`, and is no colon.
    if i == start and is_blank(p[i]):
        return OBSOLETE_FOLD        # RFC 9112 5.2; white space before the first line: 2.2
    if p[i] == c'\r' and p[i + 1] != c'\n':
        return BARE_CR
    return BAD_FIELD_NAME           # also white space before the colon: RFC 9112 5.1


cdef int text_fault(const uint8_t* p, size_t i) noexcept nogil:
    # p[i] ended a text, and is no CRLF (RFC 9112 2.2, RFC 9110 5.5).
    if p[i] == c'\r':
        return BARE_CR
    if p[i] == c'\n':
        return BARE_LF
    return BAD_FIELD_VALUE


cdef inline Py_ssize_t read_field(
    const uint8_t* p, size_t n, size_t start, Field* field
) noexcept nogil:
    # Where the next line begins, or a Fault.
    cdef size_t i = skip_token(p, n, start)
    cdef size_t end
    if p[i] != c':' or i == start:
        return name_fault(p, start, i)
    field.name.start = <uint32_t>start
    field.name.size = <uint32_t>(i - start)
    i += 1
    while is_blank(p[i]):
        i += 1
    field.value.start = <uint32_t>i
    i = skip_text(p, n, i)
    if p[i] != c'\r' or p[i + 1] != c'\n':
        return text_fault(p, i)
    end = i
    while end > field.value.start and is_blank(p[end - 1]):
        end -= 1
    field.value.size = <uint32_t>end - field.value.start
    return <Py_ssize_t>(i + 2)


# What single fields mean

cdef int64_t length_of(const uint8_t* p, Span value) noexcept nogil:
    # RFC 9110 8.6: 1*DIGIT. A list of equal lengths is allowed to be one; it is refused here.
    cdef int64_t length = 0
    cdef uint32_t i
    if value.size == 0 or value.size > MAX_LENGTH_DIGITS:
        return BAD_CONTENT_LENGTH
    for i in range(value.start, value.start + value.size):
        if not is_digit(p[i]):
            return BAD_CONTENT_LENGTH
        length = length * 10 + (p[i] - c'0')
    return length


cdef bint is_port(const uint8_t* p, uint32_t i, uint32_t end) noexcept nogil:
    # ":" and its digits, or nothing at all.
    if i == end:
        return True
    if p[i] != c':' or end - i < 2 or end - i > 1 + MAX_PORT_DIGITS:
        return False
    i += 1
    while i < end and is_digit(p[i]):
        i += 1
    return i == end


cdef bint is_host(const uint8_t* p, Span value) noexcept nogil:
    # host[:port] (RFC 9110 7.2) with the host names that exist: of RFC 3986's reg-name no
    # percent-encoding and no sub-delims, of its IP-literals IPv6 only.
    cdef uint32_t i = value.start
    cdef uint32_t end = value.start + value.size
    cdef uint32_t first
    if i < end and p[i] == c'[':
        i += 1
        first = i
        while i < end and (is_digit(p[i]) or c'a' <= lower(p[i]) <= c'f' or c'.' == p[i]
                           or p[i] == c':'):
            i += 1
        return i > first and i < end and p[i] == c']' and is_port(p, i + 1, end)
    while CLASS[p[i]] & HOST_NAME:      # stops at the line's end at the latest
        i += 1
    return i > value.start and is_port(p, i, end)


cdef int take_host(const uint8_t* p, Head* head, int index) noexcept nogil:
    if head.host >= 0:
        return TWO_HOSTS
    head.host = index
    return 0 if is_host(p, head.fields[index].value) else BAD_HOST


cdef int take_length(const uint8_t* p, Head* head, int index) noexcept nogil:
    cdef int64_t length
    if head.content_length >= 0:
        return TWO_CONTENT_LENGTHS
    length = length_of(p, head.fields[index].value)
    if length < 0:
        return <int>length
    head.content_length = length
    return 0


cdef int take_encoding(const uint8_t* p, Head* head, int index) noexcept nogil:
    # Every other coding, and every way to say it twice, is where two parsers part.
    if head.chunked or not is_word(p, head.fields[index].value, b"chunked", 7):
        return BAD_TRANSFER_ENCODING
    head.chunked = True
    return 0


cdef int take_expect(const uint8_t* p, Head* head, int index) noexcept nogil:
    if head.minor == 0:
        return 0                    # RFC 9110 10.1.1: MUST ignore
    if not is_word(p, head.fields[index].value, b"100-continue", 12):
        return BAD_EXPECTATION
    head.expect_continue = True
    return 0


cdef int take_field(const uint8_t* p, Head* head, int index) noexcept nogil:
    # 0 or a Fault.
    cdef uint8_t id = head.fields[index].id
    if id == FieldId.HOST:
        if head.status == 0:
            return take_host(p, head, index)
    elif id == FieldId.CONTENT_LENGTH:
        return take_length(p, head, index)
    elif id == FieldId.TRANSFER_ENCODING:
        return take_encoding(p, head, index)
    elif id == FieldId.EXPECT:
        if head.status == 0:
            return take_expect(p, head, index)
    elif id == FieldId.AUTHORIZATION:
        first_index(&head.authorization, index)
    elif id == FieldId.X_API_KEY:
        first_index(&head.api_key, index)
    elif id == FieldId.X_REQUEST_ID:
        first_index(&head.request_id, index)
    elif id == FieldId.CONTENT_TYPE:
        first_index(&head.content_type, index)
    elif id == FieldId.CONTENT_ENCODING:
        first_index(&head.content_encoding, index)
    elif id == FieldId.ORIGIN:
        first_index(&head.origin, index)
    elif id == FieldId.X_HEADGATE_PRIORITY:
        first_index(&head.priority, index)
    return 0


cdef inline void first_index(int* slot, int index) noexcept nogil:
    if slot[0] < 0:
        slot[0] = index


# What Connection says of the others

cdef inline bint can_be_named(uint8_t id) noexcept nogil:
    # RFC 9110 7.6.1: "close" and hop-by-hop fields apart, a sender must not list fields that are
    # meant for all recipients. Dropping one of these would change what the message is.
    if FieldId.CONNECTION <= id <= FieldId.NAMED_BY_CONNECTION:
        return False
    return (
        id != FieldId.HOST
        and id != FieldId.CONTENT_LENGTH
        and id != FieldId.TRANSFER_ENCODING
        and id != FieldId.CONTENT_TYPE
        and id != FieldId.CONTENT_ENCODING
        and id != FieldId.AUTHORIZATION
    )


cdef void name_fields(const uint8_t* p, Head* head, Span option) noexcept nogil:
    cdef Field* field
    cdef int i
    cdef uint32_t k
    for i in range(head.n_fields):
        field = &head.fields[i]
        if field.name.size != option.size or not can_be_named(field.id):
            continue
        k = 0
        while k < option.size and lower(p[field.name.start + k]) == lower(p[option.start + k]):
            k += 1
        if k == option.size:
            field.id = FieldId.NAMED_BY_CONNECTION


cdef bint asks_upgrade(const uint8_t* p, const Head* head) noexcept nogil:
    # To h2c alone is no: the request is served as it is, in HTTP/1.1 (RFC 9110 7.8).
    cdef Span rest, element
    cdef int i
    for i in range(head.n_fields):
        if head.fields[i].id != FieldId.UPGRADE:
            continue
        rest = head.fields[i].value
        while next_element(p, &rest, &element):
            if not is_word(p, element, b"h2c", 3):
                return True
    return False


cdef int read_connection(const uint8_t* p, Head* head) noexcept nogil:
    # Sets head.close (RFC 9112 9.3) and head.upgrade, marks the fields that are named.
    cdef bint close = False, keep_alive = False, upgrade = False
    cdef int i, n_options = 0
    cdef Span rest, option
    for i in range(head.n_fields):
        if head.fields[i].id != FieldId.CONNECTION:
            continue
        rest = head.fields[i].value
        while next_element(p, &rest, &option):
            n_options += 1
            if n_options > MAX_CONNECTION_OPTIONS:
                return BAD_FIELD_VALUE
            if is_word(p, option, b"close", 5):
                close = True
            elif is_word(p, option, b"keep-alive", 10):
                keep_alive = True
            elif is_word(p, option, b"upgrade", 7):
                upgrade = True
            else:
                name_fields(p, head, option)
    head.close = close or (head.minor == 0 and not keep_alive)
    # RFC 9110 7.8: Upgrade in an HTTP/1.0 request MUST be ignored.
    head.upgrade = upgrade and head.minor == 1 and head.status == 0 and asks_upgrade(p, head)
    return 0


# Whole heads

cdef inline void clear(Head* head) noexcept nogil:
    # All but the fields: n_fields says how many of those count.
    head.size = 0
    head.minor = 1
    head.status = 0
    head.method.start = head.method.size = 0
    head.target.start = head.target.size = 0
    head.path.start = head.path.size = 0
    head.n_fields = 0
    head.content_length = -1
    head.chunked = head.close = head.expect_continue = head.upgrade = False
    head.host = head.authorization = head.api_key = head.request_id = -1
    head.content_type = head.content_encoding = head.origin = head.priority = -1


cdef int read_fields(const uint8_t* p, size_t n, size_t at, Head* head) noexcept nogil:
    cdef bint has_connection = False
    cdef Py_ssize_t next_line
    cdef Field* field
    cdef int fault
    while p[at] != c'\r' or p[at + 1] != c'\n':
        if head.n_fields == MAX_FIELDS:
            return TOO_MANY_FIELDS
        field = &head.fields[head.n_fields]
        next_line = read_field(p, n, at, field)
        if next_line < 0:
            return <int>next_line
        at = <size_t>next_line
        field.id = field_id(p + field.name.start, field.name.size)
        if field.id == FieldId.CONNECTION:
            has_connection = True
        elif field.id != FieldId.OTHER:
            fault = take_field(p, head, head.n_fields)
            if fault:
                return fault
        head.n_fields += 1
    head.size = <uint32_t>(at + 2)
    head.close = head.minor == 0
    return read_connection(p, head) if has_connection else 0


cdef inline int framing_fault(const Head* head) noexcept nogil:
    # RFC 9112 6.1: both of these are how requests are smuggled.
    if head.chunked and head.minor == 0:
        return CHUNKED_IN_HTTP_1_0
    if head.chunked and head.content_length >= 0:
        return LENGTH_AND_CHUNKED
    return 0


# Requests

cdef Py_ssize_t read_method(const uint8_t* p, Head* head) noexcept nogil:
    # Where the target begins, or a Fault.
    cdef size_t i = 0
    while CLASS[p[i]] & TOKEN:
        i += 1
    if p[i] == c'\r' or (i == 0 and p[i] == c' '):
        return BAD_REQUEST_LINE
    if p[i] != c' ' or i > MAX_METHOD_BYTES:
        return BAD_METHOD
    if i == 7 and memcmp(p, b"CONNECT", 7) == 0:
        return BAD_METHOD
    head.method.size = <uint32_t>i
    return <Py_ssize_t>(i + 1)


cdef Py_ssize_t read_target(const uint8_t* p, size_t start, Head* head) noexcept nogil:
    # Where the version begins, or a Fault. Its form is judged when the version is known.
    cdef const uint8_t* question
    cdef size_t i = start
    while CLASS[p[i]] & TARGET:
        i += 1
    if i == start or (p[i] == c'\r' and p[i + 1] == c'\n'):
        return BAD_REQUEST_LINE
    if p[i] != c' ':
        return BAD_TARGET
    if i - start > MAX_TARGET_BYTES:
        return TARGET_TOO_LONG
    head.target.start = head.path.start = <uint32_t>start
    head.target.size = head.path.size = <uint32_t>(i - start)
    question = <const uint8_t*>memchr(p + start, c'?', i - start)
    if question != NULL:
        head.path.size = <uint32_t>(question - p - start)
    return <Py_ssize_t>(i + 1)


cdef Py_ssize_t read_version(const uint8_t* p, size_t n, size_t at, Head* head) noexcept nogil:
    # Where the first field line begins, or a Fault.
    cdef size_t i = at
    if n - at >= 10 and memcmp(p + at, b"HTTP/1.", 7) == 0 and (
        p[at + 7] == c'1' or p[at + 7] == c'0'
    ) and p[at + 8] == c'\r' and p[at + 9] == c'\n':
        head.minor = p[at + 7] - c'0'
        return <Py_ssize_t>(at + 10)
    while p[i] != c'\r' and p[i] != c' ':
        i += 1
    # A third space: nothing says which of the words is the target.
    return BAD_REQUEST_LINE if p[i] == c' ' or i == at else BAD_VERSION


cdef bint is_target_form(const uint8_t* p, const Head* head) noexcept nogil:
    # origin-form, or `OPTIONS *` (RFC 9112 3.2.1, 3.2.4)
    if p[head.target.start] == c'/':
        return True
    return (
        head.target.size == 1
        and p[head.target.start] == c'*'
        and head.method.size == 7
        and memcmp(p, b"OPTIONS", 7) == 0
    )


cdef int parse_request(const char* text, size_t n, Head* head) noexcept nogil:
    cdef const uint8_t* p = <const uint8_t*>text
    cdef Py_ssize_t at
    cdef int fault
    if not is_ended(text, n):
        return BAD_REQUEST_LINE
    clear(head)
    at = read_method(p, head)
    if at > 0:
        at = read_target(p, <size_t>at, head)
    if at > 0:
        at = read_version(p, n, <size_t>at, head)
    if at < 0:
        return <int>at
    if not is_target_form(p, head):
        return BAD_TARGET
    fault = read_fields(p, n, <size_t>at, head)
    if fault:
        return fault
    if head.host < 0 and head.minor == 1:
        return NO_HOST              # RFC 9112 3.2
    return framing_fault(head)


# Responses

cdef Py_ssize_t read_status_line(const uint8_t* p, size_t n, Head* head) noexcept nogil:
    # Where the first field line begins, or a Fault.
    cdef size_t i
    if n < 16 or memcmp(p, b"HTTP/", 5) != 0:
        return BAD_STATUS_LINE
    if p[5] != c'1' or p[6] != c'.' or (p[7] != c'0' and p[7] != c'1'):
        return BAD_VERSION
    if p[8] != c' ' or not (
        c'1' <= p[9] <= c'9' and is_digit(p[10]) and is_digit(p[11])
    ):
        return BAD_STATUS_LINE
    # The space after the code MUST be there even without a reason (RFC 9112 4); many leave it out.
    if p[12] != c' ' and p[12] != c'\r':
        return BAD_STATUS_LINE
    i = skip_text(p, n, 12)
    if p[i] != c'\r' or p[i + 1] != c'\n':
        return text_fault(p, i) if p[i] == c'\r' else BAD_STATUS_LINE
    head.minor = p[7] - c'0'
    head.status = (p[9] - c'0') * 100 + (p[10] - c'0') * 10 + (p[11] - c'0')
    return <Py_ssize_t>(i + 2)


cdef int parse_response(const char* text, size_t n, Head* head) noexcept nogil:
    cdef const uint8_t* p = <const uint8_t*>text
    cdef Py_ssize_t at
    cdef int fault
    if not is_ended(text, n):
        return BAD_STATUS_LINE
    clear(head)
    at = read_status_line(p, n, head)
    if at < 0:
        return <int>at
    fault = read_fields(p, n, <size_t>at, head)
    return fault if fault else framing_fault(head)
