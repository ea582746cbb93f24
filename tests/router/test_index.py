"""The prefix index, and what is assumed and reported of caches, against models made of dicts."""

from array import array
from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router._assumed import AssumedCache
from router._hash import block_hashes, namespace_root
from router._index import Index, Matcher
from router._reported import ReportedCache


def index_of(capacity: int, n_sets: int = 64) -> Index:
    return Index(bytearray(Index.size(capacity, n_sets)), capacity, n_sets)


def prompt(*words: int) -> "array[int]":
    """Block hashes of a prompt with one block per word."""
    return block_hashes(b"m", b"".join(word.to_bytes(16, "little") for word in words), 16)


@pytest.mark.parametrize("block_bytes", [1, 7, 8, 16, 31, 32, 40, 64, 256, 512])
def test_hashes_tell_prompts_apart(block_bytes):
    text = bytes(range(256)) * 8
    whole = block_hashes(b"m", text, block_bytes)
    assert len(whole) == len(text) // block_bytes
    assert len(set(whole)) == len(whole)
    assert block_hashes(b"m", text[: 3 * block_bytes + block_bytes // 2], block_bytes) == whole[:3]
    assert not set(block_hashes(b"other", text, block_bytes)) & set(whole)
    # One changed bit changes its block and all behind it, and nothing before.
    at = len(whole) // 2
    changed = bytearray(text)
    changed[at * block_bytes] ^= 1
    other = block_hashes(b"m", changed, block_bytes)
    assert other[:at] == whole[:at]
    assert not set(other[at:]) & set(whole)


def test_bad_sizes_are_refused():
    for call in (
        lambda: block_hashes(b"", b"x", 0),
        lambda: Index(bytearray(64), 0),
        lambda: Index(bytearray(64), 100),
        lambda: index_of(10, 0),
        lambda: Matcher([index_of(1)] * 5),
        lambda: Matcher([]).depth_of(array("Q"), range(1025)),
    ):
        with pytest.raises(ValueError, match=r"positive|not in 1\.\.|memory holds|more than"):
            call()
    for slot in (-1, 1024):
        with pytest.raises(IndexError):
            index_of(10).note(array("Q", [1]), slot)


# Keys that crowd a few lines: neighbours in the table, so that lines overflow into the next.
KEYS = st.integers(0, 40).map(lambda n: (n << 58) + n + 1)
SLOTS = st.sampled_from([0, 1, 2, 63, 64, 700, 1023])
MOVES = st.lists(st.tuples(st.booleans(), KEYS, SLOTS), max_size=300)


@settings(max_examples=300, deadline=None)
@given(MOVES)
def test_index_against_a_model(moves):
    index = index_of(64)
    model: dict[int, set[int]] = {}
    for adds, key, slot in moves:
        if adds:
            index.note(array("Q", [key]), slot)
            model.setdefault(key, set()).add(slot)
        else:
            index.forget(array("Q", [key]), slot)
            model.get(key, set()).discard(slot)
        assert index.holders(key) == sorted(model.get(key, ()))
    held = {key: slots for key, slots in model.items() if slots}
    assert index.n_blocks == len(held)
    assert index.n_sets_used == len({frozenset(s) for s in held.values() if len(s) > 1})
    for key in model:
        assert index.holders(key) == sorted(model[key])


@settings(max_examples=200, deadline=None)
@given(MOVES)
def test_a_full_index_forgets_but_never_makes_up(moves):
    """Room for 6 blocks and one shared set: whatever it says is true."""
    index = index_of(6, 1)
    model: dict[int, set[int]] = {}
    for adds, key, slot in moves:
        if adds:
            index.note(array("Q", [key]), slot)
            model.setdefault(key, set()).add(slot)
        else:
            index.forget(array("Q", [key]), slot)
            model.get(key, set()).discard(slot)
        for known, slots in model.items():
            assert set(index.holders(known)) <= slots
    assert index.n_blocks <= 6


def depths(indexes: list[Index], keys: "array[int]", slots: list[int]) -> dict[int, int]:
    found = {}
    for slot in slots:
        found[slot] = 0
        for key in keys:
            if not any(slot in index.holders(key) for index in indexes):
                break
            found[slot] += 1
    return found


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 30), SLOTS), max_size=200),
    st.lists(SLOTS, unique=True, max_size=7),
)
def test_longest_runs_against_a_model(notes, slots):
    keys = prompt(*range(30))
    indexes = [index_of(64), index_of(64)]
    for which, n, slot in notes:
        # Mostly prefixes, as real caches hold them, and some with a hole.
        held = keys[:n] if n % 3 else keys[n // 2 : n]
        indexes[which].note(held, slot)
    assert Matcher(indexes).depth_of(keys, slots) == depths(indexes, keys, slots)
    assert Matcher([]).depth_of(keys, slots) == dict.fromkeys(slots, 0)


def test_a_second_reader_sees_what_the_writer_writes():
    memory = bytearray(Index.size(100))
    writer, reader = Index(memory, 100), Index(memory, 100)
    keys = prompt(1, 2, 3)
    writer.note(keys, 5)
    writer.note(keys[:2], 700)
    assert Matcher([reader]).depth_of(keys, [4, 5, 700]) == {4: 0, 5: 3, 700: 2}
    writer.forget(keys[1:], 5)
    assert Matcher([reader]).depth_of(keys, [5, 700]) == {5: 1, 700: 2}


class LruModel:
    """What AssumedCache does, in the plainest words."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.blocks: OrderedDict[int, None] = OrderedDict()

    def sent(self, keys: "array[int]") -> None:
        for key in reversed(keys[: self.capacity]):
            if key not in self.blocks and len(self.blocks) == self.capacity:
                self.blocks.popitem(last=False)
            self.blocks[key] = None
            self.blocks.move_to_end(key)

    def resize(self, capacity: int) -> None:
        self.capacity = capacity
        while len(self.blocks) > capacity:
            self.blocks.popitem(last=False)


PROMPTS = st.lists(st.integers(0, 3), min_size=0, max_size=12).map(lambda words: prompt(*words))


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 20),
    st.lists(st.one_of(PROMPTS, st.integers(1, 20), st.just("clear")), max_size=60),
)
def test_an_assumed_cache_is_an_lru(capacity, moves):
    index = index_of(1000)
    index.note(prompt(0, 1, 2), 9)  # somebody else's stay
    cache, model = AssumedCache(index, 3, capacity), LruModel(capacity)
    for move in moves:
        if move == "clear":
            cache.clear()
            model.blocks.clear()
        elif isinstance(move, int):
            cache.resize(move)
            model.resize(move)
        else:
            cache.sent(move)
            model.sent(move)
        assert cache.keys() == list(reversed(model.blocks))
        assert cache.n_blocks == len(model.blocks)
        assert all(3 in index.holders(key) for key in model.blocks)
    for key in prompt(0, 1, 2):
        assert index.holders(key) == ([3, 9] if key in model.blocks else [9])
    cache.clear()
    assert index.n_blocks == 3


TOKENS = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("store"), TOKENS, st.integers(0, 5)),
            st.tuples(st.just("remove"), TOKENS, st.just(0)),
            st.tuples(st.just("clear"), st.just([]), st.just(0)),
        ),
        max_size=80,
    )
)
def test_a_reported_cache_counts_what_is_stored_twice(moves):
    """One token per word, two tokens per block; the engine's hash is of its own making."""

    def engine_hash(tokens: list[int]) -> int:
        return sum((token + 1) * 7**at for at, token in enumerate(tokens))

    index = index_of(1000)
    cache = ReportedCache(index, 5)
    model: dict[int, int] = {}
    for move, words, behind in moves:
        if move == "clear":
            cache.forget_all()
            model.clear()
        elif move == "remove":
            key = engine_hash(words)
            strays = cache.n_strays
            cache.remove(key)
            assert cache.n_strays - strays == (key not in model)
            if key in model:
                model[key] -= 1
                if not model[key]:
                    del model[key]
        else:
            at = min(behind, len(words) - 1)
            parent = engine_hash(words[:at]) if at else None
            hashes = [engine_hash(words[: n + 1]) for n in range(at, len(words))]
            tokens = array("I", [token for word in words[at:] for token in (word, word)])
            orphans = cache.n_orphans
            cache.store(parent, 99, array("Q", hashes), tokens)
            if parent is not None and parent not in model:
                assert cache.n_orphans == orphans + len(hashes)
                continue
            for key in hashes:
                model[key] = model.get(key, 0) + 1
        assert cache.n_blocks == len(model) == index.n_blocks == len(cache.keys())


def test_reported_blocks_are_found_by_their_tokens():
    index = index_of(100)
    cache = ReportedCache(index, 5)
    tokens = array("I", range(64))
    ours = block_hashes(b"llama", tokens.tobytes(), 64)
    cache.store(None, namespace_root(b"llama"), array("Q", [11, 12]), tokens[:32])
    cache.store(12, 0, array("Q", [13, 0]), tokens[32:])
    assert Matcher([index]).depth_of(ours, [5]) == {5: 4}
    cache.store(None, namespace_root(b"llama"), array("Q", [11]), tokens[:16])
    cache.remove(0)
    cache.remove(11)
    assert Matcher([index]).depth_of(ours, [5]) == {5: 3}
    cache.remove(11)
    assert Matcher([index]).depth_of(ours, [5]) == {5: 0}


def test_all_slots_may_hold_a_block():
    index = index_of(10)
    keys = prompt(1, 2, 3)
    for slot in range(1024):
        index.note(keys, slot)
    assert index.holders(keys[2]) == list(range(1024))
    assert index.n_sets_used == 1
    index.forget(keys[1:], 512)
    assert Matcher([index]).depth_of(keys, range(1024)) == {
        slot: 1 if slot == 512 else 3 for slot in range(1024)
    }
    for slot in range(1024):
        index.forget(keys, slot)
    assert (index.n_blocks, index.n_sets_used) == (0, 0)


def test_what_finds_no_room_is_counted_and_room_that_is_freed_is_used():
    index = index_of(4)
    assert index.note(array("Q", range(1, 8)), 1) == 4
    assert (index.n_blocks, index.n_dropped) == (4, 3)
    # A holder more of a known block takes no room.
    assert index.note(array("Q", [1, 2, 3, 4]), 2) == 4
    index.forget(array("Q", [1, 2]), 1)
    assert index.note(array("Q", [8]), 1) == 0
    index.forget(array("Q", [1, 2]), 2)
    assert index.note(array("Q", [8, 9, 10]), 1) == 2
    assert [index.holders(key) for key in (1, 3, 8, 9, 10)] == [[], [1, 2], [1], [1], []]
