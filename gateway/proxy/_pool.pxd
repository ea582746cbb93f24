"""The connections to one endpoint: idle ones last in, first out; and the dials under way.

Hot connections stay hot and cold ones expire, below the engine's own keep-alive. A request that
finds none idle waits for whichever comes first: its dial, or a connection that is given back.
"""

from libc.stdint cimport int64_t

from gateway.proxy._path cimport Path
from gateway.proxy._plane cimport Plane
from gateway.proxy._request cimport Request
from gateway.proxy._upstream cimport Sink, Upstream
from router._table cimport Load

cdef class Pool:
    cdef Plane plane
    cdef readonly object endpoint       # messages.Endpoint
    cdef readonly int slot
    cdef readonly unsigned int generation
    cdef bytes host_line                # "Host: ...\r\n", and Authorization if it has an API key
    cdef bytes path_prefix
    cdef bint has_api_key
    cdef double keep_alive_s
    cdef readonly tuple dying_answers   # ((status, piece of the body), ...)
    cdef bytes cut_short                # stands in a 200 that is not the whole answer; None
    cdef bint blames_engine             # see engines.habits.Kind
    cdef int64_t* words                 # its counters in this worker's column
    cdef Load* load                     # its load cell of this worker
    cdef list idle
    cdef object waiters                 # deque of Sink
    cdef set dials                      # tasks under way
    cdef object tls                     # SSLContext or None
    cdef bint closed

    # A connection at once, or None: the sink will be called. `path`: of what will be asked there;
    # None: a question of our own. `fresh`: no connection that was used before.
    cdef Upstream take(self, Sink sink, Path path, bint fresh)
    # Begin an exchange with what a client asks for. The sink is not called before this returns.
    cdef int ask(self, Upstream upstream, Sink sink, Request request) except -1
    # Why what a client asks for cannot be had there, as `explain` tells it; None: it can.
    cdef dict refusal(self, Request request)
    # Give a connection back for others.
    cdef int give(self, Upstream upstream) except -1
    # The sink no longer waits.
    cdef int leave(self, Sink sink) except -1
    # private
    cdef int _connected(self, Sink sink, Upstream upstream) except -1
    cdef int _offer(self, Upstream upstream) except -1
    cdef int _failed(self, str why) except -1
