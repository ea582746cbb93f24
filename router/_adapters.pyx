"""See _adapters.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, uint64_t
from libc.string cimport memset

from router._hash cimport root_of
from router._marks cimport age_s, mark_of, put, sweep
from router._table cimport MAX_SLOTS, Table

cdef enum:
    PLACES = 32             # per endpoint; of an engine with more slots the last used 32 count
    # Of an engine that does not say: SGLang's default per batch, and above vLLM's own of 1, which
    # says.
    UNKNOWN_LORAS = 8

# An adapter that was used within this time will be asked for again: whoever displaces it has it
# loaded a second time.
cdef double WANTED_S = 60.0


cdef class Adapters:
    """Over `Adapters.size()` bytes of zeroed memory; one object per process."""

    def __init__(self, memory, double load_s=0.5):
        cdef unsigned char[::1] view = memory
        if view.shape[0] < Adapters.size():
            raise ValueError(f"memory holds {view.shape[0]} bytes, not {Adapters.size()}")
        self.memory = memory
        self.words = <uint64_t*>&view[0]
        self.load_s = load_s

    @staticmethod
    def size():
        """Bytes it takes."""
        return MAX_SLOTS * PLACES * sizeof(uint64_t)

    cdef void note(self, uint64_t adapter, int slot, double now_s) noexcept nogil:
        put(self.words + slot * PLACES, PLACES, adapter, 0, now_s)

    cdef void price(self, Table table, uint64_t adapter, const int32_t* slots, int n_slots,
                    double now_s, float* out) noexcept nogil:
        cdef int index
        for index in range(n_slots):
            out[slots[index]] = <float>self._cost(table, adapter, slots[index], now_s)

    cdef double _cost(self, Table table, uint64_t adapter, int slot, double now_s) noexcept nogil:
        cdef uint64_t* group = self.words + slot * PLACES
        cdef uint64_t* own = mark_of(group, PLACES, adapter)
        cdef int room = table.rows[slot].max_loras if table.rows[slot].max_loras else UNKNOWN_LORAS
        cdef int index, n_newer = 0, n_wanted = 0
        cdef double age, own_s = 1e300 if own == NULL else age_s(own[0], now_s)
        for index in range(PLACES):
            if group[index] and &group[index] != own:
                age = age_s(group[index], now_s)
                n_newer += age < own_s
                n_wanted += age < WANTED_S
        if own != NULL and n_newer < room:
            return 0
        return self.load_s if n_wanted < room else 2 * self.load_s

    def used(self, int slot, names, double now_s):
        """An engine says that it has these adapters in use."""
        cdef bytes name
        cdef int place = slot & (MAX_SLOTS - 1)
        for text in names:
            name = text.encode()
            self.note(root_of(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name)), place, now_s)

    def forget(self, int slot):
        """It has none: the engine is another, or was started anew."""
        memset(self.words + (slot & (MAX_SLOTS - 1)) * PLACES, 0, PLACES * sizeof(uint64_t))

    def sweep(self, double now_s):
        """Forget what is long past, before it looks new again: every few minutes, by one process.
        """
        sweep(self.words, MAX_SLOTS * PLACES, now_s)

    def cost_s(self, Table table not None, str name, int slot, double now_s):
        """Seconds until an endpoint has an adapter: `price` for Python callers."""
        cdef bytes key = name.encode()
        table._check(slot)
        return self._cost(table, root_of(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)), slot,
                          now_s)
