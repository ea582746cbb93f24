"""See _hash.pxd."""

from array import array

from libc.stdint cimport uint64_t

cdef extern from *:
    """
    #include <stdint.h>
    #include <string.h>
    static inline uint64_t headgate_fold(uint64_t a, uint64_t b) {
        unsigned __int128 product = (unsigned __int128)a * b;
        return (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    static inline uint64_t headgate_read8(const unsigned char *p) {
        uint64_t word;
        memcpy(&word, p, 8);
        return word;
    }
    static inline uint64_t headgate_read_tail(const unsigned char *p, size_t n) {
        uint64_t word = 0;
        memcpy(&word, p, n);
        return word;
    }
    """
    uint64_t fold "headgate_fold"(uint64_t a, uint64_t b) noexcept nogil
    uint64_t read8 "headgate_read8"(const unsigned char* p) noexcept nogil
    uint64_t read_tail "headgate_read_tail"(const unsigned char* p, size_t n) noexcept nogil

# Odd, with as many ones as zeros in each byte: what the product needs to spread its factors.
cdef uint64_t K0 = 0x2d358dccaa6c78a5
cdef uint64_t K1 = 0x8bb84b93962eacc9
cdef uint64_t K2 = 0x4b33a62ed433d4a3


cdef inline uint64_t hash_of(uint64_t parent, const unsigned char* p, size_t size) noexcept nogil:
    # Two lanes: the products of one do not wait for those of the other.
    cdef uint64_t even = parent ^ K0
    cdef uint64_t odd = parent ^ K1
    cdef size_t left = size
    while left >= 32:
        even = fold(read8(p) ^ K1, read8(p + 8) ^ even)
        odd = fold(read8(p + 16) ^ K2, read8(p + 24) ^ odd)
        p += 32
        left -= 32
    while left >= 8:
        even = fold(read8(p) ^ K1, even)
        p += 8
        left -= 8
    if left:
        even = fold(read_tail(p, left) ^ K1, even)
    even = fold(even ^ K1 ^ size, odd ^ K2)
    return even if even else 1


cdef uint64_t root_of(const void* namespace, size_t size) noexcept nogil:
    return hash_of(K2, <const unsigned char*>namespace, size)


cdef size_t chain(uint64_t parent, const void* p, size_t size, size_t block_bytes,
                  uint64_t* out) noexcept nogil:
    cdef const unsigned char* at = <const unsigned char*>p
    cdef size_t n = size // block_bytes
    cdef size_t index
    for index in range(n):
        parent = hash_of(parent, at, block_bytes)
        out[index] = parent
        at += block_bytes
    return n


def namespace_root(bytes namespace):
    """`root_of` for Python callers."""
    return root_of(<const char*>namespace, len(namespace))


def block_hashes(bytes namespace, const unsigned char[::1] data, int block_bytes):
    """Hashes of the whole blocks of `data` as array("Q"): `chain` for Python callers."""
    if block_bytes < 1:
        raise ValueError(f"block_bytes is {block_bytes}, not positive")
    hashes = array("Q", bytes(8 * (data.shape[0] // block_bytes)))
    cdef uint64_t[::1] out = hashes
    if out.shape[0]:
        chain(root_of(<const char*>namespace, len(namespace)), &data[0], data.shape[0],
              block_bytes, &out[0])
    return hashes
