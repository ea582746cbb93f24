"""What this worker has just sent, until the shared index has it, or the engine reports it.

So a burst of equal prompts lands together, before any of them is anywhere. An entry lives between
one and two lifetimes: there is a young index and an old one, which change places. A lifetime is
well above what a tick and a message take, and no longer than need be: an engine that has dropped
the blocks says so to the shared index alone.
"""

from libc.stdint cimport uint64_t

from router._index cimport Index

cdef class Recent:
    cdef readonly Index young
    cdef readonly Index old
    cdef double life_s
    cdef double turned_s
    cdef void add(self, const uint64_t* keys, size_t n, int slot, double now_s) noexcept
    cdef void clear(self) noexcept
    cdef void expire(self, double now_s) noexcept
    cdef void _turn(self, double now_s) noexcept
