"""See _events.pxd."""

from libc.stdint cimport int64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memchr, memcmp, memcpy, memmove

cdef extern from "string.h" nogil:
    # glibc and musl have it; Cython's libc.string does not list it.
    void* memmem(const void* haystack, size_t n, const void* needle, size_t m)


cdef class Scanner:
    def __cinit__(self):
        self.reset(EndMark.NO_MARK)

    def __dealloc__(self):
        free(self.tail)

    cdef void reset(self, int end_mark) noexcept nogil:
        # A stream's buffer is given back at its end: idle connections shall be small.
        free(self.tail)
        self.tail = NULL
        self.tail_size = self.tail_room = 0
        self.in_event = self.skipping = self.over = self.failed = self.line_is_cr = False
        self.line_size = 0
        self.end_mark = end_mark
        self.n_events = 0
        self.usage.tokens_in = self.usage.tokens_out = self.usage.cached = -1

    cdef int feed(self, const char* p, size_t n) except -1:
        cdef size_t at = 0, event_start = 0, line_end
        cdef const char* found
        cdef int64_t before = self.n_events
        cdef bint empty
        while at < n:
            found = <const char*>memchr(p + at, c"\n", n - at)
            if found == NULL:
                break
            line_end = found - p
            if self.line_size:
                empty = self.line_is_cr and line_end == at
            else:
                empty = line_end == at or (line_end == at + 1 and p[at] == c"\r")
            self.line_size = 0
            self.line_is_cr = False
            at = line_end + 1
            if empty:
                self._end_event(p + event_start, at - event_start)
                event_start = at
        if event_start < n:
            self.line_is_cr = self.line_size == 0 and n - at == 1 and p[at] == c"\r"
            self.line_size += n - at
            self.in_event = True
            self._keep(p + event_start, n - event_start)
        return <int>(self.n_events - before)

    cdef int _keep(self, const char* p, size_t n) except -1:
        cdef char* tail
        if self.skipping or self.tail_size + n > MAX_EVENT_BYTES:
            self.skipping = True
            return 0
        if self.tail_size + n > self.tail_room:
            tail = <char*>realloc(self.tail, max(self.tail_room * 2, self.tail_size + n))
            if tail == NULL:
                raise MemoryError
            self.tail = tail
            self.tail_room = max(self.tail_room * 2, self.tail_size + n)
        memcpy(self.tail + self.tail_size, p, n)
        self.tail_size += n
        return 0

    cdef int _end_event(self, const char* p, size_t n) except -1:
        if not self.in_event:
            self._look_into(p, n)
            return 0
        self._keep(p, n)
        if self.skipping:
            self.n_events += 1
        else:
            self._look_into(self.tail, self.tail_size)
        self.tail_size = 0
        self.in_event = self.skipping = False
        return 0

    cdef void _look_into(self, const char* p, size_t n) noexcept nogil:
        cdef const char* data = p
        cdef size_t size
        if n < 5 or memcmp(p, b"data:", 5) != 0:
            data = <const char*>memmem(p, n, b"\ndata:", 6)
            if data == NULL:
                return                      # comments alone are no progress
            data += 1
        data += 5
        size = n - (data - p)
        if size and data[0] == c" ":
            data += 1
            size -= 1
        if size >= 6 and memcmp(data, b"[DONE]", 6) == 0:
            self.over = True
            return
        self.n_events += 1
        if size >= 8 and memcmp(data, b'{"error"', 8) == 0:
            self.failed = not _is_clients_fault(data, data + size)
        self._look_for_end(data, size)
        self.read_usage(data, size)

    cdef void _look_for_end(self, const char* data, size_t size) noexcept nogil:
        # Both dialects begin each event with its type: {"type":"message_stop"}.
        cdef size_t near = size if size < 64 else 64
        if self.end_mark == <int>EndMark.MESSAGE_STOP:
            if memmem(data, near, b'"message_stop"', 14) != NULL:
                self.over = True
            elif memmem(data, near, b'"type":"error"', 14) != NULL:
                self.failed = True
        elif self.end_mark == <int>EndMark.RESPONSE_OVER:
            if (memmem(data, near, b'"response.completed"', 20) != NULL
                    or memmem(data, near, b'"response.incomplete"', 21) != NULL
                    or memmem(data, near, b'"response.failed"', 17) != NULL):
                self.over = True
            elif memmem(data, near, b'"type":"error"', 14) != NULL:
                self.failed = True

    cdef int feed_json(self, const char* p, size_t n) except -1:
        cdef size_t keep
        cdef char* tail
        if self.tail == NULL:
            tail = <char*>realloc(self.tail, JSON_TAIL_BYTES)
            if tail == NULL:
                raise MemoryError
            self.tail = tail
            self.tail_room = JSON_TAIL_BYTES
        if n >= JSON_TAIL_BYTES:
            memcpy(self.tail, p + n - JSON_TAIL_BYTES, JSON_TAIL_BYTES)
            self.tail_size = JSON_TAIL_BYTES
            return 0
        if self.tail_size + n > JSON_TAIL_BYTES:
            keep = JSON_TAIL_BYTES - n
            memmove(self.tail, self.tail + self.tail_size - keep, keep)
            self.tail_size = keep
        memcpy(self.tail + self.tail_size, p, n)
        self.tail_size += n
        return 0

    cdef void finish_json(self) noexcept nogil:
        if self.tail != NULL:
            self.read_usage(self.tail, self.tail_size)

    cdef void read_usage(self, const char* p, size_t n) noexcept nogil:
        cdef const char* end = p + n
        cdef const char* at = p
        cdef const char* stop
        while True:
            at = _find_usage(at, end)
            if at == NULL:
                return
            at = _value(at + 7, end)
            if at == NULL:
                return
            if at[0] == c"{":
                stop = _object_end(at, end)
                _read_counts(at, stop, &self.usage)
                at = stop


cdef bint _is_clients_fault(const char* at, const char* end) noexcept nogil:
    """Does an error event carry a code of 400..499? Then the engine is well."""
    at = <const char*>memmem(at, end - at, b'"code"', 6)
    if at == NULL:
        return False
    at = _value(at + 6, end)
    return (
        at != NULL and end - at >= 3 and at[0] == c"4"
        and c"0" <= at[1] <= c"9" and c"0" <= at[2] <= c"9"
    )


cdef const char* _value(const char* at, const char* end) noexcept nogil:
    """Where the value begins behind a name that ended at `at`; NULL: nowhere."""
    while at < end and (at[0] == c" " or at[0] == c":"):
        at += 1
    if at == end:
        return NULL
    return at


cdef const char* _object_end(const char* at, const char* end) noexcept nogil:
    """One past the brace that closes the object at `at`; usage objects hold no strings."""
    cdef int depth = 0
    while at < end:
        if at[0] == c"{":
            depth += 1
        elif at[0] == c"}":
            depth -= 1
            if depth == 0:
                return at + 1
        at += 1
    return end


cdef const char* _find_usage(const char* at, const char* end) noexcept nogil:
    # glibc's memmem fills a table of 256 bytes before it looks: more than most events are long.
    while end - at >= 7:
        at = <const char*>memchr(at + 4, c"g", end - at - 6)
        if at == NULL:
            return NULL
        at -= 4
        if memcmp(at, b'"usage"', 7) == 0:
            return at
        at += 1
    return NULL


cdef void _read_counts(const char* at, const char* end, Usage* usage) noexcept nogil:
    # One pass over all names, those of nested objects too.
    cdef const char* name
    cdef size_t size
    while True:
        at = <const char*>memchr(at, c'"', end - at)
        if at == NULL:
            return
        name = at + 1
        at = <const char*>memchr(name, c'"', end - name)
        if at == NULL:
            return
        size = at - name
        at += 1
        if size == 13:
            if memcmp(name, b"prompt_tokens", 13) == 0:
                _read_number(at, end, &usage.tokens_in)
            elif memcmp(name, b"output_tokens", 13) == 0:
                _read_number(at, end, &usage.tokens_out)
            elif memcmp(name, b"cached_tokens", 13) == 0:
                _read_number(at, end, &usage.cached)
        elif size == 12 and memcmp(name, b"input_tokens", 12) == 0:
            _read_number(at, end, &usage.tokens_in)
        elif size == 17 and memcmp(name, b"completion_tokens", 17) == 0:
            _read_number(at, end, &usage.tokens_out)
        elif size == 23 and memcmp(name, b"cache_read_input_tokens", 23) == 0:
            _read_number(at, end, &usage.cached)


cdef void _read_number(const char* at, const char* end, int64_t* number) noexcept nogil:
    cdef int64_t value = 0
    cdef int digits = 0
    at = _value(at, end)
    if at == NULL:
        return
    while at < end and digits < 18 and c"0" <= at[0] <= c"9":
        value = value * 10 + (at[0] - c"0")
        digits += 1
        at += 1
    # More than any model's context is no count, and sums must not overflow.
    if digits and value < <int64_t>1 << 32:
        number[0] = value
