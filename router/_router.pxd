"""One worker's routing: a prompt's hashes in, a booked endpoint out.

    prompt.keys --match--> depths --policy--> slot --book--> Booking
"""

from libc.stdint cimport int32_t, uint64_t

from router._booking cimport Booker, Booking
from router._demand cimport Demand
from router._index cimport Index, Matcher
from router._policy cimport Ask, Policy
from router._recent cimport Recent
from router._table cimport Table

cdef class Prompt:
    """The blocks of one request's prompt; used for one request after the other."""
    cdef uint64_t* keys
    cdef size_t n_keys
    cdef size_t room
    cdef double n_tokens
    cdef double block_tokens
    cdef int resize(self, size_t n) except -1   # `keys` holds n; what they say is to be set
    cdef void clear(self) noexcept              # gives its memory back

cdef class Router:
    cdef readonly Table table
    cdef readonly Booker booker
    cdef readonly Policy policy
    cdef readonly bint reads_prompts
    cdef Matcher matcher
    cdef Recent recent
    cdef double scale           # how many workers and gateways share the load evenly
    cdef double last_hit_tokens
    cdef Prompt prompt          # of `send`
    # Fill what is known here into `ask` (whose request fields are set), pick, and book into
    # `booking`. The slot, or -1. `prompt` may be None.
    cdef int route(self, Ask* ask, Prompt prompt, Demand demand, bint is_seen,
                   Booking* booking) except? -2

cdef class Dispatch:
    """A booking as an object, for callers from Python."""
    cdef Booker booker
    cdef Booking booking
    cdef readonly int slot
    cdef readonly double hit_tokens     # predicted
