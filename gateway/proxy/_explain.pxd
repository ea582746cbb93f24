"""Decisions in words: for the header `x-headgate-decision`, and for who asks beforehand."""

from gateway.proxy._attempts cimport Attempts
from gateway.proxy._plane cimport Plane

# The header line of what was decided, its terms as they were when it was; `slot`: who has it.
cdef bytes decision_line(Plane plane, Attempts attempts, int slot, bint has_ids)
