"""See _effort.pxd."""

from libc.math cimport exp

from router._table cimport MAX_SLOTS

# Over how long prompts are summed: about as long as a request stays, since for so long it meets
# what else comes.
cdef double WINDOW_S = 10.0
# The sums of all slots fade alike: instead of each, one factor shrinks, until it is this small.
cdef double SMALLEST = 1e-9


cdef class Effort:
    def __cinit__(self):
        self.fade = 1

    cdef double share_of(self, double now_s) noexcept nogil:
        cdef int slot
        self.now_s = max(self.now_s, now_s)
        self.fade = exp((self.ref_s - self.now_s) / WINDOW_S)
        if self.fade < SMALLEST:
            for slot in range(MAX_SLOTS):
                self.seconds[slot] *= self.fade
            self.fade = 1
            self.ref_s = self.now_s
        return self.fade / WINDOW_S

    cdef void booked(self, int slot, double prefill_s) noexcept nogil:
        self.seconds[slot] += prefill_s / self.fade
