"""One worker's routing: a prompt's hashes in, a booked endpoint out.

    prompt.keys --match--> depths --policy--> slot --book--> Booking
"""

from router._adapters cimport Adapters
from router._booking cimport Booker, Booking
from router._demand cimport Demand
from router._effort cimport Effort
from router._index cimport Index, Matcher
from router._keying cimport Prompt
from router._policy cimport Ask, Policy
from router._recent cimport Recent
from router._sessions cimport Sessions
from router._table cimport MAX_SLOTS, Table

cdef class Router:
    cdef readonly Table table
    cdef readonly Booker booker
    cdef readonly Policy policy
    cdef readonly bint reads_prompts
    cdef Matcher matcher
    cdef Recent recent
    cdef readonly Sessions sessions     # None: no request names one
    cdef readonly Adapters adapters     # None: none are asked for
    cdef float[MAX_SLOTS] load_s        # see Ask.load_s
    cdef Effort effort
    cdef double scale           # how many workers and gateways share the load evenly
    cdef double last_hit_tokens     # on the slot that was picked last
    cdef Prompt prompt          # of `send`
    # Fill what is known here into `ask` (whose request fields are set), and pick: the slot, or
    # NOBODY, or BUSY. `prompt` may be None. What is filled in holds until the next pick.
    cdef int pick(self, Ask* ask, Prompt prompt, Demand demand) noexcept
    # At a glance: NOBODY or BUSY as from `pick`; a slot's number says no more than that one of
    # those where it may go has room.
    cdef int look(self, Ask* ask) noexcept
    # Book what was asked on `slot`, of which `cached` tokens are there.
    cdef void book(self, Booking* booking, int slot, const Ask* ask, double cached,
                   Prompt prompt, Demand demand, bint is_seen) noexcept

    # private
    cdef void _find_home(self, Ask* ask) noexcept
    cdef int _choose(self, Ask* ask) noexcept

cdef class Dispatch:
    """A booking as an object, for callers from Python."""
    cdef Booker booker
    cdef Booking booking
    cdef readonly int slot
    cdef readonly double hit_tokens     # predicted
