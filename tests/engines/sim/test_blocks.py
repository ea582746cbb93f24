"""The block pool: nothing leaks, nothing is handed out twice, the oldest goes first."""

from __future__ import annotations

from array import array
from collections import Counter
from itertools import chain

from hypothesis import given, settings
from hypothesis import strategies as st

from engines.sim.blocks import BlockPool, chain_hash, root_hash


def filled(pool: BlockPool, keys: list[int]) -> list[int]:
    blocks = pool.take((), len(keys))
    assert blocks is not None
    for block, key in zip(blocks, keys, strict=True):
        pool.seal(block, key)
    return blocks


def test_a_prefix_is_found_up_to_its_first_gap():
    pool = BlockPool(8)
    blocks = filled(pool, [1, 2, 4])
    assert pool.match([1, 2, 3, 4], 4) == blocks[:2]
    assert pool.match([1, 2], 1) == blocks[:1]


def test_contents_outlive_their_holder_until_the_block_is_needed():
    pool = BlockPool(2)
    pool.release(filled(pool, [1, 2]))
    assert pool.held == 0
    assert len(pool.match([1, 2], 2)) == 2
    assert pool.take((), 2) is not None
    assert pool.match([1], 1) == []
    assert pool.evictions == 2


def test_the_longest_unused_goes_first_and_tails_before_heads():
    pool = BlockPool(4)
    old = filled(pool, [1, 2])
    young = filled(pool, [3, 4])
    pool.release(old)
    pool.release(young)
    pool.take((), 1)
    assert pool.removed == [2]
    pool.take((), 2)
    assert pool.removed == [2, 1, 4]


def test_a_hit_makes_its_blocks_young_again():
    pool = BlockPool(2)
    first, second = filled(pool, [1, 2])
    pool.release([first])
    pool.release([second])
    pool.release(pool.take(pool.match([1], 1), 0) or [])
    pool.take((), 1)
    assert pool.removed == [2]


def test_equal_contents_in_two_blocks_stay_findable_until_both_are_gone():
    pool = BlockPool(2)
    blocks = filled(pool, [7, 7])
    pool.release(blocks)
    pool.take((), 1)
    assert len(pool.match([7], 1)) == 1
    pool.take((), 1)
    assert pool.match([7], 1) == []
    assert pool.removed == [7, 7]


def test_what_does_not_fit_changes_nothing():
    pool = BlockPool(3)
    cached = filled(pool, [1])
    pool.release(cached)
    assert pool.take(cached, 3) is None
    assert (pool.held, pool.free) == (0, 3)


def test_forgetting_waits_for_holders():
    pool = BlockPool(2)
    blocks = filled(pool, [1])
    assert not pool.forget()
    pool.release(blocks)
    assert pool.forget()
    assert pool.match([1], 1) == []


def test_hashes_depend_on_everything_before_and_on_the_namespace():
    one, two = array("I", [1, 2]), array("I", [1, 3])
    root = root_hash(b"")
    assert chain_hash(root, one) == chain_hash(root, one)
    assert chain_hash(root, one) != chain_hash(root, two)
    assert chain_hash(chain_hash(root, one), two) != chain_hash(chain_hash(root, two), two)
    assert root_hash(b"a") != root


operations = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.lists(st.integers(0, 6), max_size=4), st.integers(0, 4)),
        st.tuples(st.just("release"), st.integers(0, 30), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 8), operations)
def test_any_history_keeps_the_books(capacity: int, history: list[tuple[str, object, int]]):
    pool = BlockPool(capacity)
    holders: list[list[int]] = []
    for what, detail, fresh in history:
        if what == "take":
            assert isinstance(detail, list)
            cached = list(dict.fromkeys(pool.match(detail, len(detail))))
            blocks = pool.take(cached, fresh)
            if blocks is None:
                assert fresh > capacity - len({*cached, *chain.from_iterable(holders)})
                continue
            for at, block in enumerate(blocks[len(cached) :]):
                pool.seal(block, at)
            holders.append(blocks)
        elif holders:
            assert isinstance(detail, int)
            pool.release(holders.pop(detail % len(holders)))
        refs = Counter(block for blocks in holders for block in blocks)
        assert pool.held == len(refs) <= capacity
        assert pool.held + pool.free == capacity
        assert all(pool.refs(block) == count for block, count in refs.items())
    for blocks in holders:
        pool.release(blocks)
    assert (pool.held, pool.free) == (0, capacity)
