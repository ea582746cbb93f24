"""See _marks.pxd."""

from libc.stdint cimport uint16_t, uint64_t

cdef double STAMP_S = 0.25
cdef double FORGOTTEN_S = 4 * 3600.0
# In stamps: what seems older is from a clock that was read a little later.
cdef enum:
    OLDEST = 64800
cdef uint64_t VALUE_MASK = (<uint64_t>1 << VALUE_BITS) - 1


cdef inline uint64_t tag_of(uint64_t key) noexcept nogil:
    # In place; never 0, so that a mark is never the empty word.
    cdef uint64_t tag = key >> (VALUE_BITS + STAMP_BITS)
    return (tag if tag else 1) << (VALUE_BITS + STAMP_BITS)


cdef inline uint16_t stamp_of(double now_s) noexcept nogil:
    return <uint16_t><uint64_t>(now_s / STAMP_S)


cdef uint64_t value_of(uint64_t mark) noexcept nogil:
    return mark >> STAMP_BITS & VALUE_MASK


cdef double age_s(uint64_t mark, double now_s) noexcept nogil:
    cdef uint16_t stamps = <uint16_t>(stamp_of(now_s) - <uint16_t>mark)
    return 0 if stamps > OLDEST else stamps * STAMP_S


cdef void sweep(uint64_t* words, size_t n, double now_s) noexcept nogil:
    cdef size_t at
    for at in range(n):
        if words[at] and age_s(words[at], now_s) >= FORGOTTEN_S:
            words[at] = 0


cdef uint64_t* mark_of(uint64_t* group, int n, uint64_t key) noexcept nogil:
    cdef int index
    cdef uint64_t tag = tag_of(key)
    for index in range(n):
        if group[index] >> (VALUE_BITS + STAMP_BITS) << (VALUE_BITS + STAMP_BITS) == tag:
            return &group[index]
    return NULL


cdef void put(uint64_t* group, int n, uint64_t key, uint64_t value, double now_s) noexcept nogil:
    cdef uint64_t* place = mark_of(group, n, key)
    cdef uint64_t mark = tag_of(key) | (value & VALUE_MASK) << STAMP_BITS | stamp_of(now_s)
    cdef double oldest_s = -1
    cdef int index
    if place == NULL:
        for index in range(n):
            if group[index] == 0:
                place = &group[index]
                break
            if age_s(group[index], now_s) > oldest_s:
                oldest_s = age_s(group[index], now_s)
                place = &group[index]
    if place[0] != mark:        # no cache line is taken from the other processes for nothing
        place[0] = mark
