"""See _index.pxd."""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from router._hash cimport root_of
from router._map cimport place_of

cdef extern from *:
    """
    #include <stdint.h>
    /* Which of a line's keys it is; 5: none. No branch depends on where a key stands: that is
       anybody's guess, and a wrong one costs more than all comparisons. */
    static inline int headgate_which(const uint64_t *keys, uint64_t key) {
        unsigned int found = (keys[0] == key) | (keys[1] == key) << 1 | (keys[2] == key) << 2
            | (keys[3] == key) << 3 | (keys[4] == key) << 4 | 32;
        return __builtin_ctz(found);
    }
    """
    int which_of "headgate_which"(const uint64_t* keys, uint64_t key) noexcept nogil
    int lowest_bit "__builtin_ctzll"(uint64_t word) noexcept nogil
    int n_bits "__builtin_popcountll"(uint64_t word) noexcept nogil
    void fetch "__builtin_prefetch"(const void* p) noexcept nogil

cdef enum:
    MAX_PARTS = 4
    # Lines are filled to 4 of 5 on average: most blocks then stand where they belong.
    FILLED = 4
    # How far ahead of the walk memory is asked for.
    AHEAD = 8


cdef class Index:
    """A table for `capacity` blocks and `n_sets` sets of two and more slots, over `memory`.

    `memory` is a writable buffer of `Index.size(...)` bytes, zeroed before its first use. An Index
    that is to write must be the first and only writer over it; `add` and `remove` on another
    corrupt nothing but its answers. Not for several threads at once.
    """

    def __init__(self, memory, size_t capacity, uint32_t n_sets=65536):
        cdef unsigned char[::1] view = memory
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}, not positive")
        if not 1 <= n_sets <= 1 << 22:
            raise ValueError(f"n_sets is {n_sets}, not in 1..4194304")
        if <size_t>view.shape[0] < Index.size(capacity, n_sets):
            raise ValueError(
                f"memory holds {view.shape[0]} bytes, not {Index.size(capacity, n_sets)}"
            )
        self.memory = memory
        self.capacity = capacity
        self.n_lines = n_lines_for(capacity)
        self.n_sets = n_sets
        self.lines = <Line*>&view[0]
        self.sets = <SlotSet*>(&view[0] + self.n_lines * sizeof(Line))
        self.interned = Map()
        self.n_uses = <uint32_t*>calloc(n_sets, sizeof(uint32_t))
        self.free_sets = <uint32_t*>calloc(n_sets, sizeof(uint32_t))
        if self.n_uses == NULL or self.free_sets == NULL:
            raise MemoryError
        self._free_all()

    def __dealloc__(self):
        free(self.n_uses)
        free(self.free_sets)

    @staticmethod
    def size(size_t capacity, uint32_t n_sets=65536):
        """Bytes of memory that such an index takes."""
        return n_lines_for(capacity) * sizeof(Line) + n_sets * sizeof(SlotSet)

    cdef void _free_all(self) noexcept nogil:
        cdef uint32_t number
        for number in range(self.n_sets):
            self.free_sets[number] = self.n_sets - 1 - number
        self.n_free_sets = self.n_sets

    cdef void clear(self) noexcept nogil:
        if self.n_blocks == 0:
            return
        memset(self.lines, 0, self.n_lines * sizeof(Line))
        memset(self.n_uses, 0, self.n_sets * sizeof(uint32_t))
        self.interned.clear()
        self._free_all()
        self.n_blocks = 0

    # -- entries

    cdef void prefetch(self, uint64_t key) noexcept nogil:
        fetch(&self.lines[place_of(key, self.n_lines)])

    cdef uint32_t find(self, uint64_t key) noexcept nogil:
        cdef uint32_t* entry = self._entry(key)
        return NO_SET if entry == NULL else entry[0]

    cdef uint32_t* _entry(self, uint64_t key) noexcept nogil:
        cdef size_t at = place_of(key, self.n_lines)
        cdef size_t _
        cdef int index
        cdef Line* line
        for _ in range(self.n_lines):
            line = &self.lines[at]
            index = which_of(line.keys, key)
            if index < LINE_ENTRIES:
                return &line.sets[index]
            if line.n_passed == 0:
                return NULL
            at += 1
            if at == self.n_lines:
                at = 0
        return NULL

    cdef uint32_t* _room(self, uint64_t key) noexcept nogil:
        """A place for a key that has none; its line's `keys` entry is still free."""
        cdef size_t at = place_of(key, self.n_lines)
        cdef int index
        cdef Line* line
        while True:     # there is room: n_blocks < capacity < places
            line = &self.lines[at]
            index = which_of(line.keys, 0)
            if index < LINE_ENTRIES:
                return &line.sets[index]
            line.n_passed += 1
            at += 1
            if at == self.n_lines:
                at = 0

    cdef bint add(self, uint64_t key, int slot) noexcept nogil:
        cdef uint32_t* entry = self._entry(key)
        cdef uint32_t number
        if entry != NULL:
            if entry[0] == <uint32_t>slot:
                return True
            number = self._changed(entry[0], slot, True)
            if number == NO_SET:
                self.n_dropped += 1
                return False
            if number != entry[0]:
                self._use(entry, number)
            return True
        if self.n_blocks >= self.capacity:
            self.n_dropped += 1
            return False
        entry = self._room(key)
        entry[0] = slot
        # The key last: who finds it shall find its set.
        key_of(self.lines, entry)[0] = key
        self.n_blocks += 1
        return True

    cdef void add_all(self, const uint64_t* keys, size_t n, int slot) noexcept nogil:
        cdef size_t at
        for at in range(n):
            if at + AHEAD < n:
                self.prefetch(keys[at + AHEAD])
            self.add(keys[at], slot)

    cdef void remove(self, uint64_t key, int slot) noexcept nogil:
        cdef uint32_t* entry = self._entry(key)
        cdef uint32_t number
        cdef size_t at
        if entry == NULL:
            return
        if entry[0] != <uint32_t>slot:
            number = self._changed(entry[0], slot, False)
            if number == entry[0]:
                return
            if number != NO_SET:
                self._use(entry, number)
                return
            # No room for the smaller set: better to know of no holder than of a wrong one.
            self._unused(entry[0])
            self.n_dropped += 1
        key_of(self.lines, entry)[0] = 0
        self.n_blocks -= 1
        at = place_of(key, self.n_lines)
        while &self.lines[at] != line_of(self.lines, entry):
            self.lines[at].n_passed -= 1
            at += 1
            if at == self.n_lines:
                at = 0

    # -- sets

    cdef uint32_t _changed(self, uint32_t number, int slot, bint has) noexcept nogil:
        """The set that differs in this one slot; NO_SET: there is no room for another."""
        cdef SlotSet changed
        cdef uint64_t bit = <uint64_t>1 << (slot & 63)
        cdef int word = slot >> 6
        cdef int index, n = 0
        set_of(self, number, &changed)
        if ((changed.words[word] & bit) != 0) == has:
            return number
        changed.words[word] ^= bit
        for index in range(SET_WORDS):
            n += n_bits(changed.words[index])
        if n == 1:
            for index in range(SET_WORDS):
                if changed.words[index]:
                    return 64 * index + lowest_bit(changed.words[index])
        return self._intern(&changed)

    cdef uint32_t _intern(self, const SlotSet* wanted) noexcept nogil:
        cdef uint64_t* known = self.interned.put(hash_of(wanted))
        cdef uint32_t number
        if known != NULL and known[0]:
            return <uint32_t>known[0]
        if known == NULL:
            return NO_SET
        if self.n_free_sets == 0:
            self.interned.remove(hash_of(wanted))
            return NO_SET
        self.n_free_sets -= 1
        number = self.free_sets[self.n_free_sets]
        memcpy(&self.sets[number], wanted, sizeof(SlotSet))
        self.n_uses[number] = 0
        known[0] = MAX_SLOTS + number
        return MAX_SLOTS + number

    cdef void _use(self, uint32_t* entry, uint32_t number) noexcept nogil:
        """Let a block name another set."""
        cdef uint32_t before = entry[0]
        if number >= MAX_SLOTS:
            self.n_uses[number - MAX_SLOTS] += 1
        entry[0] = number
        self._unused(before)

    cdef void _unused(self, uint32_t number) noexcept nogil:
        """One block fewer names this set."""
        if number < MAX_SLOTS:
            return
        number -= MAX_SLOTS
        self.n_uses[number] -= 1
        if self.n_uses[number] == 0:
            self.interned.remove(hash_of(&self.sets[number]))
            self.free_sets[self.n_free_sets] = number
            self.n_free_sets += 1

    # -- for Python callers

    def holders(self, uint64_t key):
        """Slots that hold the block, ascending."""
        cdef SlotSet found
        cdef uint32_t number = self.find(key)
        if number == NO_SET:
            return []
        set_of(self, number, &found)
        return [
            slot for slot in range(MAX_SLOTS)
            if found.words[slot >> 6] >> (<unsigned int>slot & 63) & 1
        ]

    @property
    def n_sets_used(self):
        """Interned sets that blocks name."""
        return self.n_sets - self.n_free_sets

    def note(self, const uint64_t[::1] keys, int slot):
        """`add` each; how many found room."""
        cdef Py_ssize_t index
        cdef size_t n = 0
        check_slot(slot)
        for index in range(keys.shape[0]):
            n += self.add(keys[index], slot)
        return n

    def forget(self, const uint64_t[::1] keys, int slot):
        """`remove` each."""
        cdef Py_ssize_t index
        check_slot(slot)
        for index in range(keys.shape[0]):
            self.remove(keys[index], slot)


cdef class Matcher:
    """Of one worker. `indexes`: at most 4."""

    def __init__(self, indexes):
        if len(indexes) > MAX_PARTS:
            raise ValueError(f"more than {MAX_PARTS} indexes")
        self.indexes = list(indexes)

    cdef int32_t match(self, const uint64_t* keys, size_t n, const int32_t* slots,
                       int n_slots) noexcept:
        cdef (void*)[MAX_PARTS] parts
        cdef uint32_t[MAX_PARTS] before
        cdef SlotSet alive, held
        cdef Index index
        cdef int part, n_parts = 0, at
        cdef size_t block = 0
        cdef uint32_t number
        cdef uint64_t left
        cdef bint changed, any_left = n_slots > 0
        memset(&alive, 0, sizeof(SlotSet))
        for at in range(n_slots):
            alive.words[slots[at] >> 6] |= <uint64_t>1 << (slots[at] & 63)
            self.depths[slots[at]] = 0
        for index in self.indexes:
            parts[n_parts] = <void*>index
            before[n_parts] = NO_SET
            n_parts += 1
        while block < n and any_left:
            changed = False
            for part in range(n_parts):
                if block + AHEAD < n:
                    (<Index>parts[part]).prefetch(keys[block + AHEAD])
                number = (<Index>parts[part]).find(keys[block])
                if number != before[part]:
                    before[part] = number
                    changed = True
            if changed or block == 0:
                memset(&held, 0, sizeof(SlotSet))
                for part in range(n_parts):
                    join_set(<Index>parts[part], before[part], &held)
                any_left = False
                for at in range(SET_WORDS):
                    left = alive.words[at] & ~held.words[at]
                    alive.words[at] &= held.words[at]
                    any_left = any_left or alive.words[at] != 0
                    while left:
                        self.depths[64 * at + lowest_bit(left)] = <int32_t>block
                        left &= left - 1
            block += 1
        self.n_walked = block
        if not any_left:
            return <int32_t>(block - 1) if block else 0
        for at in range(SET_WORDS):
            left = alive.words[at]
            while left:
                self.depths[64 * at + lowest_bit(left)] = <int32_t>n
                left &= left - 1
        return <int32_t>n

    def depth_of(self, const uint64_t[::1] keys, slots):
        """Leading blocks held, by slot: `match` for Python callers."""
        cdef int32_t[MAX_SLOTS] array
        cdef int index, slot
        if len(slots) > MAX_SLOTS:
            raise ValueError(f"more than {MAX_SLOTS} slots")
        for index, slot in enumerate(slots):
            check_slot(slot)
            array[index] = slot
        self.match(&keys[0] if keys.shape[0] else NULL, keys.shape[0], array, len(slots))
        return {slot: self.depths[slot] for slot in slots}


cdef int check_slot(int slot) except -1:
    if not 0 <= slot < MAX_SLOTS:
        raise IndexError(f"slot {slot} is not in 0..{MAX_SLOTS - 1}")
    return 0


cdef inline size_t n_lines_for(size_t capacity) noexcept nogil:
    return capacity // FILLED + 1


cdef inline Line* line_of(Line* lines, const uint32_t* entry) noexcept nogil:
    return &lines[(<size_t>entry - <size_t>lines) // sizeof(Line)]


cdef inline uint64_t* key_of(Line* lines, const uint32_t* entry) noexcept nogil:
    cdef Line* line = line_of(lines, entry)
    return &line.keys[entry - &line.sets[0]]


cdef inline uint64_t hash_of(const SlotSet* held) noexcept nogil:
    return root_of(held, sizeof(SlotSet))


cdef inline void set_of(Index index, uint32_t number, SlotSet* out) noexcept nogil:
    memset(out, 0, sizeof(SlotSet))
    join_set(index, number, out)


cdef inline void join_set(Index index, uint32_t number, SlotSet* out) noexcept nogil:
    cdef int at
    if number < MAX_SLOTS:
        out.words[number >> 6] |= <uint64_t>1 << (number & 63)
    elif number - MAX_SLOTS < index.n_sets:
        for at in range(SET_WORDS):
            out.words[at] |= index.sets[number - MAX_SLOTS].words[at]
