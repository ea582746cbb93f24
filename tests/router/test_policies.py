"""Policies through their public face: who gets the next request."""

from collections import Counter
from typing import Any

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


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(
    ("row", "ask", "why"),
    [
        ({}, {}, ""),
        ({"state": State.OPEN}, {}, "not ready"),
        ({"state": State.DRAINING}, {}, "not ready"),
        ({"state": State.TRIAL}, {}, "on trial with its one request"),
        ({}, {"labels": 2}, ""),
        ({}, {"labels": 3}, ""),
        ({}, {"labels": 4}, "lacks a label"),
        ({}, {"labels": 1 << 63}, "lacks a label"),
        ({"max_in_flight": 1}, {}, "full"),
        ({"max_in_flight": 2}, {}, ""),
        ({}, {"tried": [0]}, "tried already"),
        ({}, {"is_bound": True, "home": 1}, "not the session's endpoint"),
    ],
)
def test_why_a_candidate_may_not(
    name: str, row: dict[str, int], ask: dict[str, Any], why: str
) -> None:
    made = table({0: State.READY})
    made.set_row(0, labels=3)
    made.set_row(0, **row)  # type: ignore[arg-type]
    made.set_work(0, 0, (1, 0, 0.0, 0.0, 0.0, 0, 0))
    entry = make_policy(name).explain(made, [0], **ask)[0]
    assert (entry["why_not"], entry["may_take"]) == (why, why == "")
    if "is_bound" not in ask:  # that is the router's to keep
        assert make_policy(name).choose(made, [0], **ask) == (0 if why == "" else None)


@pytest.mark.parametrize("name", POLICIES)
def test_every_worker_has_a_seed_of_its_own(name: str) -> None:
    ready = table(dict.fromkeys(range(4), State.READY))
    firsts = {make_policy(name, seed).choose(ready, range(4)) for seed in range(64)}
    assert firsts == {0, 1, 2, 3}


def test_the_terms_of_a_cost_add_up() -> None:
    made = table({0: State.READY, 1: State.READY})
    for slot in (0, 1):
        made.set_row(slot, profile=(8e-3, 33e-6, 1.3e-9, 20e-6, 55e-9, 390_000))
        made.set_work(0, slot, (3, 2, 0.2, 0.0, 0.0, 2000, 5000))
    ask = {"n_tokens": 2000.0, "out_tokens": 100.0, "home": 1, "home_s": 0.5, "pressure": 0.3}
    found = make_policy("marginal-cost").explain(made, [0, 1], **ask)
    for entry in found.values():
        parts = ("wait_s", "kv_wait_s", "decode_s", "home_s", "adapter_s")
        total = sum(entry[part] for part in parts) + entry["own_s"] * (1 + entry["price"])
        assert entry["cost"] == pytest.approx(total)
    assert found[0]["home_s"] == 0.5
    assert found[1]["home_s"] == 0
