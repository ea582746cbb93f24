"""Policies through their public face: who gets the next request."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import POLICIES, State, Table, make_policy

N_SLOTS = 6


def table(states: dict[int, State], workers: int = 1) -> Table:
    made = Table(bytearray(Table.size(workers)), workers)
    for slot, state in states.items():
        made.set_row(slot, state=state, share=1.0, generation=1)
    return made


def test_an_unknown_policy_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="least-requests, round-robin"):
        make_policy("best")


@pytest.mark.parametrize("name", POLICIES)
@given(
    states=st.dictionaries(st.integers(0, N_SLOTS - 1), st.sampled_from(State)),
    asked=st.sets(st.integers(0, N_SLOTS - 1)),
    tried=st.sets(st.integers(0, N_SLOTS - 1), max_size=4),
)
def test_only_endpoints_that_may_take_it_are_picked(
    name: str, states: dict[int, State], asked: set[int], tried: set[int]
) -> None:
    policy = make_policy(name)
    slots = sorted(asked)
    may = [s for s in slots if states.get(s) in (State.READY, State.TRIAL) and s not in tried]
    pick = policy.choose(table(states), slots, tried=sorted(tried))
    assert (pick in may) if may else (pick is None)


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"power-of-two"}))
def test_equal_endpoints_take_turns(name: str) -> None:
    policy = make_policy(name)
    ready = table(dict.fromkeys(range(4), State.READY))
    picks = Counter(policy.choose(ready, range(4)) for _ in range(40))
    assert picks == dict.fromkeys(range(4), 10)


def test_two_are_drawn_by_lot_and_the_emptier_wins() -> None:
    policy = make_policy("power-of-two")
    ready = table(dict.fromkeys(range(4), State.READY))
    picks = Counter(policy.choose(ready, range(4)) for _ in range(4000))
    assert all(900 < picks[slot] < 1100 for slot in range(4))
    ready.set_work(0, 3, (5, 0, 0.0, 0.0, 0.0, 0, 0))
    picks = Counter(policy.choose(ready, range(4)) for _ in range(400))
    assert picks[3] == 0


def test_a_starting_endpoint_gets_its_share_of_turns() -> None:
    policy = make_policy("round-robin")
    ready = table(dict.fromkeys(range(4), State.READY))
    ready.set_row(0, share=0.1)
    picks = Counter(policy.choose(ready, range(4)) for _ in range(3100))
    assert 90 <= picks[0] <= 110


@pytest.mark.parametrize("name", POLICIES)
def test_a_lone_starting_endpoint_still_serves(name: str) -> None:
    policy = make_policy(name)
    alone = table({0: State.READY})
    alone.set_row(0, share=0.1)
    assert [policy.choose(alone, [0]) for _ in range(5)] == [0] * 5


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda t: t.set_row(0, share=0.0), ValueError, "share"),
        (lambda t: t.set_row(1024, state=State.READY), IndexError, "slot 1024"),
        (lambda t: t.row(-1), IndexError, "slot -1"),
    ],
)
def test_bad_rows_are_refused(call, error, words) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(error, match=words):
        call(table({}))
