"""Where a request is asked, and where next: picks, retries, and what bounds them."""

from gateway.proxy._plane cimport Plane
from gateway.proxy._pool cimport Pool
from gateway.proxy._request cimport Request
from router._policy cimport Ask

cdef class Attempts:
    """One per client connection, used for one request after the other."""
    cdef Plane plane
    cdef Ask ask
    cdef double hit_tokens          # of the prompt, cached at the slot picked last
    cdef bint fresh                 # `again` wants a connection that was not used before
    cdef int n_dispatches
    cdef bint refreshed
    cdef bint redispatched
    cdef list weighed               # what the candidates cost, for x-headgate-decision; else None
    cdef int deaths                 # engines that died, or may have died, with it on board
    cdef void begin(self, Request request) noexcept
    # The slot to ask next; -1: there is none, or the request has been at enough of them.
    cdef int pick(self, Request request, double now_s) except? -2
    # The same after a failure (a retry.Cause) at `pool`, if it may be repeated at all.
    cdef int again(self, Request request, int cause, Pool pool, double now_s) except? -2
    # It goes to this slot now.
    cdef void went(self, int slot) noexcept
    # What the candidates of the last pick cost: see Policy.explain, and `slot`.
    cdef list weigh(self)
    # private
    cdef bint _spend(self) except -1
