"""See _kv_events.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcmp, memset

from engines._msgpack cimport (
    ARRAY, MAP, STR, Cursor, Item, Span, fail, open_cursor, read_array, read_float,
    read_hash, read_hashes, read_item, read_span, read_tokens, read_uint, skip, take_nil,
    take_short,
)
from router._hash cimport chain, root_of
from router._reported cimport ReportedCache

from router.namespace import namespace

cdef enum:
    NO_EVENT
    STORED
    REMOVED
    CLEARED

cdef enum:
    NO_FIELD
    TYPE
    HASHES
    PARENT
    TOKENS
    BLOCK_SIZE
    LORA_ID
    MEDIUM
    LORA_NAME
    EXTRA_KEYS
    GROUP
    SPEC_KIND

cdef enum:
    N_STORED_FIELDS = 10
    N_REMOVED_FIELDS = 3

# The fields of events that are arrays, behind the type.
cdef int[N_STORED_FIELDS] STORED_FIELDS = [
    HASHES, PARENT, TOKENS, BLOCK_SIZE, LORA_ID, MEDIUM, LORA_NAME, EXTRA_KEYS, GROUP, SPEC_KIND,
]
cdef int[N_REMOVED_FIELDS] REMOVED_FIELDS = [HASHES, MEDIUM, GROUP]

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
            self._event(cursor)
        return 0

    cdef int _event(self, Cursor* cursor) except -1:
        cdef Item item
        cdef Span key
        cdef size_t at
        cdef int field = NO_FIELD
        memset(&self.event, 0, sizeof(Event))
        self.event.group = -1
        self.hashes.n = self.tokens.n = 0
        read_item(cursor, &item)
        if item.kind != ARRAY and item.kind != MAP:
            fail(cursor, "an event is an array or a map")
        for at in range(item.value):
            if item.kind == MAP:
                read_key(cursor, &key)
                field = field_of(&key)
            elif at == 0:
                field = TYPE
            else:
                field = NO_FIELD
                if self.event.type == STORED and at <= N_STORED_FIELDS:
                    field = STORED_FIELDS[at - 1]
                elif self.event.type == REMOVED and at <= N_REMOVED_FIELDS:
                    field = REMOVED_FIELDS[at - 1]
            self._field(field, cursor)
        return self._carry_out(cursor)

    cdef int _field(self, int field, Cursor* cursor) except -1:
        cdef Event* event = &self.event
        cdef Span text
        cdef const unsigned char* start = cursor.p
        if take_nil(cursor):
            return 0
        if field == HASHES:
            read_hashes(cursor, &self.hashes)
        elif field == TOKENS:
            read_tokens(cursor, &self.tokens)
        elif field == TYPE:
            if not take_short(cursor, &text):
                read_span(cursor, &text)
            event.type = type_of(&text)
        elif field == PARENT:
            read_hash(cursor, &event.parent)
            event.has_parent = True
        elif field == BLOCK_SIZE:
            read_uint(cursor, &event.block_tokens)
        elif field == MEDIUM:
            if not take_short(cursor, &event.medium):
                read_span(cursor, &event.medium)
        elif field == LORA_NAME:
            read_span(cursor, &event.lora)
        elif field == SPEC_KIND:
            if not take_short(cursor, &event.spec_kind):
                read_span(cursor, &event.spec_kind)
        elif field == GROUP:
            event.group = read_number_or_nil(cursor)
        else:
            skip(cursor)
            if field == EXTRA_KEYS:
                event.extras.p = start
                event.extras.n = cursor.p - start
            elif field == LORA_ID:
                event.lora_id.p = start
                event.lora_id.n = cursor.p - start
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


cdef int read_key(Cursor* cursor, Span* key) except -1:
    """The key of a map; one that is no string is like one that we do not know."""
    if take_short(cursor, key):     # as all that we know
        return 0
    key.p = cursor.p
    key.n = 0
    return skip(cursor)


cdef int64_t read_number_or_nil(Cursor* cursor) except? -2:
    cdef uint64_t value
    if take_nil(cursor):
        return -1
    read_uint(cursor, &value)
    if value > 0x7fffffff:
        fail(cursor, f"{value} is no number of a group or a rank")
    return <int64_t>value


cdef inline bint is_text(const Span* span, const char* text, size_t n) noexcept nogil:
    return span.n == n and memcmp(span.p, text, n) == 0


cdef inline bytes text_of(const Span* span):
    return span.p[:span.n] if span.p != NULL else b""


cdef bint is_same_text(const Span* raw, const Span* text) except -1:
    """Whether a value in its msgpack is this string."""
    cdef Cursor cursor
    cdef Item item
    open_cursor(&cursor, raw.p, raw.n)
    read_item(&cursor, &item)
    return item.kind == STR and item.value == text.n and memcmp(cursor.p, text.p, text.n) == 0


cdef int find_salt(const Event* event, Span* salt) except -1:
    """The cache salt (its msgpack): the one text beside the adapter's name at the first block."""
    cdef Cursor cursor
    cdef Span extra
    cdef Item item
    cdef size_t n, _, n_others = 0
    cdef bint adapter_is_due = event.lora.p != NULL
    salt.p = NULL
    if event.extras.p == NULL:
        return 0
    open_cursor(&cursor, event.extras.p, event.extras.n)
    read_array(&cursor, &n)
    if n == 0:
        return 0
    read_item(&cursor, &item)
    if item.kind != ARRAY:
        return 0
    for _ in range(item.value):
        extra.p = cursor.p
        skip(&cursor)
        extra.n = cursor.p - extra.p
        if adapter_is_due and is_same_text(&extra, &event.lora):
            adapter_is_due = False
            continue
        n_others += 1
        salt[0] = extra
    if n_others:
        open_cursor(&cursor, salt.p, salt.n)
        read_item(&cursor, &item)
        if n_others > 1 or item.kind != STR:
            salt.p = NULL
    return 0


cdef bint spans_the_prompt(const Span* kind) noexcept nogil:
    """Attention of this kind sees every block; absent, there is one group only."""
    return (
        kind.p == NULL
        or is_text(kind, b"full_attention", 14)
        or is_text(kind, b"mla_attention", 13)
        or is_text(kind, b"sink_full_attention", 19)
    )


cdef int type_of(const Span* text) noexcept nogil:
    if is_text(text, b"BlockStored", 11):
        return STORED
    if is_text(text, b"BlockRemoved", 12):
        return REMOVED
    if is_text(text, b"AllBlocksCleared", 16):
        return CLEARED
    return NO_EVENT


cdef int field_of(const Span* key) noexcept nogil:
    if key.n == 4:
        return TYPE if is_text(key, b"type", 4) else NO_FIELD
    if key.n == 6:
        return MEDIUM if is_text(key, b"medium", 6) else NO_FIELD
    if key.n == 7:
        return LORA_ID if is_text(key, b"lora_id", 7) else NO_FIELD
    if key.n == 9:
        if is_text(key, b"token_ids", 9):
            return TOKENS
        if is_text(key, b"group_idx", 9):
            return GROUP
        return LORA_NAME if is_text(key, b"lora_name", 9) else NO_FIELD
    if key.n == 10:
        if is_text(key, b"block_size", 10):
            return BLOCK_SIZE
        return EXTRA_KEYS if is_text(key, b"extra_keys", 10) else NO_FIELD
    if key.n == 12:
        return HASHES if is_text(key, b"block_hashes", 12) else NO_FIELD
    if key.n == 17:
        return PARENT if is_text(key, b"parent_block_hash", 17) else NO_FIELD
    return SPEC_KIND if is_text(key, b"kv_cache_spec_kind", 18) else NO_FIELD
