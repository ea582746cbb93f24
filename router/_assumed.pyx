"""See _assumed.pxd."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, realloc

from router._index cimport Index
from router._map cimport Map

cdef enum:
    FIRST_NODES = 1024


cdef class AssumedCache:
    """The assumed cache of the endpoint in `slot`; its blocks are kept in `index`."""

    def __init__(self, Index index, int slot, size_t capacity):
        self.index = index
        self.slot = slot
        self.capacity = max(<size_t>1, capacity)
        self.numbers = Map()

    def __dealloc__(self):
        free(self.nodes)

    cdef int _more_nodes(self) except -1:
        cdef size_t n = min(max(<size_t>FIRST_NODES, 2 * self.n_nodes), self.capacity)
        cdef Node* nodes = <Node*>realloc(self.nodes, (n + 1) * sizeof(Node))
        cdef size_t number
        if nodes == NULL:
            raise MemoryError
        self.nodes = nodes
        for number in range(n, self.n_nodes, -1):
            self.nodes[number].older = self.unused
            self.unused = <uint32_t>number
        self.n_nodes = n
        return 0

    cdef int touch(self, const uint64_t* keys, size_t n) except -1:
        cdef size_t at
        cdef uint64_t* number
        # A prompt larger than the cache: its beginning is what a later one could share.
        n = min(n, self.capacity)
        for at in range(n, 0, -1):
            number = self.numbers.get(keys[at - 1])
            if number != NULL:
                self._unlink(<uint32_t>number[0])
                self._link(<uint32_t>number[0])
            else:
                self._add(keys[at - 1])
        return 0

    cdef int _add(self, uint64_t key) except -1:
        cdef uint32_t number
        cdef uint64_t* place
        if self.n_blocks >= self.capacity:
            self._evict()
        if self.unused == 0:
            self._more_nodes()
        place = self.numbers.put(key)
        if place == NULL:
            raise MemoryError
        number = self.unused
        self.unused = self.nodes[number].older
        self.nodes[number].key = key
        place[0] = number
        self._link(number)
        self.n_blocks += 1
        self.index.add(key, self.slot)
        return 0

    cdef void _link(self, uint32_t number) noexcept nogil:
        """Make it the newest."""
        self.nodes[number].older = self.newest
        self.nodes[number].newer = 0
        if self.newest:
            self.nodes[self.newest].newer = number
        else:
            self.oldest = number
        self.newest = number

    cdef void _unlink(self, uint32_t number) noexcept nogil:
        cdef Node* node = &self.nodes[number]
        if node.newer:
            self.nodes[node.newer].older = node.older
        else:
            self.newest = node.older
        if node.older:
            self.nodes[node.older].newer = node.newer
        else:
            self.oldest = node.newer

    cdef void _evict(self) noexcept nogil:
        cdef uint32_t number = self.oldest
        cdef uint64_t key = self.nodes[number].key
        self.numbers.remove(key)
        self._unlink(number)
        self.nodes[number].older = self.unused
        self.unused = number
        self.n_blocks -= 1
        self.index.remove(key, self.slot)

    def resize(self, size_t capacity):
        """Another capacity; what no longer fits is evicted."""
        self.capacity = max(<size_t>1, capacity)
        while self.n_blocks > self.capacity:
            self._evict()

    def clear(self):
        """Forget everything: the engine restarted, or left."""
        while self.n_blocks:
            self._evict()

    def sent(self, const uint64_t[::1] keys):
        """`touch` for Python callers."""
        if keys.shape[0]:
            self.touch(&keys[0], keys.shape[0])

    def keys(self):
        """All blocks, newest first."""
        found = []
        number = self.newest
        while number:
            found.append(self.nodes[number].key)
            number = self.nodes[number].older
        return found


class AssumedCaches:
    """The assumed caches of all endpoints, over one index, which only they write."""

    def __init__(self, Index index):
        self.index = index
        self.caches = {}

    def open(self, int slot, generation, size_t capacity):
        """An endpoint came, or is another one in the same slot: its cache is empty."""
        self.close(slot)
        self.caches[slot] = (generation, AssumedCache(self.index, slot, capacity))

    def close(self, int slot):
        """It left."""
        if slot in self.caches:
            self.caches.pop(slot)[1].clear()

    def cache(self, int slot):
        """The AssumedCache of a slot. KeyError: it has none."""
        return self.caches[slot][1]

    def sent(self, const unsigned char[::1] words):
        """Prompts went to endpoints: (generation << 32 | slot, n, n block hashes) each, in 64-bit
        words. ValueError if that is not what they are; what came before it counts."""
        cdef const uint64_t* at
        cdef const uint64_t* end
        cdef AssumedCache cache
        if words.shape[0] == 0:
            return
        at = <const uint64_t*>&words[0]
        end = at + words.shape[0] // sizeof(uint64_t)
        while at < end:
            if end - at < 2 or at[1] > <uint64_t>(end - at - 2):
                raise ValueError("the prompts that were sent are cut off")
            found = self.caches.get(at[0] & 0xffffffff)
            if found is not None and found[0] == at[0] >> 32:
                cache = found[1]
                cache.touch(at + 2, at[1])
            at += 2 + at[1]
        if words.shape[0] % sizeof(uint64_t):
            raise ValueError("the prompts that were sent are cut off")
