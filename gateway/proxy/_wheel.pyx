"""See _wheel.pxd."""

from libc.math cimport ceil


cdef class Timed:
    cdef void on_deadline(self, double now_s) noexcept:
        pass


cdef void _unlink(Timed timed) noexcept:
    if timed.before is not None:
        timed.before.after = timed.after
        timed.after.before = timed.before
        timed.before = timed.after = None


cdef class Wheel:
    def __init__(self, double now_s, double tick_s=0.1):
        cdef Timed head
        self.tick_s = tick_s
        self.start_s = now_s
        self.at = 0
        self.buckets = []
        for _ in range(N_BUCKETS):
            head = Timed()
            head.before = head.after = head
            self.buckets.append(head)

    cdef void set(self, Timed timed, double deadline_s) noexcept:
        # Linked already and moved later: the bucket it is in finds out.
        cdef bint later = timed.before is not None and deadline_s >= timed.deadline_s > 0
        timed.deadline_s = deadline_s
        if not later:
            _unlink(timed)
            self._link(timed)

    cdef void _link(self, Timed timed) noexcept:
        cdef long tick = <long>ceil((timed.deadline_s - self.start_s) / self.tick_s)
        cdef Timed head
        tick = min(max(tick, self.at + 1), self.at + N_BUCKETS - 1)
        head = <Timed>self.buckets[tick % N_BUCKETS]
        timed.before = head.before
        timed.after = head
        head.before.after = timed
        head.before = timed

    cdef void drop(self, Timed timed) noexcept:
        timed.deadline_s = 0
        _unlink(timed)

    cdef void turn(self, double now_s) noexcept:
        cdef long now = <long>((now_s - self.start_s) / self.tick_s)
        while self.at < now:
            self.at += 1
            self._serve(<Timed>self.buckets[self.at % N_BUCKETS], now_s)

    cdef void _serve(self, Timed head, double now_s) noexcept:
        # Relinking goes at least one tick ahead, so the ring can only shrink here.
        cdef Timed timed
        while head.after is not head:
            timed = head.after
            _unlink(timed)
            if timed.deadline_s == 0:
                continue
            if timed.deadline_s > now_s:
                self._link(timed)
                continue
            timed.deadline_s = 0
            timed.on_deadline(now_s)
