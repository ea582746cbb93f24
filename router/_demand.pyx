"""See _demand.pxd."""

from libc.math cimport exp

# Over how long prompt work and hits are summed, and how many answers count for their length.
cdef double PRESSURE_S = 30.0
cdef double HITS_S = 60.0
cdef double SMOOTHING = 0.02
cdef double FIRST_OUT_TOKENS = 250.0
# In prose and in JSON, in most tokenizers.
cdef double FIRST_BYTES_PER_TOKEN = 4.0


cdef class Demand:
    """One per model and worker."""

    def __cinit__(self):
        self.out_tokens = FIRST_OUT_TOKENS
        self.bytes_per_token = FIRST_BYTES_PER_TOKEN

    cdef void _decay(self, double now_s) noexcept nogil:
        cdef double passed_s = now_s - self.at_s
        if passed_s <= 0:
            return
        self.at_s = now_s
        self.prefill_s *= exp(-passed_s / PRESSURE_S)
        passed_s = exp(-passed_s / HITS_S)
        self.prompt_tokens *= passed_s
        self.hit_tokens *= passed_s

    cdef void booked(self, double prefill_s, double n_tokens, double hit_tokens,
                     double now_s) noexcept nogil:
        self._decay(now_s)
        self.prefill_s += prefill_s
        self.prompt_tokens += n_tokens
        self.hit_tokens += hit_tokens

    cdef void ended(self, double out_tokens, double prompt_tokens,
                    double prompt_bytes) noexcept nogil:
        if out_tokens >= 0:
            self.out_tokens += SMOOTHING * (out_tokens - self.out_tokens)
        if prompt_tokens > 0 and prompt_bytes > 0:
            self.bytes_per_token += SMOOTHING * (
                prompt_bytes / prompt_tokens - self.bytes_per_token)

    cdef double pressure(self, int n, double now_s) noexcept nogil:
        self._decay(now_s)
        return self.prefill_s / (PRESSURE_S * n) if n else 0

    cdef double hit_ratio(self) noexcept nogil:
        return self.hit_tokens / self.prompt_tokens if self.prompt_tokens > 0 else 0

    def note_end(self, double out_tokens, double prompt_tokens=-1, double prompt_bytes=-1):
        """`ended` for Python callers."""
        self.ended(out_tokens, prompt_tokens, prompt_bytes)

    def state(self, int n, double now_s):
        """What policies are told of it, over n endpoints: a dict, for Python callers."""
        return {
            "pressure": self.pressure(n, now_s), "hit_ratio": self.hit_ratio(),
            "out_tokens": self.out_tokens, "bytes_per_token": self.bytes_per_token,
        }
