"""A growing byte buffer for heads and chunks, written in C and taken as one `bytes`."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cython cimport final
from libc.string cimport memcpy

from gateway.http._head cimport Span

cdef class Buffer:
    cdef char* start
    cdef size_t size
    cdef size_t room
    # All of these raise MemoryError when memory runs out, and nothing else.
    cdef int clear(self) except -1

    # Inline: a head is some forty of these.
    @final
    cdef inline int put(self, const char* p, size_t n) except -1:
        if self.size + n > self.room:
            self._grow(n)
        memcpy(self.start + self.size, p, n)
        self.size += n
        return 0

    @final
    cdef inline int put_bytes(self, bytes data) except -1:
        return self.put(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))

    cdef int put_number(self, long long number) except -1
    cdef int put_field(self, const char* base, Span name, Span value) except -1
    # A chunk's size line (RFC 9112 7.1).
    cdef int put_chunk_size(self, size_t size) except -1
    # All that is put into the empty buffer from here on is one chunk, until `take_chunk`.
    cdef int open_chunk(self) except -1
    # That chunk; None if nothing was put.
    cdef bytes take_chunk(self)
    # All that was put, as a new object; the buffer is empty then, its memory kept.
    cdef bytes take(self)
    # private
    cdef int _grow(self, size_t n) except -1


# data[start:end], without the slice object that Cython's own slicing makes; bounds are the
# caller's.
cdef inline bytes part_of(bytes data, size_t start, size_t end):
    return PyBytes_FromStringAndSize(PyBytes_AS_STRING(data) + start, end - start)
