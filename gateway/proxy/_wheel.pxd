"""Deadlines by a coarse wheel: one tick per 100 ms serves every connection of a worker.

Moving a deadline later is a store; the wheel finds out when the old one comes up. So a stream may
touch its deadline with every event. A deadline is met up to one tick late, never early.
"""

cdef enum:
    N_BUCKETS = 1024        # about 100 s; a farther deadline goes round again

cdef class Timed:
    cdef double deadline_s          # monotonic; 0: none
    cdef Timed before
    cdef Timed after
    # The deadline has passed. It is 0 when this is called; a new one may be set.
    cdef void on_deadline(self, double now_s) noexcept

cdef class Wheel:
    cdef double tick_s
    cdef list buckets               # of Timed, heads of rings
    cdef long at                    # the tick that has been served
    cdef double start_s
    cdef void set(self, Timed timed, double deadline_s) noexcept
    cdef void drop(self, Timed timed) noexcept
    # Serve all deadlines up to now_s.
    cdef void turn(self, double now_s) noexcept
    # private
    cdef void _link(self, Timed timed) noexcept
    cdef void _serve(self, Timed head, double now_s) noexcept
