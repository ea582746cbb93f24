"""Who holds a known key, and what that lets its requests do."""

from libc.stdint cimport int64_t, uint64_t

cdef class Holder:
    cdef readonly str name
    cdef frozenset models           # None: all of them
    cdef str usage                  # '', 'observe' or 'exact'
    cdef uint64_t labels            # bits that its requests' endpoints must have
    cdef tuple strange_labels       # of these, texts of those that no endpoint has
    cdef int64_t priority           # the lowest that its requests get
