"""What each policy weighs: the property that defines it, and terms that add up to the cost."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router import POLICIES, Policy, State, Table, make_policy

# (in_flight, prefilling, prefill_s, anchor_s, unseen_until_s, prefill_tokens, kv_tokens)
Work = tuple[int, int, float, float, float, int, int]
NOW_S = 100.0
IDLE: Work = (0, 0, 0.0, 0.0, 0.0, 0, 0)
PROFILE = (0.015, 1e-4, 1.5e-9, 3e-5, 2e-8, 100_000.0)
ASK = {
    "now_s": NOW_S, "n_tokens": 8000.0, "out_tokens": 250.0, "block_tokens": 16.0, "affinity": 5,
}  # fmt: skip


def running(n: int, kv_tokens: int = 0) -> Work:
    return (n, 0, 0.0, 0.0, 0.0, 0, kv_tokens)


def queued(n: int, tokens: int) -> Work:
    return (n, n, tokens * 1e-4, NOW_S, 0.0, tokens, tokens)


def table(work: list[Work], rows: dict[int, dict[str, Any]] | None = None) -> Table:
    made = Table(bytearray(Table.size(1)), 1)
    for slot, one in enumerate(work):
        made.set_row(slot, state=State.READY, share=1.0, identity=slot + 1, profile=PROFILE)
        made.set_row(slot, **(rows or {}).get(slot, {}))
        made.set_work(0, slot, one)
    return made


@dataclass
class Case:
    """Of these endpoints `best` is to be picked."""

    says: str
    policy: str
    work: list[Work]
    best: int
    rows: dict[int, dict[str, Any]] = field(default_factory=dict)
    ask: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case("fewest requests", "least-requests", [running(3), running(1), running(2)], 1),
    Case("however large they are", "least-requests", [running(2), queued(1, 90_000)], 1),
    Case("half a share counts double", "least-requests", [running(3), running(2)], 0,
         {1: {"share": 0.5}}),
    Case("emptier of two", "power-of-two", [running(1), running(0)], 1),
    Case("whatever the load", "round-robin", [running(9), running(0)], 0),
    Case("cached here", "lmetric", [IDLE, IDLE], 1, ask={"depths": {1: 400}}),
    Case("queued tokens", "lmetric", [queued(1, 5000), queued(1, 100)], 1),
    Case("the product: few requests outdo a few tokens", "lmetric",
         [running(9), queued(1, 1000)], 1),
    Case("cached here", "weighted", [IDLE, IDLE], 1, ask={"depths": {1: 400}}),
    Case("a whole prefix outdoes the longest queue", "weighted", [IDLE, running(9)], 1,
         ask={"depths": {1: 500}}),
    Case("but a third of it does not", "weighted", [IDLE, running(9)], 0,
         ask={"depths": {1: 160}}),
    Case("room for KV blocks", "weighted", [running(1, 90_000), running(1, 10_000)], 1),
    Case("nothing to meet by: emptiest", "prefix-affinity", [running(1), running(0)], 1,
         ask={"affinity": 0}),
    Case("cached here", "marginal-cost", [IDLE, IDLE], 1, ask={"depths": {1: 400}}),
    Case("a short wait is worth a long hit", "marginal-cost", [IDLE, queued(1, 1000)], 1,
         ask={"depths": {1: 499}}),
    Case("a long wait is not", "marginal-cost", [IDLE, queued(9, 90_000)], 0,
         ask={"depths": {1: 499}}),
    Case("no room for KV blocks", "marginal-cost", [IDLE, running(0, 99_000)], 0,
         ask={"depths": {1: 10}}),
    Case("home", "marginal-cost", [IDLE, IDLE], 1, ask={"home": 1, "home_s": 0.5}),
    Case("unless it is crowded", "marginal-cost", [IDLE, queued(2, 20_000)], 0,
         ask={"home": 1, "home_s": 0.5}),
    Case("a full cache is spared", "marginal-cost", [IDLE, IDLE], 1, {0: {"full": True}},
         {"hit_ratio": 0.5}),
    Case("a starting endpoint counts its seconds double", "marginal-cost", [IDLE, IDLE], 1,
         {0: {"share": 0.5}}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.policy}: {case.says}")
def test_the_best_is_picked(case: Case) -> None:
    # From both ends: that it comes first shall not be why. Round-robin goes by order alone.
    for seed in range(1 if case.policy == "round-robin" else 6):
        policy = make_policy(case.policy, seed)
        made = table(case.work, case.rows)
        assert policy.choose(made, range(len(case.work)), **(ASK | case.ask)) == case.best


@pytest.mark.parametrize("name", POLICIES)
def test_labels_must_be_there(name: str) -> None:
    made = table([IDLE] * 3, {0: {"labels": 0b01}, 1: {"labels": 0b111}})
    for labels, best in ((0b101, 1), (0b1000, None)):
        for seed in range(3):
            assert make_policy(name, seed).choose(made, range(3), **ASK, labels=labels) == best


def test_prefix_affinity_meets_again_and_moves_only_the_share_of_what_left() -> None:
    policy = make_policy("prefix-affinity")
    made = table([IDLE] * 8)
    asks = [ASK | {"affinity": affinity} for affinity in range(1, 401)]
    before = [policy.choose(made, range(8), **ask) for ask in asks]
    assert before == [policy.choose(made, range(8), **ask) for ask in asks]
    assert all(30 < before.count(slot) < 75 for slot in range(8))
    after = [policy.choose(made, range(7), **ask) for ask in asks]
    assert all(now == then for then, now in zip(before, after, strict=True) if then != 7)


def test_prefix_affinity_leaves_a_crowded_endpoint() -> None:
    policy = make_policy("prefix-affinity")
    home = policy.choose(table([IDLE] * 4), range(4), **ASK)
    assert home is not None
    work = [running(4)] * 4
    assert policy.choose(table(work), range(4), **ASK) == home
    work[home] = running(20)
    assert policy.choose(table(work), range(4), **ASK) != home


@pytest.mark.parametrize("name", sorted(set(POLICIES) - {"power-of-two", "round-robin"}))
def test_in_doubt_what_is_nearly_equal_is_drawn_by_lot(name: str) -> None:
    """Also where costs are below 0."""
    made = table([running(10), running(10), running(11), running(100, 90_000)])
    ask: dict[str, Any] = ASK | {"affinity": 0, "doubt": 0.3}
    policy = make_policy(name)
    assert {policy.choose(made, range(4), **ask) for _ in range(200)} == {0, 1, 2}
    assert policy.choose(made, [3], **ask) == 3
    assert policy.choose(made, [], **ask) is None


Terms = dict[str, float]
COSTS: dict[str, Callable[[Terms, float, dict[str, Any]], float]] = {
    "least-requests": lambda t, share, ask: (t["in_flight"] + 1) / share,
    "power-of-two": lambda t, share, ask: (t["in_flight"] + 1) / share,
    "lmetric": lambda t, share, ask: (
        (t["queued_tokens"] + t["own_tokens"] + 1) * (t["in_flight"] + 1) / share
    ),
    "weighted": lambda t, share, ask: -(2 * t["prefix"] + t["queue"] + t["kv"]) * share,
    "prefix-affinity": lambda t, share, ask: (
        t["rank"] if t["in_flight"] + 1 <= t["limit"] * share else 2 + t["in_flight"]
    ),
    "marginal-cost": lambda t, share, ask: (
        t["home_s"]
        + (t["wait_s"] + t["kv_wait_s"] + t["own_s"] * (1 + t["price"]) + t["decode_s"]) / share
    ),
    "round-robin": lambda t, share, ask: 0,
}
WORK = st.tuples(
    st.integers(0, 50),
    st.integers(0, 9),
    st.floats(0, 30),
    st.floats(0, 200),
    st.floats(0, 200),
    st.integers(0, 100_000),
    st.integers(0, 200_000),
)


@pytest.mark.parametrize("name", POLICIES)
@settings(max_examples=50, deadline=None)
@given(
    work=st.lists(WORK, min_size=1, max_size=5),
    share=st.sampled_from([0.125, 0.5, 1.0]),
    depth=st.integers(0, 600),
    pressure=st.floats(0, 5),
    hit_ratio=st.floats(0, 1),
)
def test_terms_add_up_and_the_cheapest_is_picked(
    name: str, work: list[Work], share: float, depth: int, pressure: float, hit_ratio: float
) -> None:
    policy = make_policy(name)
    made = table(work, {0: {"share": share, "full": True}})
    ask = ASK | {
        "depths": {0: depth}, "pressure": pressure, "hit_ratio": hit_ratio, "home": 0,
        "home_s": 0.1,
    }  # fmt: skip
    found = policy.explain(made, range(len(work)), **ask)
    for slot, entry in found.items():
        assert set(entry) == {"may_take", "why_not", "cost", *policy.terms}
        assert entry["cost"] == pytest.approx(COSTS[name](entry, share if slot == 0 else 1.0, ask))
        assert -inf < entry["cost"] < inf
    if name not in ("power-of-two", "round-robin"):
        pick = policy.choose(made, range(len(work)), **ask)
        assert pick is not None
        assert found[pick]["cost"] == min(entry["cost"] for entry in found.values())


@pytest.mark.parametrize("name", ["marginal-cost", "lmetric", "weighted"])
@settings(max_examples=50, deadline=None)
@given(work=WORK, depth=st.integers(0, 500), deeper=st.integers(0, 500))
def test_more_cached_never_costs_more(name: str, work: Work, depth: int, deeper: int) -> None:
    depth, deeper = sorted((depth, deeper))
    costs = [
        cost_of(make_policy(name), table([work]), ASK | {"depths": {0: at}})
        for at in (depth, deeper)
    ]
    assert costs[1] <= costs[0]


@pytest.mark.parametrize("name", ["marginal-cost", "lmetric", "least-requests", "power-of-two"])
@settings(max_examples=50, deadline=None)
@given(work=WORK, more=st.integers(1, 20))
def test_more_load_never_costs_less(name: str, work: Work, more: int) -> None:
    policy = make_policy(name)
    loaded: Work = (work[0] + more, *work[1:5], work[5] + 1000 * more, work[6] + 1000 * more)
    assert cost_of(policy, table([work]), ASK) <= cost_of(policy, table([loaded]), ASK)


def cost_of(policy: Policy, made: Table, ask: dict[str, Any]) -> float:
    return policy.explain(made, [0], **ask)[0]["cost"]


def test_an_ask_has_no_other_fields() -> None:
    with pytest.raises(TypeError, match="'colour'"):
        make_policy("lmetric").choose(table([IDLE]), [0], colour=1)
    with pytest.raises(ValueError, match="more than 1024"):
        make_policy("lmetric").choose(table([IDLE]), [0] * 1025)
    with pytest.raises(IndexError, match="slot 1024"):
        make_policy("lmetric").choose(table([IDLE]), [1024])
