"""See _booking.pxd."""

from libc.stdint cimport int64_t

from router._table cimport Load, Sums, Table, prefill_time_s

cdef enum:
    # Of an answer: fewer tokens say little about the time between two.
    MIN_TOKENS = 8


cdef class Booker:
    """Books on `table` in the name of `worker`, whose column nobody else writes."""

    def __init__(self, Table table, int worker):
        if not 0 <= worker < table.n_workers:
            raise IndexError(f"worker {worker} is not in 0..{table.n_workers - 1}")
        self.table = table
        self.worker = worker

    cdef void book(self, Booking* booking, int slot, double n_tokens, double hit_tokens,
                   bint is_seen, double now_s) noexcept nogil:
        cdef Load* load = self.table.cell(self.worker, slot)
        cdef Load* other
        cdef bint is_computing = False, is_awaited = False
        cdef int worker
        for worker in range(self.table.n_workers):
            other = self.table.cell(worker, slot)
            is_computing = is_computing or other.prefilling > 0
            is_awaited = is_awaited or other.unseen_until_s > now_s
        booking.stage = Stage.WAITING
        booking.slot = slot
        booking.is_seen = is_seen
        booking.at_s = now_s
        booking.first_s = 0
        booking.hit_tokens = hit_tokens
        booking.new_tokens = n_tokens - hit_tokens
        booking.prefill_s = prefill_time_s(&self.table.rows[slot].profile, n_tokens, hit_tokens)
        booking.prefill_tokens = <int64_t>booking.new_tokens
        booking.kv_tokens = <int64_t>n_tokens
        booking.n_produced = 0
        booking.alone = not is_computing and not is_awaited
        load.in_flight += 1
        load.kv_tokens += booking.kv_tokens
        if is_seen:
            if not is_computing:
                load.anchor_s = now_s
            load.prefilling += 1
            load.prefill_s += booking.prefill_s
            load.prefill_tokens += booking.prefill_tokens
        else:
            load.unseen_until_s = max(load.unseen_until_s, now_s) + booking.prefill_s

    cdef void _end_prefill(self, Booking* booking, double now_s) noexcept nogil:
        cdef Load* load = self.table.cell(self.worker, booking.slot)
        if not booking.is_seen:
            return
        load.prefilling -= 1
        load.prefill_tokens -= booking.prefill_tokens
        load.anchor_s = now_s
        # No dust of rounding.
        load.prefill_s = max(0.0, load.prefill_s - booking.prefill_s) if load.prefilling else 0

    cdef void first_token(self, Booking* booking, double now_s) noexcept nogil:
        cdef Load* load
        if booking.stage != <int>Stage.WAITING:
            return
        booking.stage = Stage.PRODUCING
        booking.first_s = now_s
        load = self.table.cell(self.worker, booking.slot)
        load.producing += 1
        load.kv_tokens += 1
        booking.kv_tokens += 1
        if booking.is_seen and booking.alone:
            observe(&load.prefill, booking.new_tokens,
                    booking.new_tokens * (booking.hit_tokens + 0.5 * booking.new_tokens),
                    now_s - booking.at_s)
        self._end_prefill(booking, now_s)

    cdef void grow(self, Booking* booking, int n) noexcept nogil:
        if booking.stage == <int>Stage.NONE:
            return
        booking.kv_tokens += n
        booking.n_produced += n
        self.table.cell(self.worker, booking.slot).kv_tokens += n

    cdef void found(self, const Booking* booking, double cached_tokens) noexcept nogil:
        cdef Load* load = self.table.cell(self.worker, booking.slot)
        # As the index had it, before what is known to be missing was taken off.
        cdef double expected = booking.hit_tokens / (1 - self.table.rows[booking.slot].missing)
        load.expected_tokens += expected
        # That it may have found more is no comfort to the next prompt.
        load.found_tokens += min(expected, cached_tokens)

    cdef void release(self, Booking* booking, double now_s) noexcept nogil:
        cdef Load* load
        cdef Load* other
        cdef int worker
        cdef double in_flight = 0, kv_tokens = 0
        if booking.stage == <int>Stage.NONE:
            return
        load = self.table.cell(self.worker, booking.slot)
        if booking.stage == <int>Stage.WAITING:
            self._end_prefill(booking, now_s)
        else:
            load.producing -= 1
            if booking.n_produced >= MIN_TOKENS:
                # Its step was as long as the batch was large, whoever put that there.
                for worker in range(self.table.n_workers):
                    other = self.table.cell(worker, booking.slot)
                    in_flight += other.in_flight
                    kv_tokens += other.kv_tokens
                observe(&load.decode, in_flight, kv_tokens,
                        (now_s - booking.first_s) / booking.n_produced)
        load.in_flight -= 1
        load.kv_tokens -= booking.kv_tokens
        if load.in_flight == 0:
            load.unseen_until_s = 0     # sooner than predicted, or left
        booking.stage = Stage.NONE


cdef inline void observe(Sums* sums, double x1, double x2, double y) noexcept nogil:
    sums.xx[0] += 1
    sums.xx[1] += x1
    sums.xx[2] += x2
    sums.xx[3] += x1 * x1
    sums.xx[4] += x1 * x2
    sums.xx[5] += x2 * x2
    sums.xy[0] += y
    sums.xy[1] += x1 * y
    sums.xy[2] += x2 * y
