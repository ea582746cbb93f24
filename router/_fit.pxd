"""Engine profiles learned from what requests took: least squares, with a memory and a prior.

    seconds to the first token = base + a new + q new (hit + new / 2)   if no prompt is before it
    seconds between tokens     = base + b requests + c KV tokens

Workers add up the normal equations in the load cells; here they are taken out, older ones fade, and
the starting profile counts like some twenty observations. What comes out is clamped and moves in
small steps: policies suffer more from costs that jump than from costs that are wrong by a factor.
"""

from router._table cimport Sums, Table

cdef struct Line:
    # One equation: what was taken from the cells so far, and what counts now.
    Sums seen
    Sums counts
    double[3] prior
    double[3] scale         # a usual value of each x: what the prior's observations had

cdef class Fit:
    cdef Table table
    cdef readonly int slot
    cdef Line prefill
    cdef Line decode
