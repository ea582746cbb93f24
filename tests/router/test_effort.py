"""What prompts have lately been put on an endpoint counts against it while requests run there."""

from array import array

import pytest

from router import State, Table, make_policy
from router._demand import Demand
from router._router import Router

PROFILE = (19e-3, 62e-6, 1.66e-9, 50e-6, 34e-9, 2_000_000)
NO_KEYS = array("Q")


def table_of(slots: int) -> Table:
    table = Table(bytearray(Table.size(1)), 1)
    for slot in range(slots):
        table.set_row(slot, state=State.READY, share=1.0, generation=1, profile=PROFILE)
    return table


@pytest.mark.parametrize(
    ("share", "price"), [(0.0, 0.4), (0.5, 0.8), (0.75, 1.6), (0.95, 8.0), (3.0, 8.0)]
)
def test_a_stall_lasts_the_longer_the_more_prompts_come(share: float, price: float) -> None:
    table = table_of(1)
    table.set_work(0, 0, (4, 0, 0.0, 0.0, 0.0, 0, 0))
    policy = make_policy("marginal-cost", least_pressure=0.0)
    explained = policy.explain(table, [0], n_tokens=1000, prompt_shares={0: share})
    assert explained[0]["price"] == pytest.approx(price)


@pytest.mark.parametrize(("later_s", "avoided"), [(1.0, True), (300.0, False)])
def test_prompt_work_is_remembered_for_a_while(later_s: float, avoided: bool) -> None:
    table = table_of(2)
    router = Router(table, 0, make_policy("marginal-cost"), None)
    demand = Demand()
    past = router.send(demand, [0], NO_KEYS, 50_000, 512, 1000.0)
    assert past is not None
    past.first_token(1000.5)
    past.release(1000.5)
    # One runs on each, and the first holds a little less: it is cheaper but for its past.
    for slot, tokens in ((0, 900), (1, 1000)):
        running = router.send(demand, [slot], NO_KEYS, tokens, 512, 1000.0 + later_s)
        assert running is not None
        running.first_token(1000.0 + later_s)
    sent = router.send(demand, [0, 1], NO_KEYS, 8000, 512, 1000.0 + later_s)
    assert sent is not None
    assert sent.slot == (1 if avoided else 0)


def test_sums_survive_long_idle_times() -> None:
    table = table_of(2)
    router = Router(table, 0, make_policy("marginal-cost"), None)
    demand = Demand()
    for now_s in (0.0, 1.0, 1e3, 1e6, 1e6 - 5, 1e9):
        sent = router.send(demand, [0, 1], NO_KEYS, 50_000, 512, now_s)
        assert sent is not None
        sent.first_token(now_s)
        sent.release(now_s)
