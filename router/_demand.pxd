"""What a model's requests have lately been like: how much prompt work, how many hits, how long."""

cdef class Demand:
    cdef double at_s
    cdef double prefill_s       # decaying sums
    cdef double prompt_tokens
    cdef double hit_tokens
    cdef double out_tokens      # smoothed
    cdef double bytes_per_token     # smoothed
    # A request was booked.
    cdef void booked(self, double prefill_s, double n_tokens, double hit_tokens,
                     double now_s) noexcept nogil
    # It ended: the engine counted so many tokens; below 0: not known.
    cdef void ended(self, double out_tokens, double prompt_tokens,
                    double prompt_bytes) noexcept nogil
    # Share of n endpoints' time that prompts take, as far as this worker sees.
    cdef double pressure(self, int n, double now_s) noexcept nogil
    # Of prompt tokens, what is cached.
    cdef double hit_ratio(self) noexcept nogil
    cdef void _decay(self, double now_s) noexcept nogil
