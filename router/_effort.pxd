"""How much of each endpoint's time prompts have lately taken, as far as this worker sees."""

from router._table cimport MAX_SLOTS

cdef class Effort:
    cdef double[MAX_SLOTS] seconds      # by slot; each times `fade` is its decaying sum
    cdef double fade
    cdef double ref_s
    cdef double now_s
    # A prompt of so many seconds was booked on `slot`, at the time that `share_of` was asked for.
    cdef void booked(self, int slot, double prefill_s) noexcept nogil
    # By what to multiply `seconds` for shares of the slots' time at `now_s`.
    cdef double share_of(self, double now_s) noexcept nogil
