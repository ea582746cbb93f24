"""See _table.pxd."""

from libc.stdint cimport int32_t


cdef class Table:
    """Rows and load cells over a caller's memory.

    `memory` is a writable buffer of at least `Table.size(n_workers)` bytes, zeroed before its first
    use. Python methods are for the control process and for tests; workers use the C face.
    """

    def __init__(self, memory, int n_workers):
        cdef unsigned char[::1] view = memory
        if view.shape[0] < Table.size(n_workers):
            raise ValueError(f"memory holds {view.shape[0]} bytes, not {Table.size(n_workers)}")
        self.memory = memory
        self.n_workers = n_workers
        self.rows = <Row*>&view[0]
        self.loads = <Load*>(&view[0] + sizeof(Row) * MAX_SLOTS)

    @staticmethod
    def size(int n_workers):
        """Bytes that a table for so many workers takes."""
        return sizeof(Row) * MAX_SLOTS + sizeof(Load) * MAX_SLOTS * n_workers

    cdef Load* cell(self, int worker, int slot) noexcept nogil:
        return &self.loads[worker * MAX_SLOTS + slot]

    cdef int32_t in_flight(self, int slot) noexcept nogil:
        cdef int32_t total = 0
        cdef int worker
        for worker in range(self.n_workers):
            total += self.loads[worker * MAX_SLOTS + slot].in_flight
        return total

    def set_row(self, int slot, *, state=None, share=None, generation=None):
        """Write the given fields of a row (control process only)."""
        self._check(slot)
        if share is not None:
            if not 0 < share <= 1:
                raise ValueError(f"share is {share}, not in (0, 1]")
            self.rows[slot].share = share
        if generation is not None:
            self.rows[slot].generation = generation
        if state is not None:
            self.rows[slot].state = State(state)

    def row(self, int slot):
        """(State, share, generation) of a slot."""
        self._check(slot)
        return State(self.rows[slot].state), self.rows[slot].share, self.rows[slot].generation

    def load(self, int slot):
        """The load on a slot, summed over the workers; `last_event_s` is the newest."""
        self._check(slot)
        cdef Load total = self.loads[slot]
        cdef Load* one
        cdef int worker
        for worker in range(1, self.n_workers):
            one = self.cell(worker, slot)
            total.in_flight += one.in_flight
            total.producing += one.producing
            total.failures_in_row += one.failures_in_row
            total.dials_in_row += one.dials_in_row
            total.begun += one.begun
            total.successes += one.successes
            total.last_event_s = max(total.last_event_s, one.last_event_s)
        return total

    def troubled(self):
        """Slots with failures or failed dials in a row: [(slot, failures, failed dials)]."""
        cdef int slot, worker
        cdef int failures, dials
        found = []
        for slot in range(MAX_SLOTS):
            if self.rows[slot].state == State.EMPTY:
                continue
            failures = dials = 0
            for worker in range(self.n_workers):
                failures += self.cell(worker, slot).failures_in_row
                dials += self.cell(worker, slot).dials_in_row
            if failures or dials:
                found.append((slot, failures, dials))
        return found

    def lose_worker(self, int worker):
        """Zero the load of a worker that is gone; its successor starts from nothing."""
        cdef int slot
        cdef Load* one
        for slot in range(MAX_SLOTS):
            one = self.cell(worker, slot)
            one.in_flight = one.producing = one.failures_in_row = one.dials_in_row = 0

    def _check(self, int slot):
        if not 0 <= slot < MAX_SLOTS:
            raise IndexError(f"slot {slot} is not in 0..{MAX_SLOTS - 1}")


cdef class Policy:
    """Picks an endpoint for a request. Subclasses override `pick` and nothing else."""

    cdef int pick(self, Table table, const Ask* ask) noexcept:
        return -1

    def choose(self, Table table, slots, tried=(), double now_s=0.0):
        """`pick` for Python callers: the slot, or None. At most MAX_TRIED tried slots count."""
        cdef int32_t[MAX_SLOTS] array
        cdef Ask ask
        cdef int index, slot
        if len(slots) > MAX_SLOTS:
            raise ValueError(f"more than {MAX_SLOTS} slots")
        for index, slot in enumerate(slots):
            table._check(slot)
            array[index] = slot
        ask.slots = array
        ask.n_slots = len(slots)
        ask.n_tried = 0
        for slot in tried[:MAX_TRIED]:
            ask.tried[ask.n_tried] = slot
            ask.n_tried += 1
        ask.now_s = now_s
        slot = self.pick(table, &ask)
        return None if slot < 0 else slot


cdef bint may_take(Table table, const Ask* ask, int slot) noexcept nogil:
    cdef int index
    cdef int state = table.rows[slot].state
    if state != <int>State.READY and (state != <int>State.TRIAL or table.in_flight(slot) > 0):
        return False
    for index in range(ask.n_tried):
        if ask.tried[index] == slot:
            return False
    return True
