"""See _served.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int32_t
from libc.stdlib cimport free, malloc

from router._demand cimport Demand
from router._hash cimport root_of
from router._table cimport MAX_SLOTS


cdef class Served:
    def __init__(self, str name, slots, bint exact_usage, Demand demand, bint is_adapter=False,
                 str tokenizer="", size_t block_tokens=0, bint asks=False):
        cdef int index, slot
        self.name = name
        self.key = name.encode()
        self.demand = demand
        self.root = root_of(PyBytes_AS_STRING(self.key), PyBytes_GET_SIZE(self.key))
        self.adapter = self.root if is_adapter else 0
        self.lora = name if is_adapter else ""
        self.tokenizer = tokenizer
        self.block_tokens = block_tokens
        self.asks = asks
        self.n_slots = len(slots)
        self.exact_usage = exact_usage
        self.slots = <int32_t*>malloc(max(1, self.n_slots) * sizeof(int32_t))
        if self.slots == NULL:
            raise MemoryError
        for index, slot in enumerate(slots):
            if not 0 <= slot < MAX_SLOTS:
                raise ValueError(f"slot {slot}")
            self.slots[index] = slot

    def __dealloc__(self):
        free(self.slots)

    cdef bint is_held_by(self, int slot) noexcept nogil:
        cdef int index
        for index in range(self.n_slots):
            if self.slots[index] == slot:
                return True
        return False
