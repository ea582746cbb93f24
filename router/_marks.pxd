"""Recently used things, in memory that several processes write without locks.

A mark is one aligned 64-bit word, tag | value | stamp: it is written and read whole. Two writers at
the same word lose one of two marks, which is a hint less and never a wrong one. A group is the
words in which a key may stand; in a full one the mark that was used longest ago makes room.
"""

from libc.stdint cimport uint64_t

cdef enum:
    VALUE_BITS = 18
    STAMP_BITS = 16

# A quarter of a second: stamps count these, and wrap around after 4.5 hours. Before that, `sweep`
# has taken a mark away.
cdef double STAMP_S

# The mark of `key` in group[:n]; NULL: none.
cdef uint64_t* mark_of(uint64_t* group, int n, uint64_t key) noexcept nogil
# It was used now.
cdef void put(uint64_t* group, int n, uint64_t key, uint64_t value, double now_s) noexcept nogil
cdef uint64_t value_of(uint64_t mark) noexcept nogil
# Seconds since it was used last; 0 also for one that another process used a moment after now_s.
cdef double age_s(uint64_t mark, double now_s) noexcept nogil
# Forget what was not used for 4 hours. Someone has to call this every few minutes.
cdef void sweep(uint64_t* words, size_t n, double now_s) noexcept nogil
