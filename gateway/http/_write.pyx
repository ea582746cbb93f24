"""See _write.pxd."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from gateway.http._head cimport Span

cdef enum:
    # Kept from one message to the next; a larger buffer is given back when it is cleared.
    KEPT_BYTES = 128 * 1024


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
        cdef char[18] digits
        cdef int at = 16
        digits[16] = b"\r"
        digits[17] = b"\n"
        while True:
            at -= 1
            digits[at] = b"0123456789abcdef"[size & 15]
            size >>= 4
            if size == 0:
                return self.put(&digits[at], 18 - at)

    cdef bytes take(self):
        cdef bytes data = PyBytes_FromStringAndSize(self.start, self.size)
        self.clear()
        return data
