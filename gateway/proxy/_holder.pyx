"""See _holder.pxd."""

from libc.stdint cimport int64_t, uint64_t


cdef class Holder:
    def __init__(self, str name, models, str usage, uint64_t labels, tuple strange_labels,
                 int64_t priority):
        self.name = name
        self.models = frozenset([model.encode() for model in models]) if models else None
        self.usage = usage
        self.labels = labels
        self.strange_labels = strange_labels
        self.priority = priority
