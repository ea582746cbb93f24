"""A prompt's token ids: made beside the loop, or asked of an engine (POST /tokenize).

The question goes over the connections that requests use, to the endpoint of the model that has
the least to do. It is no dispatch: nothing is booked, nothing counted against the endpoint, and
whatever goes wrong, the answer is that the ids are not known.
"""

from gateway.http._body cimport Walker
from gateway.http._head cimport Head
from gateway.proxy._plane cimport Plane
from gateway.proxy._pool cimport Pool
from gateway.proxy._request cimport Request
from gateway.proxy._upstream cimport Sink, Upstream

cdef class Asking(Sink):
    """One question. `callback(ids)` hears the answer, array("I") or None, once; never after
    `cancel`."""
    cdef Plane plane
    cdef Pool pool
    cdef Upstream upstream          # None: not yet, or no more
    cdef object callback            # None: over
    cdef object timer
    cdef bytes message
    cdef Walker walker
    cdef list pieces
    cdef size_t size
    cdef int status
    cdef bint reusable
    # private
    cdef int _dial(self, Pool pool, bytes message) except -1
    cdef int _feed(self, bytes data, size_t at) except -1
    cdef int _end(self, str how, object ids) except -1

# Get the ids of this request's prompt, which wants them. What works on it, to `cancel`; None:
# `callback` has been called with None already.
cdef object make_ids(Plane plane, Request request, object callback)
