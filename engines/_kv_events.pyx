"""See _kv_events.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free

from engines._kv_event cimport (
    CLEARED, NO_EVENT, STORED, Event, find_salt, is_same_text, is_text, read_event, read_key,
    read_number_or_nil, spans_the_prompt, text_of,
)
from engines._msgpack cimport (
    ARRAY, MAP, Cursor, Item, Span, fail, open_cursor, read_array, read_float, read_item,
    read_span, skip, take_nil,
)
from router._hash cimport chain, root_of
from router._reported cimport ReportedCache

from router.namespace import namespace

# What sets the hash behind an extra key apart from that of a block with the same bytes.
cdef uint64_t EXTRA = 0x5851f42d4c957f2d
# An engine's hash of 0 is taken as this: 0 is no key of a map.
cdef uint64_t ZERO = 0x9e6c63d0876a9a47


cdef class KvEvents:
    """The reader of one publisher's events. `cache` and `others` belong to it alone.

    `model` is the name under which the router asks for this engine's model. Not for several
    threads at once.
    """

    def __init__(self, str model not None, ReportedCache cache not None,
                 ReportedCache others=None):
        self.model = model
        self.cache = cache
        self.others = others
        self.group = -1

    def __dealloc__(self):
        free(self.hashes.p)
        free(self.tokens.p)

    def apply(self, bytes payload not None):
        """Take one batch in; the data-parallel rank that sent it, or None.

        ValueError: it is no batch of events, or blocks have another size than before. The events
        before the faulty one are applied, the others are not: what is known then is no longer what
        the engine holds, and has to be learned anew (`forget`).
        """
        cdef Cursor cursor
        cdef Item item
        cdef Span key
        cdef size_t at
        cdef bint seen = False
        cdef int64_t rank = -1
        open_cursor(&cursor, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
        read_item(&cursor, &item)
        if item.kind != ARRAY and item.kind != MAP:
            fail(&cursor, "a batch is an array or a map")
        for at in range(item.value):
            if item.kind == MAP:
                read_key(&cursor, &key)
            if at == 1 if item.kind == ARRAY else is_text(&key, b"events", 6):
                seen = True
                self._events(&cursor)
            elif at == 2 if item.kind == ARRAY else is_text(&key, b"data_parallel_rank", 18):
                rank = read_number_or_nil(&cursor)
            else:
                skip(&cursor)
        if not seen:
            fail(&cursor, "a batch without events")
        if cursor.p != cursor.end:
            fail(&cursor, "more than one batch")
        self.n_batches += 1
        return None if rank < 0 else rank

    def forget(self):
        """What was reported is void: the engine is another, or something was missed."""
        self.cache.clear()
        if self.others is not None:
            self.others.clear()
        self.block_tokens = 0
        self.group = -1

    cdef int _events(self, Cursor* cursor) except -1:
        cdef size_t n, _
        read_array(cursor, &n)
        for _ in range(n):
            read_event(cursor, &self.event, &self.hashes, &self.tokens)
            self._carry_out(cursor)
        return 0

    cdef int _carry_out(self, Cursor* cursor) except -1:
        cdef Event* event = &self.event
        cdef ReportedCache cache
        cdef size_t at
        if event.type == CLEARED:
            self.cache.clear()
            if self.others is not None:
                self.others.clear()
            self.n_clears += 1
            return 0
        cache = self._cache_of(&event.medium)
        if (
            event.type == NO_EVENT
            or cache is None
            or (event.group >= 0 and self.group >= 0 and event.group != self.group)
            or (event.type == STORED and not spans_the_prompt(&event.spec_kind))
        ):
            self.n_skipped += 1
            return 0
        if event.type == STORED:
            return self._stored(cache, cursor)
        for at in range(self.hashes.n):
            cache.removed(self.hashes.p[at] or ZERO)
        self.n_removed += self.hashes.n
        return 0

    cdef ReportedCache _cache_of(self, const Span* medium):
        if medium.p == NULL or is_text(medium, b"GPU", 3):
            return self.cache
        return self.others

    # -- stored blocks

    cdef int _stored(self, ReportedCache cache, Cursor* cursor) except -1:
        cdef Event* event = &self.event
        cdef Span salt
        cdef uint64_t root = 0
        if self.hashes.n == 0:
            return 0
        if self.tokens.n == 0 and cache is not self.cache:
            return self._stored_by_name(cache)
        if event.block_tokens == 0 or self.tokens.n % event.block_tokens or (
                self.tokens.n // event.block_tokens != self.hashes.n):
            fail(cursor, f"{self.tokens.n} tokens are not {self.hashes.n} blocks of "
                         f"{event.block_tokens}")
        if self.block_tokens and event.block_tokens != self.block_tokens:
            fail(cursor, f"a block of {event.block_tokens} tokens after one of {self.block_tokens}")
        self.block_tokens = event.block_tokens
        if event.group >= 0:
            self.group = event.group
        salt.p = NULL
        if not event.has_parent:
            find_salt(event, &salt)
            root = self._root(&salt)
        self._store(cache, root, salt.p != NULL)
        self.n_stored += self.hashes.n
        return 0

    cdef int _stored_by_name(self, ReportedCache cache) except -1:
        # Offloading tells hashes alone, of blocks that the GPU (still) holds.
        cdef size_t at
        cdef uint64_t key
        for at in range(self.hashes.n):
            key = self._key_of(cache, self.hashes.p[at])
            if key:
                cache._store(self.hashes.p[at] or ZERO, key)
                self.n_stored += 1
            else:
                cache.n_orphans += 1
        return 0

    cdef int _store(self, ReportedCache cache, uint64_t root, bint is_salted) except -1:
        """All blocks; where one has extra keys, a run ends, and those behind it begin anew."""
        cdef Event* event = &self.event
        cdef Cursor cursor
        cdef Span extra
        cdef Item item
        cdef bint has_parent = event.has_parent
        cdef bint adapter_is_due
        cdef uint64_t parent = event.parent
        cdef uint64_t key
        cdef size_t first = 0, n_entries = 0, n_keys, at, _
        if event.extras.p != NULL:
            open_cursor(&cursor, event.extras.p, event.extras.n)
            read_array(&cursor, &n_entries)
        for at in range(min(n_entries, self.hashes.n)):
            if take_nil(&cursor):
                continue
            extra.p = cursor.p
            read_item(&cursor, &item)
            n_keys = item.value
            if item.kind != ARRAY:
                cursor.p = extra.p
                n_keys = 1
            adapter_is_due = event.lora.p != NULL
            key = 0
            for _ in range(n_keys):
                extra.p = cursor.p
                skip(&cursor)
                extra.n = cursor.p - extra.p
                if adapter_is_due and is_same_text(&extra, &event.lora):
                    adapter_is_due = False
                    continue
                if is_salted and at == 0:
                    continue
                if key == 0:
                    self._store_run(cache, has_parent, parent, root, first, at)
                    first = at
                    if at or event.has_parent:
                        parent = self.hashes.p[at - 1] if at else event.parent
                        key = self._key_of(cache, parent)
                        if key == 0:        # orphans, they all
                            self._store_run(cache, True, parent, 0, at, self.hashes.n)
                            return 0
                    else:
                        key = root
                chain(key ^ EXTRA, extra.p, extra.n, extra.n, &key)
                root = key
                has_parent = False
        self._store_run(cache, has_parent, parent, root, first, self.hashes.n)
        return 0

    cdef int _store_run(self, ReportedCache cache, bint has_parent, uint64_t parent, uint64_t root,
                        size_t first, size_t end) except -1:
        cdef size_t at
        if first == end:
            return 0
        for at in range(first, end):
            if self.hashes.p[at] == 0:
                self.hashes.p[at] = ZERO
        parent = parent or ZERO
        if has_parent and cache is not self.cache:
            root = self._key_of(cache, parent)
            has_parent = root == 0
        cache.stored(has_parent, parent, root, self.hashes.p + first, end - first,
                     self.tokens.p + first * self.block_tokens, self.block_tokens)
        return 0

    cdef uint64_t _key_of(self, ReportedCache cache, uint64_t hash) noexcept:
        """Our hash of a stored block; 0: there is none. Other media may build on the GPU's."""
        cdef uint64_t* number = cache.numbers.get(hash or ZERO)
        if number != NULL:
            return cache.blocks[number[0]].key
        return 0 if cache is self.cache else self._key_of(self.cache, hash)

    cdef uint64_t _root(self, const Span* salt) except? 0:
        cdef Event* event = &self.event
        cdef bytes lora = text_of(&event.lora)
        cdef bytes named, salt_text = b""
        cdef Cursor cursor
        cdef Span text
        cdef uint64_t root
        if salt.p == NULL and lora == self.root_lora:
            root = self.root
        else:
            if salt.p != NULL:
                open_cursor(&cursor, salt.p, salt.n)
                read_span(&cursor, &text)
                salt_text = text_of(&text)
            named = namespace(self.model, lora.decode("utf-8", "surrogatepass"),
                              salt_text.decode("utf-8", "surrogatepass"))
            root = root_of(PyBytes_AS_STRING(named), PyBytes_GET_SIZE(named))
            if salt.p == NULL:
                self.root_lora = lora
                self.root = root
        if event.lora.n == 0 and event.lora_id.p != NULL:
            # Old releases number their adapters, and each engine does so by itself.
            chain(root ^ EXTRA, event.lora_id.p, event.lora_id.n, event.lora_id.n, &root)
        return root


def stamp_of(bytes payload not None):
    """When the engine made the batch (its `ts`, in seconds); 0.0 if it cannot be read."""
    cdef Cursor cursor
    cdef Item item
    cdef Span key
    cdef double stamp = 0
    cdef size_t _
    open_cursor(&cursor, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload))
    try:
        read_item(&cursor, &item)
        if item.kind == ARRAY and item.value:
            read_float(&cursor, &stamp)
        elif item.kind == MAP:
            for _ in range(item.value):
                read_key(&cursor, &key)
                if is_text(&key, b"ts", 2):
                    read_float(&cursor, &stamp)
                    break
                skip(&cursor)
    except ValueError:
        return 0.0
    return stamp if stamp == stamp else 0.0
