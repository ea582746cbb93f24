"""Weighted splits deal as near the weights as can be, from the first request on."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy.split import Split


@given(
    weights=st.lists(st.integers(1, 20), min_size=1, max_size=5),
    turns=st.integers(1, 300),
)
def test_every_target_is_within_one_turn_of_its_share(weights: list[int], turns: int) -> None:
    split = Split([(f"m{index}", float(weight)) for index, weight in enumerate(weights)])
    dealt = Counter(split.next() for _ in range(turns))
    for index, weight in enumerate(weights):
        fair = turns * weight / sum(weights)
        assert abs(dealt[f"m{index}"] - fair) <= len(weights)


def test_a_canary_is_spread_out() -> None:
    split = Split([("old", 9.0), ("new", 1.0)])
    first = [split.next() for _ in range(10)]
    assert first.count("new") == 1
    assert first.index("new") not in (0, 9)


@pytest.mark.parametrize("choices", [[], [("a", 0.0)], [("a", 1.0), ("b", -1.0)]])
def test_splits_that_cannot_be_dealt(choices: list[tuple[str, float]]) -> None:
    with pytest.raises(ValueError, match="weight above 0"):
        Split(choices)
