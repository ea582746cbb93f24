"""See _sessions.pxd."""

from libc.stdint cimport int32_t, uint64_t

from router._marks cimport age_s, mark_of, put, sweep, value_of
from router._policy cimport FULL, MAY, OVERLOADED, PROMISED, Ask, bar, rank
from router._table cimport Table

cdef enum:
    GROUPS = 8192
    GROUP = 8               # words: one cache line
    SLOT_BITS = 10
    LIFE_BITS = 8


cdef inline uint64_t place_of(Table table, int slot) noexcept nogil:
    """A slot and the low bits of its generation: another endpoint there is another place."""
    return (<uint64_t>table.rows[slot].generation & ((1 << LIFE_BITS) - 1)) << SLOT_BITS | (
        <uint64_t>slot)


cdef class Sessions:
    """Over `Sessions.size()` bytes of zeroed memory; one object per process."""

    def __init__(self, memory, double idle_s=3600.0):
        cdef unsigned char[::1] view = memory
        if view.shape[0] < Sessions.size():
            raise ValueError(f"memory holds {view.shape[0]} bytes, not {Sessions.size()}")
        self.memory = memory
        self.words = <uint64_t*>&view[0]
        self.idle_s = idle_s

    @staticmethod
    def size():
        """Bytes it takes."""
        return GROUPS * GROUP * sizeof(uint64_t)

    cdef int find(self, Table table, uint64_t session, double now_s) noexcept nogil:
        cdef uint64_t* mark = mark_of(self.words + session % GROUPS * GROUP, GROUP, session)
        cdef uint64_t seen
        cdef int slot
        if mark == NULL:
            return -1
        seen = mark[0]          # once: others write it
        slot = <int>(value_of(seen) & ((1 << SLOT_BITS) - 1))
        if value_of(seen) != place_of(table, slot) or age_s(seen, now_s) > self.idle_s:
            return -1
        return slot

    cdef void note(self, Table table, uint64_t session, int slot, double now_s) noexcept nogil:
        put(self.words + session % GROUPS * GROUP, GROUP, session, place_of(table, slot), now_s)

    def where(self, Table table not None, uint64_t session, double now_s):
        """`find` for Python callers: the slot, or None."""
        cdef int slot = self.find(table, session, now_s)
        return None if slot < 0 else slot

    def went(self, Table table not None, uint64_t session, int slot, double now_s):
        """`note` for Python callers."""
        table._check(slot)
        self.note(table, session, slot, now_s)

    def sweep(self, double now_s):
        """Forget what is long past, before it looks new again: every few minutes, by one process.
        """
        sweep(self.words, GROUPS * GROUP, now_s)


cdef bint has(const int32_t* slots, int n, int slot) noexcept nogil:
    """Is it among these, which ascend?"""
    cdef int low = 0, middle
    while low < n:
        middle = (low + n) >> 1
        if slots[middle] < slot:
            low = middle + 1
        elif slots[middle] > slot:
            n = middle
        else:
            return True
    return False


cdef int bound(Table table, const Ask* ask) noexcept nogil:
    cdef int index, why, best = -1
    cdef uint64_t highest = 0, found
    if ask.home >= 0 and has(ask.slots, ask.n_slots, ask.home):
        # One that has no room is up: the session waits for it, or is refused.
        why = bar(table, ask, ask.home)
        if why == MAY or why == FULL or why == OVERLOADED or why == PROMISED:
            return ask.home
    for index in range(ask.n_slots):
        if bar(table, ask, ask.slots[index]) == MAY:
            found = rank(table, ask.session, ask.slots[index])
            if best < 0 or found > highest:
                highest = found
                best = ask.slots[index]
    return best
