"""Where a request is asked, and where next: picks, retries, and what bounds them."""

from libc.stdint cimport uint64_t

from gateway.proxy._plane cimport Plane
from gateway.proxy._pool cimport Pool
from gateway.proxy._request cimport Request
from router._policy cimport Ask

cdef enum:
    GIVE_UP = -3        # it is not asked again; beside the router's NOBODY and BUSY

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
    cdef int retry_count            # the Count of the retry that is due; -1: none is
    cdef void begin(self, Request request, double now_s) noexcept
    # The slot to ask next, or NOBODY, BUSY, or GIVE_UP: it has been at enough of them.
    cdef int pick(self, Request request, double now_s) except? -9
    # As `pick`, at a glance: see Router.look.
    cdef int look(self, Request request, double now_s) noexcept
    # As `pick`, after a failure (a retry.Cause) at `pool`; GIVE_UP: it may not be repeated, or
    # there is neither an endpoint for it nor a place in the queue.
    cdef int again(self, Request request, int cause, Pool pool, double now_s) except? -9
    # Picked for this slot: may somebody who waits here go there, who goes first?
    cdef bint is_behind(self, Request request, int slot) except -1
    # It goes to this slot now.
    cdef void went(self, int slot) noexcept
    # What the candidates of the last pick cost: see Policy.explain, and `slot`.
    cdef list weigh(self)
    # Tell this worker and the others that it waits for the endpoints that it may go to.
    cdef void claim(self, double now_s) noexcept
    # Equal for requests that may go to the same endpoints.
    cdef tuple wants(self, Request request)
    # The one slot where it may go, as of the last pick or look; -1: there are more.
    cdef int only(self) noexcept
    # How long it may wait, for which the last pick said NOBODY or BUSY, in seconds; 0: not at all.
    cdef double patience_s(self, int verdict, Request request) noexcept
    # The last pick said NOBODY: why, as (Reason, details).
    cdef tuple nobody(self, Request request)
    # private
    cdef void _ask(self, Request request, double now_s) noexcept
    cdef uint64_t _offered(self) noexcept
    cdef bint _is_offered(self) noexcept
    cdef bint _spend(self) except -1
