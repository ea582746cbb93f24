"""See _columns.pxd."""

from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free

from router._table cimport MAX_SLOTS, Load, Table


cdef class OwnColumns:
    """Keeps a copy of each cell. Reads without a lock, as the table is read everywhere: a cell
    caught in the middle of a change has changed again at the next look."""

    def __init__(self, Table table):
        if table.n_workers < 2:
            raise ValueError("a table with no column for the peers")
        self.table = table
        self.n_own = table.n_workers - 1
        self.seen = <Seen*>calloc(self.n_own * MAX_SLOTS, sizeof(Seen))
        if self.seen is NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.seen)

    def changed(self, double now_s):
        """[(slot, work over all own columns)] of the slots that are not as they were seen last."""
        cdef int slot, worker
        cdef bint differs
        found = []
        for slot in range(MAX_SLOTS):
            differs = False
            for worker in range(self.n_own):
                if self._look(worker, slot):
                    differs = True
            if differs:
                found.append((slot, self._sum(slot, now_s)))
        return found

    def forget(self, int slot):
        """The slot counts as seen empty: what stands there shows at the next look."""
        cdef int worker
        if not 0 <= slot < MAX_SLOTS:
            raise IndexError(f"slot {slot} is not in 0..{MAX_SLOTS - 1}")
        for worker in range(self.n_own):
            self.seen[worker * MAX_SLOTS + slot] = Seen(0, 0, 0, 0, 0, 0, 0)

    cdef bint _look(self, int worker, int slot) noexcept nogil:
        """Whether a cell is not as seen; it is now."""
        cdef Load* load = self.table.cell(worker, slot)
        cdef Seen* seen = &self.seen[worker * MAX_SLOTS + slot]
        if (seen.in_flight == load.in_flight and seen.prefilling == load.prefilling
                and seen.prefill_s == load.prefill_s and seen.anchor_s == load.anchor_s
                and seen.unseen_until_s == load.unseen_until_s
                and seen.prefill_tokens == load.prefill_tokens
                and seen.kv_tokens == load.kv_tokens):
            return False
        seen.in_flight = load.in_flight
        seen.prefilling = load.prefilling
        seen.prefill_s = load.prefill_s
        seen.anchor_s = load.anchor_s
        seen.unseen_until_s = load.unseen_until_s
        seen.prefill_tokens = load.prefill_tokens
        seen.kv_tokens = load.kv_tokens
        return True

    cdef object _sum(self, int slot, double now_s):
        """As `stand` reads columns: the newest anchor, and what is left of each unseen prompt."""
        cdef int32_t in_flight = 0, prefilling = 0
        cdef int64_t prefill_tokens = 0, kv_tokens = 0
        cdef double prefill_s = 0, anchor_s = 0, unseen_s = 0
        cdef Seen* seen
        cdef int worker
        for worker in range(self.n_own):
            seen = &self.seen[worker * MAX_SLOTS + slot]
            in_flight += seen.in_flight
            prefilling += seen.prefilling
            prefill_s += seen.prefill_s
            anchor_s = max(anchor_s, seen.anchor_s)
            unseen_s += max(0.0, seen.unseen_until_s - now_s)
            prefill_tokens += seen.prefill_tokens
            kv_tokens += seen.kv_tokens
        return (in_flight, prefilling, prefill_s, anchor_s, now_s + unseen_s if unseen_s else 0.0,
                prefill_tokens, kv_tokens)
