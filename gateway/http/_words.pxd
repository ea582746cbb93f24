"""Octets eight at a time: what makes a head cheap to check."""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

cdef extern from "<endian.h>" nogil:
    uint64_t le64toh(uint64_t x)

cdef extern from *:
    int count_trailing_zeros "__builtin_ctzll"(unsigned long long x) noexcept nogil


cdef inline size_t first_mark(uint64_t marks) noexcept nogil:
    # The index of the lowest byte whose high bit is set; there must be one.
    return <size_t>(count_trailing_zeros(marks) >> 3)


cdef inline uint64_t load(const uint8_t* p) noexcept nogil:
    cdef uint64_t word
    memcpy(&word, p, 8)
    return le64toh(word)


cdef inline uint64_t unprintable(uint64_t word) noexcept nogil:
    # The high bit of each byte outside 0x20..0x7E. Borrows and carries may set more, but only above
    # a byte that is rightly marked: zero, and the lowest mark, can be relied on.
    cdef uint64_t ones = 0x0101010101010101
    return ((word - ones * 0x20) | (word + ones) | word) & (ones * 0x80)


cdef inline uint64_t unusual(uint64_t word) noexcept nogil:
    # The high bit of each byte that is neither a letter nor a hyphen; exact, as no sum below
    # carries into the next byte. Most names are made of nothing else.
    cdef uint64_t ones = 0x0101010101010101
    cdef uint64_t low = ones * 0x7F
    cdef uint64_t folded = (word | ones * 0x20) & low
    cdef uint64_t letters = (folded + ones * (0x80 - c'a')) & ~(folded + ones * (0x7F - c'z'))
    cdef uint64_t other = word ^ (ones * c'-')
    cdef uint64_t hyphens = ~(((other & low) + low) | other)
    return ~((letters & ~word) | hyphens) & ~low


cdef inline bint differ(const uint8_t* p, const char* lower_case) noexcept nogil:
    cdef uint64_t spaces = 0x2020202020202020
    return (load(p) | spaces) != load(<const uint8_t*>lower_case)


cdef inline bint equals(const uint8_t* p, const char* lower_case, size_t size) noexcept nogil:
    # Case-insensitive, for text against lower-case letters, digits and hyphens: setting 0x20
    # changes upper-case letters and else only controls into one of those. Words may overlap.
    cdef size_t i
    if size < 8:
        for i in range(size):
            if (p[i] | 0x20) != <uint8_t>lower_case[i]:
                return False
        return True
    if differ(p, lower_case) or differ(p + size - 8, lower_case + size - 8):
        return False
    return size <= 16 or not differ(p + 8, lower_case + 8)
