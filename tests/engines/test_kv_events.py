"""KV events from the wire into a ReportedCache, against a model made of dicts."""

import contextlib
from array import array
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines._kv_events import KvEvents, stamp_of
from router._hash import block_hashes, namespace_root
from router._index import Index
from router._reported import ReportedCache
from router.namespace import namespace

CAPTURES = Path(__file__).parent / "captures"
MODEL = "tiny"
SIZE = 4
STORED = (
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "lora_id",
    "medium",
    "lora_name",
    "extra_keys",
    "group_idx",
    "kv_cache_spec_kind",
)
REMOVED = ("block_hashes", "medium", "group_idx")
SHAPES = [(batch, event) for batch in ("array", "map") for event in ("array", "map")]


def stored(hashes, tokens, parent=None, **others):
    return {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": parent,
        "token_ids": list(tokens),
        "block_size": SIZE,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        **others,
    }


def removed(*hashes, **others):
    return {"type": "BlockRemoved", "block_hashes": list(hashes), "medium": "GPU", **others}


CLEARED = {"type": "AllBlocksCleared"}


def as_array(event):
    names = {"BlockStored": STORED, "BlockRemoved": REMOVED}.get(event["type"], ())
    last = max((at for at, name in enumerate(names) if name in event), default=-1)
    return [event["type"], *(event.get(name) for name in names[: last + 1])]


def pack(events, shape=("array", "map"), rank=0, ts=1.5):
    batch_shape, event_shape = shape
    if event_shape == "array":
        events = [as_array(event) for event in events]
    batch = {"ts": ts, "events": events, "data_parallel_rank": rank}
    return msgspec.msgpack.encode(batch if batch_shape == "map" else list(batch.values()))


def reader(others=False, capacity=4096):
    index = Index(bytearray(Index.size(capacity, 64)), capacity, 64)
    return KvEvents(MODEL, ReportedCache(index, 3), ReportedCache(index, 4) if others else None)


def keys(tokens, lora="", salt="", size=SIZE):
    """What a request's blocks are called."""
    return list(block_hashes(namespace(MODEL, lora, salt), array("I", tokens).tobytes(), 4 * size))


def counts(events):
    return events.n_stored, events.n_removed, events.n_clears, events.n_skipped


def test_namespaces_do_not_run_into_each_other():
    parts = ["", "a", "b", "ab", "\x01", "\x00\x00", "\ud800"]
    named = {namespace(m, lora, salt) for m in parts for lora in parts for salt in parts}
    assert len(named) == len(parts) ** 3
    assert len({namespace_root(name) for name in named}) == len(named)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_says_the_same(shape):
    events = reader()
    batch = [stored([11, 12], range(8)), stored([13], range(8, 12), parent=12)]
    assert events.apply(pack(batch, shape, rank=1)) == 1
    assert events.cache.keys() == set(keys(range(12)))
    assert events.block_tokens == SIZE
    assert events.apply(pack([removed(13)], shape, rank=None)) is None
    assert events.cache.keys() == set(keys(range(8)))
    events.apply(pack([CLEARED], shape))
    assert events.cache.keys() == set()
    assert counts(events) == (3, 1, 1, 0)


@pytest.mark.parametrize(
    "hashes",
    [
        [1, 127, 128, 255],
        [256, 65535, 65536, 2**32 - 1],
        [2**32, 2**63 - 1, 2**63, 2**64 - 1],
        [-1, -32, -33, -128],
        [-129, -32768, -32769, -(2**63)],
        [bytes([at]) * 32 for at in range(1, 5)],
        [f"{at:08}" for at in range(4)],
        [0, 5, 6, 7],
    ],
)
def test_hashes_of_all_widths(hashes):
    events = reader()
    events.apply(pack([stored(hashes, range(16))]))
    assert events.cache.keys() == set(keys(range(16)))
    events.apply(pack([stored([99], range(16, 20), parent=hashes[3])]))
    assert events.cache.keys() == set(keys(range(20)))
    events.apply(pack([removed(99, *hashes)]))
    assert events.cache.n_blocks == events.cache.n_strays == events.cache.n_orphans == 0


def test_a_signed_hash_is_the_unsigned_one():
    events = reader()
    events.apply(pack([stored([-2], range(4))]))
    events.apply(pack([removed(2**64 - 2)]))
    assert (events.cache.n_blocks, events.cache.n_strays) == (0, 0)


@pytest.mark.parametrize("tokens", [[0, 127, 128, 255], [256, 65535, 65536, 2**32 - 1]])
def test_tokens_of_all_widths(tokens):
    events = reader()
    events.apply(pack([stored([1], tokens)]))
    assert events.cache.keys() == set(keys(tokens))


def test_blocks_stored_twice_are_removed_twice():
    events = reader()
    events.apply(pack([stored([1, 2], range(8)), stored([2], range(4, 8), parent=1)]))
    events.apply(pack([removed(2)]))
    assert events.cache.keys() == set(keys(range(8)))
    events.apply(pack([removed(2)]))
    assert events.cache.keys() == set(keys(range(4)))


@pytest.mark.parametrize(
    ("others", "lora", "salt"),
    [
        ({}, "", ""),
        ({"extra_keys": None}, "", ""),
        ({"extra_keys": [None, None]}, "", ""),
        ({"extra_keys": [[], []]}, "", ""),
        ({"extra_keys": [["x"], None]}, "", "x"),
        ({"extra_keys": [["x" * 300], None]}, "", "x" * 300),
        ({"extra_keys": [["x"]]}, "", "x"),
        ({"lora_name": "ad1", "lora_id": 7, "extra_keys": [["ad1"], ["ad1"]]}, "ad1", ""),
        ({"lora_name": "ad1", "lora_id": 7}, "ad1", ""),
        ({"lora_name": "ad1", "extra_keys": [["ad1", "x"], ["ad1"]]}, "ad1", "x"),
        ({"lora_name": "ad1", "extra_keys": [["ad1", "ad1"], ["ad1"]]}, "ad1", "ad1"),
        ({"group_idx": 0, "kv_cache_spec_kind": "full_attention"}, "", ""),
        ({"group_idx": 2, "kv_cache_spec_kind": "mla_attention"}, "", ""),
    ],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_text_alone_is_called_as_a_request_would_be(others, lora, salt, shape):
    events = reader()
    events.apply(pack([stored([1, 2], range(8), **others)], shape))
    events.apply(pack([stored([3], range(8, 12), parent=2, lora_name=lora or None)], shape))
    assert events.cache.keys() == set(keys(range(12), lora, salt))


IMAGE = ["mm-hash", 3]


@pytest.mark.parametrize(
    ("extras", "n_text"),
    [
        ([[IMAGE], None, None], 0),
        ([["a", "b"], None, None], 0),
        ([["salt", IMAGE], None, None], 0),
        ([[b"embeds"], None, None], 0),
        ([[17], None, None], 0),
        (["no list", None, None], 0),
        ([{"a": 1}, None, None], 0),
        ([None, ["late"], None], 1),
        ([None, [IMAGE], [IMAGE]], 1),
        ([None, None, [IMAGE]], 2),
    ],
)
def test_what_is_more_than_text_matches_no_text(extras, n_text):
    events = reader()
    events.apply(pack([stored([1, 2, 3], range(12), extra_keys=extras)]))
    events.apply(pack([stored([4], range(12, 16), parent=3)]))
    held = events.cache.keys()
    assert len(held) == 4
    for salt in ("", "a", "b", "salt", "late", "no list", "mm-hash"):
        assert len(held & set(keys(range(16), salt=salt))) == (n_text if not salt else 0)
    # The same again is the same; another image is another prompt.
    again = reader()
    for at, extra in enumerate(extras):
        one = stored([at + 1], range(4 * at, 4 * at + 4), at or None, extra_keys=[extra])
        again.apply(pack([one]))
    again.apply(pack([stored([4], range(12, 16), parent=3)]))
    assert again.cache.keys() == held
    events.apply(pack([removed(1, 2, 3, 4)]))
    assert (events.cache.n_blocks, events.cache.n_strays) == (0, 0)


def test_another_image_is_another_prompt():
    found = []
    for image in (["one", 0], ["two", 0], ["one", 1]):
        events = reader()
        events.apply(pack([stored([1, 2], range(8), extra_keys=[[image], None])]))
        found.append(events.cache.keys())
    assert len(set().union(*found)) == 6


def test_a_numbered_adapter_is_not_the_base_model():
    events = reader()
    events.apply(pack([stored([1], range(4), lora_id=1)]))
    events.apply(pack([stored([2], range(4), lora_id=2)]))
    assert len(events.cache.keys() - set(keys(range(4)))) == 2


def test_orphans_are_counted():
    events = reader()
    events.apply(pack([stored([5, 6], range(8), parent=4)]))
    events.apply(pack([stored([7], range(4), parent=6, extra_keys=[[IMAGE]])]))
    assert (events.cache.n_blocks, events.cache.n_orphans) == (0, 3)
    events.apply(pack([removed(5)]))
    assert events.cache.n_strays == 1


def test_of_a_hybrid_model_only_full_attention_counts():
    events = reader()
    window = {"group_idx": 0, "kv_cache_spec_kind": "sliding_window"}
    full = {"group_idx": 1, "kv_cache_spec_kind": "full_attention"}
    more = {"group_idx": 2, "kv_cache_spec_kind": "full_attention"}
    batch = [stored([1], range(4), **kind) for kind in (window, full, more)]
    events.apply(pack(batch))
    events.apply(pack([removed(1, group_idx=0), removed(1, group_idx=2)]))
    assert events.cache.keys() == set(keys(range(4)))
    events.apply(pack([removed(1, group_idx=1)]))
    assert events.cache.keys() == set()
    assert events.n_skipped == 4


def test_other_media_count_where_they_are_wanted():
    batch = [
        stored([1, 2], range(8)),
        stored([1, 2], [], medium="CPU"),
        stored([3], range(8, 12), parent=2, medium="STORAGE"),
        stored([9], [], medium="CPU"),
        removed(1, 2),
    ]
    events = reader(others=True)
    events.apply(pack(batch))
    assert events.cache.keys() == set()
    assert events.others.keys() == set(keys(range(12)))
    assert events.others.n_orphans == 1
    events.apply(pack([removed(3, medium="CPU")]))
    assert events.others.keys() == set(keys(range(8)))
    alone = reader()
    alone.apply(pack(batch[:4]))
    assert alone.cache.keys() == set(keys(range(8)))
    events.apply(pack([CLEARED]))
    assert events.others.keys() == set()


def test_what_is_not_known_is_passed_over():
    events = reader()
    unknown = {"type": "BlockMoved", "block_hashes": [1], "to": {"a": [1, {2: 3}]}}
    more = stored([1], range(4), locality="LOCAL", session_id=None, lookahead_token_ids=[1, 2])
    payload = msgspec.msgpack.encode(
        {3: 4, "events": [unknown, more], "ts": 1, "new": msgspec.msgpack.Ext(5, b"abc")}
    )
    assert events.apply(payload) is None
    assert events.cache.keys() == set(keys(range(4)))
    assert events.n_skipped == 1


def test_fields_come_in_any_order():
    events = reader()
    event = dict(reversed(stored([1], range(4), extra_keys=[["x"]]).items()))
    events.apply(pack([event]))
    assert events.cache.keys() == set(keys(range(4), salt="x"))


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (stored([1], range(5)), "5 tokens are not 1 blocks of 4"),
        (stored([1], range(4), block_size=0), "blocks of 0"),
        (stored([1], range(8), block_size=8), "of 8 tokens after one of 4"),
        (stored([1.5], range(4)), "a float where a block hash"),
        (stored([b"short"], range(4)), "5 bytes"),
        (stored([1], [-1] * 4), "negative"),
        (stored([1], [2**32] * 4), "none of 32 bits"),
        (stored([1], [None] * 4), "nil where"),
        (stored(7, range(4)), "where an array belongs"),
        (stored([1], range(4), block_size="4"), "a string where"),
        (stored([1], range(4), medium=4), "where a string belongs"),
        (stored([1], range(4), extra_keys=4), "where an array belongs"),
        (stored([1], range(4), group_idx=2**40), "no number"),
        (stored([1], range(4), lora_name=b"\xff"), "utf-8"),
        (stored([1], range(4), parent="x"), "1 bytes"),
        (17, "an event is an array or a map"),
    ],
)
def test_faulty_events_say_why_and_leave_the_rest(event, text):
    events = reader()
    events.apply(pack([stored([100], range(4))]))
    with pytest.raises(ValueError, match=text):
        events.apply(pack([stored([101], range(4, 8), parent=100), event, CLEARED]))
    assert events.cache.keys() == set(keys(range(8)))
    events.apply(pack([removed(100, 101)]))
    assert events.cache.n_blocks == 0


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc0",
        b"\xc1",
        b"\x90",
        b"\x93\x01\x02\x03",
        b"\x80",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\x92\x01\x91\xdd\xff\xff\xff\xff",
        b"\x92\x01\xc6\xff\xff\xff\xff",
        pack([]) + b"\xc0",
        pack([], rank=-1),
    ],
)
def test_what_is_no_batch_is_refused(payload):
    with pytest.raises(ValueError, match="byte"):
        reader().apply(payload)


def test_forgetting_makes_room_for_another_engine():
    events = reader(others=True)
    events.apply(pack([stored([1], range(4)), stored([1], [], medium="CPU")]))
    events.forget()
    assert events.cache.keys() == events.others.keys() == set()
    events.apply(pack([stored([1], range(8), block_size=8)]))
    assert events.block_tokens == 8
    assert events.cache.keys() == set(keys(range(8), size=8))


def test_stamps():
    assert stamp_of(pack([], ts=12.25)) == 12.25
    assert stamp_of(pack([], ("map", "map"), ts=3)) == 3.0
    for payload in (b"", b"\x90", b"\x91\xa1x", b"\x80", b"\x81\xa2ts", pack([], ts=None)):
        assert stamp_of(payload) == 0.0


def test_payloads_of_a_vllm_0_32():
    events = reader()
    known = {}
    for line in (CAPTURES / "kv_events_uint64.hex").read_text().split():
        payload = bytes.fromhex(line)
        ts, batch, rank = msgspec.msgpack.decode(payload)
        assert events.apply(payload) == rank == 0
        assert stamp_of(payload) == ts
        for event in batch:
            take_in(known, event)
    assert events.cache.keys() == {key for key, _ in known.values()}
    assert (events.cache.n_orphans, events.cache.n_strays, events.n_skipped) == (0, 0, 0)
    assert events.block_tokens == 32
    assert (events.n_stored, events.n_removed) == (98, 20)


def test_payloads_with_hashes_of_32_bytes():
    events = reader()
    for line in (CAPTURES / "kv_events_bytes32.hex").read_text().split():
        events.apply(bytes.fromhex(line))
    assert (events.n_stored, events.cache.n_orphans) == (9, 0)
    assert 0 < events.cache.n_blocks <= 9


def take_in(known, event):
    """The slow way: engine's hash -> ours, and how often it is there."""
    if event["type"] == "BlockRemoved":
        for hash in event["block_hashes"]:
            key, n = known.pop(hash)
            if n > 1:
                known[hash] = (key, n - 1)
        return
    size, lora, parent = event["block_size"], event["lora_name"] or "", event["parent_block_hash"]
    extra = [key for key in event["extra_keys"][0] or [] if key != lora]
    key = None if parent is None else known[parent][0]
    for at, hash in enumerate(event["block_hashes"]):
        tokens = array("I", event["token_ids"][at * size : (at + 1) * size])
        if key is None:
            name = namespace(MODEL, lora, extra[0] if extra else "")
            (key,) = block_hashes(name, tokens.tobytes(), 4 * size)
        else:
            key = follow(key, tokens, hash)
        known[hash] = (key, known.get(hash, (key, 0))[1] + 1)


def follow(key, tokens, hash):
    """Our hash behind a known one."""
    index = Index(bytearray(Index.size(8, 1)), 8, 1)
    cache = ReportedCache(index, 0)
    cache.store(None, key, array("Q", [hash]), tokens)
    return cache.keys().pop()


# -- any bytes, and any events


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_do_no_harm(payload):
    events = reader()
    with contextlib.suppress(ValueError):
        events.apply(payload)
    stamp_of(payload)


VALID = [
    pack([stored([1, 2], range(8), extra_keys=[["x"], [IMAGE]]), removed(1), CLEARED], shape)
    for shape in SHAPES
]


@pytest.mark.parametrize("payload", VALID)
def test_cut_short_anywhere_is_refused(payload):
    for end in range(len(payload)):
        with pytest.raises(ValueError, match="byte"):
            reader().apply(payload[:end])


@settings(max_examples=1500, deadline=None)
@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_changed_bytes_do_no_harm(payload, changes):
    events = reader()
    changed = bytearray(payload)
    for at, value in changes:
        changed[at % len(changed)] = value
    with contextlib.suppress(ValueError):
        events.apply(bytes(changed))
    before = events.cache.n_blocks
    assert len(events.cache.keys()) <= before
    events.forget()
    assert events.cache.n_blocks == 0


class Model:
    """Blocks by the engine's hashes: what each is called, and how often it is there."""

    def __init__(self):
        self.blocks = {}
        self.orphans = self.strays = 0

    def store(self, first, n, parent, lora, salt):
        tokens = []
        if parent is not None:
            if parent not in self.blocks:
                self.orphans += n
                return
            tokens, lora, salt, _ = self.blocks[parent]
        for hash in range(first, first + n):
            tokens = [*tokens, *tokens_of(hash)]
            there = self.blocks.get(hash)
            if there is None:
                self.blocks[hash] = (tokens, lora, salt, 1)
            else:
                self.blocks[hash] = (*there[:3], there[3] + 1)

    def remove(self, hash):
        if hash not in self.blocks:
            self.strays += 1
            return
        *rest, n = self.blocks.pop(hash)
        if n > 1:
            self.blocks[hash] = (*rest, n - 1)

    def keys(self):
        return {keys(*block[:3])[-1] for block in self.blocks.values()}


def tokens_of(hash):
    return [hash * 1000 + at for at in range(SIZE)]


HASH = st.integers(1, 12)
MOVES = st.lists(
    st.one_of(
        st.tuples(
            st.just("store"),
            HASH,
            st.integers(1, 3),
            st.none() | HASH,
            st.sampled_from(["", "ad1", "ad2"]),
            st.sampled_from(["", "s"]),
        ),
        st.tuples(st.just("remove"), HASH),
        st.tuples(st.just("clear")),
    ),
    max_size=40,
)


@settings(max_examples=400, deadline=None)
@given(MOVES, st.sampled_from(SHAPES), st.integers(1, 5))
def test_any_events_against_a_model(moves, shape, batch_size):
    model, events = Model(), reader()
    batch = []
    for move in moves:
        match move:
            case "store", first, n, parent, lora, salt:
                hashes = list(range(first, first + n))
                model.store(first, n, parent, lora, salt)
                extras = [key for key in (lora, salt if parent is None else "") if key]
                tokens = [token for hash in hashes for token in tokens_of(hash)]
                batch.append(
                    stored(
                        hashes,
                        tokens,
                        parent,
                        lora_name=lora or None,
                        extra_keys=[extras or None] + [[lora] if lora else None] * (n - 1),
                    )
                )
            case "remove", hash:
                model.remove(hash)
                batch.append(removed(hash))
            case _:
                model.blocks.clear()
                batch.append(CLEARED)
        if len(batch) == batch_size:
            events.apply(pack(batch, shape))
            batch.clear()
    events.apply(pack(batch, shape))
    assert events.cache.n_orphans == model.orphans
    assert events.cache.n_strays == model.strays
    assert events.cache.keys() == model.keys()
