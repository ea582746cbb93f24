"""Which LoRA adapters each engine has in a slot of its GPU, and what it costs to have one loaded.

An engine keeps the `Row.max_loras` adapters that it used last. Here stands what it was sent,
written by every worker (see router._marks), and what it says is running, by the control process.
"""

from libc.stdint cimport int32_t, uint64_t

from router._table cimport Table

cdef class Adapters:
    cdef object memory
    cdef uint64_t* words                # [slot][PLACES]
    cdef public double load_s           # seconds to load an adapter into a free slot
    # By slot, into `out`: seconds until the adapter is there.
    cdef void price(self, Table table, uint64_t adapter, const int32_t* slots, int n_slots,
                    double now_s, float* out) noexcept nogil
    # A request for it went there.
    cdef void note(self, uint64_t adapter, int slot, double now_s) noexcept nogil
    cdef double _cost(self, Table table, uint64_t adapter, int slot, double now_s) noexcept nogil
