"""A prompt's bytes, in pieces, to the hashes of its blocks.

For engines that do not tell what they hold: the text itself is cut into blocks, 256 bytes each.
JSON is fed in a canonical form, so that it does not matter how a client sets its spaces: outside
strings white space is left out, inside strings every byte counts as it was sent.
"""

from libc.stdint cimport uint64_t

cdef enum:
    TEXT_BLOCK_BYTES = 256

cdef class Prompt:
    """The blocks of one request's prompt; used for one request after the other."""
    cdef uint64_t* keys
    cdef size_t n_keys
    cdef size_t room
    cdef size_t n_bytes                 # fed, in canonical form
    cdef double n_tokens                # for policies: of the whole prompt
    cdef double block_tokens
    cdef uint64_t parent
    cdef unsigned char[TEXT_BLOCK_BYTES] partial
    cdef size_t n_partial
    # Begin: at most `size` bytes will be fed, behind the namespace `root`.
    cdef int begin(self, uint64_t root, size_t size) except -1
    cdef void feed(self, const char* p, size_t n) noexcept nogil
    cdef void feed_json(self, const char* p, size_t n) noexcept nogil
    cdef void _add(self, const char* p, size_t blocks) noexcept nogil
    # Or set all at once: n keys that the caller writes.
    cdef int resize(self, size_t n) except -1
    # Give the memory back.
    cdef void clear(self) noexcept
