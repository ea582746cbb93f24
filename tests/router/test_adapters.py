"""LoRA adapters: requests meet where theirs is loaded, and spread when that gets too full."""

from array import array
from collections import Counter, defaultdict

import pytest

from router import Adapters, State, Table, make_policy
from router._demand import Demand
from router._router import Router

PROFILE = (8e-3, 33e-6, 1.3e-9, 20e-6, 55e-9, 390_000)
SLOTS = range(4)


class Fleet:
    def __init__(self, policy: str = "marginal-cost", max_loras: int = 2) -> None:
        self.table = Table(bytearray(Table.size(1)), 1)
        self.adapters = Adapters(bytearray(Adapters.size()))
        self.router = Router(self.table, 0, make_policy(policy), None, adapters=self.adapters)
        self.demands: dict[str, Demand] = defaultdict(Demand)
        for slot in SLOTS:
            self.table.set_row(
                slot,
                state=State.READY,
                share=1.0,
                generation=1,
                profile=PROFILE,
                max_loras=max_loras,
            )

    def send(self, adapter: str, now_s: float, n_tokens: float = 1000.0):
        dispatch = self.router.send(
            self.demands[adapter], SLOTS, array("Q"), n_tokens, 0.0, now_s, adapter=adapter
        )
        assert dispatch is not None
        return dispatch

    def costs(self, adapter: str, now_s: float) -> list[float]:
        return [self.adapters.cost_s(self.table, adapter, slot, now_s) for slot in SLOTS]


def test_what_an_adapter_costs() -> None:
    fleet = Fleet()
    assert fleet.costs("a", 0.0) == [0.5] * 4
    fleet.adapters.used(0, ["a"], 10.0)
    assert fleet.costs("a", 10.0) == [0.0, 0.5, 0.5, 0.5]
    assert fleet.costs("b", 10.0)[0] == 0.5, "a slot is free"
    fleet.adapters.used(0, ["b"], 11.0)
    assert fleet.costs("c", 11.0)[0] == 1.0, "it displaces what will be wanted again"
    assert fleet.costs("c", 90.0)[0] == 0.5, "nobody wants those any more"
    fleet.adapters.used(0, ["c"], 12.0)
    assert [fleet.costs(name, 12.0)[0] for name in "abc"] == [1.0, 0.0, 0.0], "a was displaced"
    fleet.adapters.forget(0)
    assert [fleet.costs(name, 12.0)[0] for name in "abc"] == [0.5] * 3


def test_adapters_do_not_thrash() -> None:
    """Eight adapters, four engines with two slots each: every one finds its place and stays."""
    fleet = Fleet()
    went: dict[str, Counter[int]] = defaultdict(Counter)
    now_s = 0.0
    for turn in range(400):
        name = f"lora-{turn * 7 % 8}"
        dispatch = fleet.send(name, now_s)
        went[name][dispatch.slot] += 1
        now_s += 0.3
        dispatch.release(now_s)
    assert all(len(slots) == 1 for slots in went.values())
    assert Counter(next(iter(slots)) for slots in went.values()) == dict.fromkeys(SLOTS, 2)


def test_a_hot_adapter_is_loaded_elsewhere_too() -> None:
    fleet = Fleet()
    used = Counter(fleet.send("hot", 1.0).slot for _ in range(100))
    assert len(used) == 4
    # The first engine is a load, half a second of prompts, ahead.
    assert max(used.values()) - min(used.values()) <= 20


def test_base_models_pay_nothing() -> None:
    fleet = Fleet()
    fleet.adapters.used(0, ["a"], 1.0)
    table, policy = fleet.table, make_policy("marginal-cost")
    assert all(entry["adapter_s"] == 0 for entry in policy.explain(table, SLOTS).values())
    used = Counter(
        fleet.router.send(Demand(), SLOTS, array("Q"), 1000.0, 0.0, 1.0).slot for _ in range(40)
    )
    assert used == dict.fromkeys(SLOTS, 10)


@pytest.mark.parametrize("max_loras", [0, 1, 32, 500])
def test_any_number_of_slots(max_loras: int) -> None:
    fleet = Fleet(max_loras=max_loras)
    room = {0: 8, 500: 32}.get(max_loras, max_loras)
    for n in range(40):
        fleet.adapters.used(0, [f"l{n}"], float(n))
    kept = [fleet.costs(f"l{n}", 40.0)[0] == 0.0 for n in range(40)]
    assert kept == [n >= 40 - room for n in range(40)]
