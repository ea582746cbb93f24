"""The work of one dispatch, booked on its endpoint before anything is sent, released exactly once.

    NONE --book--> WAITING --first_token--> PRODUCING --release--> NONE
                      |                                              ^
                      +------------------- release ------------------+

Each call but `book` may come in any state; what does not fit changes nothing.
"""

from libc.stdint cimport int32_t, int64_t, uint8_t

from router._table cimport Table

cpdef enum Stage:
    NONE = 0
    WAITING = 1         # its prompt is being computed, or waits for that
    PRODUCING = 2       # its first token is out

cdef struct Booking:
    uint8_t stage
    int32_t slot
    bint is_seen            # a stream: its first token will be seen
    bint alone              # no other prompt was before it: its time to first token is its own
    double at_s
    double first_s
    double prefill_s        # predicted
    double new_tokens
    double hit_tokens
    int64_t prefill_tokens
    int64_t kv_tokens       # so far
    double n_produced       # tokens since the first

cdef class Booker:
    """Books on a table in one worker's name."""
    cdef readonly Table table
    cdef readonly int worker
    # A request of so many prompt tokens, of which `hit_tokens` are cached there, goes to `slot`.
    cdef void book(self, Booking* booking, int slot, double n_tokens, double hit_tokens,
                   bint is_seen, double now_s) noexcept nogil
    cdef void first_token(self, Booking* booking, double now_s) noexcept nogil
    # So many further tokens came.
    cdef void grow(self, Booking* booking, int n) noexcept nogil
    # The engine told how much of the prompt it had cached; any time after `book`.
    cdef void found(self, const Booking* booking, double cached_tokens) noexcept nogil
    cdef void release(self, Booking* booking, double now_s) noexcept nogil
    # private
    cdef void _end_prefill(self, Booking* booking, double now_s) noexcept nogil
