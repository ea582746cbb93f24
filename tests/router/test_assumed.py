"""The assumed caches of all endpoints, as workers' reports make them."""

import struct
from array import array

import pytest

from router import AssumedCaches, Index


def caches() -> tuple[Index, AssumedCaches]:
    index = Index(bytearray(Index.size(100)), 100)
    return index, AssumedCaches(index)


def words(slot: int, generation: int, *keys: int) -> bytes:
    return struct.pack(f"<{2 + len(keys)}Q", generation << 32 | slot, len(keys), *keys)


def test_reports_reach_the_endpoint_that_they_name() -> None:
    index, all_of_them = caches()
    all_of_them.open(3, 1, 10)
    all_of_them.open(1023, 0xFFFFFFFF, 10)
    all_of_them.sent(words(3, 1, 7, 8) + words(1023, 0xFFFFFFFF, 8, 9) + words(3, 1))
    assert [index.holders(key) for key in (7, 8, 9)] == [[3], [3, 1023], [1023]]
    assert all_of_them.cache(3).keys() == [7, 8]
    all_of_them.sent(b"")
    all_of_them.sent(words(3, 1, 8))
    assert all_of_them.cache(3).keys() == [8, 7]


def test_reports_of_another_life_or_an_unknown_slot_change_nothing() -> None:
    index, all_of_them = caches()
    all_of_them.open(3, 2, 10)
    all_of_them.sent(words(3, 1, 7) + words(4, 2, 7) + words(3, 3, 7))
    assert index.n_blocks == all_of_them.cache(3).n_blocks == 0


def test_an_endpoint_that_leaves_or_is_replaced_takes_its_blocks_along() -> None:
    index, all_of_them = caches()
    for generation in (1, 2):
        all_of_them.open(3, generation, 10)
        assert index.n_blocks == 0
        all_of_them.sent(words(3, generation, 7, 8))
        assert index.n_blocks == 2
    all_of_them.close(3)
    all_of_them.close(3)
    assert index.n_blocks == 0
    with pytest.raises(KeyError):
        all_of_them.cache(3)


def test_each_endpoint_has_a_capacity_of_its_own() -> None:
    index, all_of_them = caches()
    all_of_them.open(1, 1, 2)
    all_of_them.open(2, 1, 0)  # an engine's wrong word: one block at least
    for slot in (1, 2):
        all_of_them.sent(words(slot, 1, 5, 6, 7))
    assert all_of_them.cache(1).keys() == [5, 6]
    assert all_of_them.cache(2).keys() == [5]
    assert index.holders(7) == []
    all_of_them.cache(2).resize(3)
    all_of_them.sent(words(2, 1, 5, 6, 7))
    assert [index.holders(key) for key in (5, 6, 7)] == [[1, 2], [1, 2], [2]]


@pytest.mark.parametrize(
    "end", [b"x", bytes(8), bytes(9), words(3, 1, 9)[:-8], words(3, 1, 9)[:-1]]
)
def test_a_report_that_is_cut_off_is_told_and_what_came_before_counts(end: bytes) -> None:
    _, all_of_them = caches()
    all_of_them.open(3, 1, 10)
    with pytest.raises(ValueError, match="cut off"):
        all_of_them.sent(words(3, 1, 7) + end)
    assert all_of_them.cache(3).keys() == [7]


def test_more_blocks_than_the_index_has_room_for() -> None:
    index, all_of_them = caches()
    all_of_them.open(3, 1, 1000)
    all_of_them.sent(words(3, 1, *range(1, 151)))
    assert (index.n_blocks, index.n_dropped) == (100, 50)
    assert all_of_them.cache(3).n_blocks == 150
    all_of_them.cache(3).clear()
    assert index.n_blocks == 0
    all_of_them.cache(3).sent(array("Q", [1]))
    assert index.holders(1) == [3]
