"""See _keying.pxd."""

from array import array

from libc.stdint cimport uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memchr, memcpy

from router._hash cimport chain, root_of


cdef class Prompt:
    """Empty at first, and after `clear`."""

    def __dealloc__(self):
        free(self.keys)

    cdef int resize(self, size_t n) except -1:
        cdef uint64_t* keys
        if n > self.room:
            keys = <uint64_t*>realloc(self.keys, n * sizeof(uint64_t))
            if keys == NULL:
                raise MemoryError
            self.keys = keys
            self.room = n
        self.n_keys = n
        return 0

    cdef void clear(self) noexcept:
        free(self.keys)
        self.keys = NULL
        self.n_keys = self.room = self.n_partial = self.n_bytes = 0
        self.n_tokens = self.block_tokens = 0

    cdef int begin(self, uint64_t root, size_t size) except -1:
        self.resize(size // TEXT_BLOCK_BYTES + 1)
        self.n_keys = self.n_partial = self.n_bytes = 0
        self.parent = root
        return 0

    cdef void feed(self, const char* p, size_t n) noexcept nogil:
        cdef size_t take, blocks
        self.n_bytes += n
        if self.n_partial:
            take = min(n, <size_t>TEXT_BLOCK_BYTES - self.n_partial)
            memcpy(self.partial + self.n_partial, p, take)
            self.n_partial += take
            if self.n_partial < TEXT_BLOCK_BYTES:
                return
            p += take
            n -= take
            self.n_partial = 0
            self._add(<const char*>self.partial, 1)
        # Whole blocks are hashed where they stand.
        blocks = n // TEXT_BLOCK_BYTES
        if blocks:
            self._add(p, blocks)
            p += blocks * TEXT_BLOCK_BYTES
            n -= blocks * TEXT_BLOCK_BYTES
        if n:
            memcpy(self.partial, p, n)
            self.n_partial = n

    cdef void _add(self, const char* p, size_t blocks) noexcept nogil:
        blocks = min(blocks, self.room - self.n_keys)
        if blocks == 0:
            return
        chain(self.parent, p, blocks * TEXT_BLOCK_BYTES, TEXT_BLOCK_BYTES, self.keys + self.n_keys)
        self.n_keys += blocks
        self.parent = self.keys[self.n_keys - 1]

    cdef void feed_json(self, const char* p, size_t n) noexcept nogil:
        cdef const char* quote
        cdef size_t at = 0, run = 0, end, back
        while at < n:
            if p[at] == c'"':
                # To the string's end: the next quote behind an even number of backslashes.
                end = at + 1
                while True:
                    quote = <const char*>memchr(p + end, c'"', n - end)
                    if quote == NULL:
                        end = n
                        break
                    end = quote - p + 1
                    back = end - 1
                    while back > at + 1 and p[back - 1] == c"\\":
                        back -= 1
                    if (end - 1 - back) & 1 == 0:
                        break
                at = end
            elif p[at] == c" " or p[at] == c"\n" or p[at] == c"\t" or p[at] == c"\r":
                if at > run:
                    self.feed(p + run, at - run)
                at += 1
                run = at
            else:
                at += 1
        if at > run:
            self.feed(p + run, at - run)


def text_keys(bytes namespace, pieces, bint is_json=True):
    """Hashes of the whole blocks of a prompt given in pieces, as array("Q"): for Python callers."""
    cdef Prompt prompt = Prompt()
    cdef const char* p
    prompt.begin(root_of(<const char*>namespace, len(namespace)), sum([len(x) for x in pieces]))
    for piece in pieces:
        p = piece
        if is_json:
            prompt.feed_json(p, len(piece))
        else:
            prompt.feed(p, len(piece))
    keys = array("Q", bytes(8 * prompt.n_keys))
    cdef uint64_t[::1] out = keys
    if prompt.n_keys:
        memcpy(&out[0], prompt.keys, 8 * prompt.n_keys)
    return keys
