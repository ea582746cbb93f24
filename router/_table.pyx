"""See _table.pxd."""

from libc.stdint cimport int32_t, int64_t


cdef class Table:
    """Rows and load cells over a caller's memory.

    `memory` is a writable buffer of at least `Table.size(n_workers)` bytes, zeroed before its first
    use. `n_own`: how many of the columns are workers', if not all; the others stand for other
    gateways. Python methods are for the control process and for tests; workers use the C face.
    """

    def __init__(self, memory, int n_workers, n_own=None):
        cdef unsigned char[::1] view = memory
        if view.shape[0] < Table.size(n_workers):
            raise ValueError(f"memory holds {view.shape[0]} bytes, not {Table.size(n_workers)}")
        self.memory = memory
        self.n_workers = n_workers
        self.n_own = n_workers if n_own is None else n_own
        self.common = <Common*>&view[0]
        self.rows = <Row*>(&view[0] + sizeof(Common))
        self.loads = <Load*>(&view[0] + sizeof(Common) + sizeof(Row) * MAX_SLOTS)

    @staticmethod
    def size(int n_workers):
        """Bytes that a table for so many workers takes."""
        return sizeof(Common) + sizeof(Row) * MAX_SLOTS + sizeof(Load) * MAX_SLOTS * n_workers

    def set_common(self, double scale, double doubt):
        """Write what holds for all endpoints (control process only)."""
        self.common.scale = scale
        self.common.doubt = doubt

    cdef Load* cell(self, int worker, int slot) noexcept nogil:
        return &self.loads[worker * MAX_SLOTS + slot]

    cdef int32_t in_flight(self, int slot) noexcept nogil:
        cdef int32_t total = 0
        cdef int worker
        for worker in range(self.n_workers):
            total += self.loads[worker * MAX_SLOTS + slot].in_flight
        return total

    def set_row(self, int slot, *, state=None, share=None, generation=None, full=None,
                overloaded=None, max_in_flight=None, missing=None, labels=None,
                identity=None, max_loras=None, profile=None):
        """Write the given fields of a row (control process only).

        `profile`: the six numbers of `Profile`, in their order.
        """
        self._check(slot)
        if full is not None:
            self.rows[slot].full = full
        if overloaded is not None:
            self.rows[slot].overloaded = overloaded
        if max_in_flight is not None:
            self.rows[slot].max_in_flight = max_in_flight
        if missing is not None:
            self.rows[slot].missing = missing
        if labels is not None:
            self.rows[slot].labels = labels
        if identity is not None:
            self.rows[slot].identity = identity
        if max_loras is not None:
            self.rows[slot].max_loras = max_loras
        if profile is not None:
            base, token, token_ctx, seq, ctx, kv_tokens = profile
            self.rows[slot].profile = Profile(base, token, token_ctx, seq, ctx, kv_tokens)
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

    def profile(self, int slot):
        """The row's Profile as a dict."""
        self._check(slot)
        return self.rows[slot].profile

    def standing(self, int slot, double now_s):
        """What all workers together have put on the endpoint, as a dict; see Standing."""
        cdef Standing found
        self._check(slot)
        stand(self, slot, now_s, &found)
        return found

    def load(self, int slot):
        """The load on a slot, summed over our own workers; `last_event_s` is the newest."""
        self._check(slot)
        cdef Load total = self.loads[slot]
        cdef Load* one
        cdef int worker
        for worker in range(1, self.n_own):
            one = self.cell(worker, slot)
            total.in_flight += one.in_flight
            total.producing += one.producing
            total.failures_in_row += one.failures_in_row
            total.dials_in_row += one.dials_in_row
            total.begun += one.begun
            total.successes += one.successes
            total.last_event_s = max(total.last_event_s, one.last_event_s)
        return {
            "in_flight": total.in_flight, "producing": total.producing,
            "failures_in_row": total.failures_in_row, "dials_in_row": total.dials_in_row,
            "last_event_s": total.last_event_s, "begun": total.begun,
            "successes": total.successes,
        }

    def hits(self, int slot):
        """Of cached prompt tokens on a slot (expected, found): see Load."""
        cdef Load* one
        cdef double expected = 0, found = 0
        self._check(slot)
        for worker in range(self.n_own):
            one = self.cell(worker, slot)
            expected += one.expected_tokens
            found += one.found_tokens
        return expected, found

    def work(self, int worker, int slot):
        """What a worker has booked on an endpoint: (in_flight, prefilling, prefill_s, anchor_s,
        unseen_until_s, prefill_tokens, kv_tokens)."""
        self._check(slot)
        cdef Load* one = self.cell(worker, slot)
        return (one.in_flight, one.prefilling, one.prefill_s, one.anchor_s, one.unseen_until_s,
                one.prefill_tokens, one.kv_tokens)

    def set_work(self, int worker, int slot, work):
        """Write what `work` gave: for a column that stands for others than a worker."""
        self._check(slot)
        cdef Load* one = self.cell(worker, slot)
        (one.in_flight, one.prefilling, one.prefill_s, one.anchor_s, one.unseen_until_s,
         one.prefill_tokens, one.kv_tokens) = work

    def set_held(self, int worker, int slot, double noted_s, double since_s, int64_t priority):
        """Say in a worker's name that a request waits there which may go to this slot."""
        self._check(slot)
        cdef Load* one = self.cell(worker, slot)
        one.held_noted_s, one.held_since_s, one.held_priority = noted_s, since_s, priority

    def troubled(self, slots):
        """Those of these slots that have failures or failed dials in a row."""
        cdef int slot, worker
        found = []
        for slot in slots:
            for worker in range(self.n_own):
                if (self.cell(worker, slot).failures_in_row
                        or self.cell(worker, slot).dials_in_row):
                    found.append(slot)
                    break
        return found

    def lose_worker(self, int worker):
        """Zero the load of a worker that is gone; its successor starts from nothing."""
        cdef int slot
        cdef Load* one
        for slot in range(MAX_SLOTS):
            one = self.cell(worker, slot)
            one.in_flight = one.producing = one.failures_in_row = one.dials_in_row = 0
            one.prefilling = 0
            one.prefill_s = one.unseen_until_s = one.held_noted_s = 0
            one.prefill_tokens = one.kv_tokens = 0

    def _check(self, int slot):
        if not 0 <= slot < MAX_SLOTS:
            raise IndexError(f"slot {slot} is not in 0..{MAX_SLOTS - 1}")


cdef void stand(Table table, int slot, double now_s, Standing* out) noexcept nogil:
    cdef Load* load
    cdef int worker
    cdef int32_t in_flight = 0, prefilling = 0
    cdef double prefill_s = 0, anchor_s = 0, unseen_s = 0, tokens = 0, kv_tokens = 0
    for worker in range(table.n_workers):
        load = table.cell(worker, slot)
        in_flight += load.in_flight
        prefilling += load.prefilling
        prefill_s += load.prefill_s
        tokens += load.prefill_tokens
        kv_tokens += load.kv_tokens
        anchor_s = max(anchor_s, load.anchor_s)
        unseen_s += max(0.0, load.unseen_until_s - now_s)
    out.in_flight = in_flight
    out.prefill_tokens = tokens
    out.kv_tokens = kv_tokens
    out.wait_s = unseen_s
    if prefilling > 0:
        # Prompts are computed one after the other: what has passed since the last first token is
        # work done on the next, but no more than the next takes.
        out.wait_s += max(0.0, prefill_s - max(0.0, min(prefill_s / prefilling, now_s - anchor_s)))
