"""See _write.pxd."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from gateway.http._head cimport Span

cdef enum:
    # Kept from one message to the next; a larger buffer is given back when it is cleared.
    KEPT_BYTES = 128 * 1024
    # A chunk's size in hexadecimal, and the end of its line.
    CHUNK_HEAD_BYTES = 18


cdef size_t write_chunk_head(char* head, size_t size) noexcept nogil:
    """To the end of CHUNK_HEAD_BYTES; how many of them it takes."""
    cdef int at = CHUNK_HEAD_BYTES - 2
    head[at] = c"\r"
    head[at + 1] = c"\n"
    while True:
        at -= 1
        head[at] = b"0123456789abcdef"[size & 15]
        size >>= 4
        if size == 0:
            return CHUNK_HEAD_BYTES - at


cdef class Buffer:
    def __dealloc__(self):
        free(self.start)

    cdef int clear(self) except -1:
        self.size = 0
        if self.room > KEPT_BYTES:
            free(self.start)
            self.start = NULL
            self.room = 0
        return 0

    cdef int _grow(self, size_t n) except -1:
        cdef size_t room = max(self.room * 2, self.size + n, <size_t>4096)
        cdef char* start = <char*>realloc(self.start, room)
        if start == NULL:
            raise MemoryError
        self.start = start
        self.room = room
        return 0

    cdef int put_number(self, long long number) except -1:
        cdef char[20] digits
        cdef int at = 20
        if number < 0:
            raise ValueError(number)
        while True:
            at -= 1
            digits[at] = <char>(48 + number % 10)
            number //= 10
            if number == 0:
                return self.put(&digits[at], 20 - at)

    cdef int put_field(self, const char* base, Span name, Span value) except -1:
        cdef size_t n = <size_t>name.size + value.size + 4
        cdef char* at
        if self.size + n > self.room:
            self._grow(n)
        at = self.start + self.size
        memcpy(at, base + name.start, name.size)
        at += name.size
        at[0] = c":"
        at[1] = c" "
        memcpy(at + 2, base + value.start, value.size)
        at += 2 + value.size
        at[0] = c"\r"
        at[1] = c"\n"
        self.size += n
        return 0

    cdef int put_chunk_size(self, size_t size) except -1:
        cdef char[CHUNK_HEAD_BYTES] head
        cdef size_t n = write_chunk_head(head, size)
        return self.put(head + CHUNK_HEAD_BYTES - n, n)

    cdef int open_chunk(self) except -1:
        if self.room < CHUNK_HEAD_BYTES:
            self._grow(CHUNK_HEAD_BYTES)
        self.size = CHUNK_HEAD_BYTES
        return 0

    cdef bytes take_chunk(self):
        cdef size_t n
        cdef bytes chunk = None
        if self.size > CHUNK_HEAD_BYTES:
            n = write_chunk_head(self.start, self.size - CHUNK_HEAD_BYTES)
            self.put(b"\r\n", 2)
            n = CHUNK_HEAD_BYTES - n
            chunk = PyBytes_FromStringAndSize(self.start + n, self.size - n)
        self.clear()
        return chunk

    cdef bytes take(self):
        cdef bytes data = PyBytes_FromStringAndSize(self.start, self.size)
        self.clear()
        return data
