"""See _kv_event.pxd."""

from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcmp, memset

from engines._msgpack cimport (
    ARRAY, MAP, STR, Cursor, Hashes, Item, Span, Tokens, fail, open_cursor, read_array, read_hash,
    read_hashes, read_item, read_span, read_tokens, read_uint, skip, take_nil, take_short,
)

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


cdef int read_event(Cursor* cursor, Event* event, Hashes* hashes, Tokens* tokens) except -1:
    cdef Item item
    cdef Span key
    cdef size_t at
    cdef int field = NO_FIELD
    memset(event, 0, sizeof(Event))
    event.group = -1
    hashes.n = tokens.n = 0
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
            if event.type == STORED and at <= N_STORED_FIELDS:
                field = STORED_FIELDS[at - 1]
            elif event.type == REMOVED and at <= N_REMOVED_FIELDS:
                field = REMOVED_FIELDS[at - 1]
        read_field(field, cursor, event, hashes, tokens)
    return 0


cdef int read_field(int field, Cursor* cursor, Event* event, Hashes* hashes,
                    Tokens* tokens) except -1:
    cdef Span text
    cdef const unsigned char* start = cursor.p
    if take_nil(cursor):
        return 0
    if field == HASHES:
        read_hashes(cursor, hashes)
    elif field == TOKENS:
        read_tokens(cursor, tokens)
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


cdef int read_key(Cursor* cursor, Span* key) except -1:
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


cdef bint is_same_text(const Span* raw, const Span* text) except -1:
    cdef Cursor cursor
    cdef Item item
    open_cursor(&cursor, raw.p, raw.n)
    read_item(&cursor, &item)
    return item.kind == STR and item.value == text.n and memcmp(cursor.p, text.p, text.n) == 0


cdef int find_salt(const Event* event, Span* salt) except -1:
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
