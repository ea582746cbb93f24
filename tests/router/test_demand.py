"""What a model's requests have lately been like."""

from array import array
from math import exp

import pytest

from router import Index, State, Table, make_policy
from router._demand import Demand
from router._router import Router

A = 1e-3


def router(index: Index | None = None) -> Router:
    table = Table(bytearray(Table.size(1)), 1)
    table.set_row(0, state=State.READY, share=1.0, profile=(0.0, A, 0.0, 0.0, 0.0, 0.0))
    return Router(table, 0, make_policy("marginal-cost"), index)


def test_pressure_is_the_share_of_time_that_prompts_take_and_fades() -> None:
    demand, one = Demand(), router()
    assert demand.state(4, 100.0)["pressure"] == 0
    one.send(demand, [0], array("Q"), 6000, 16, 100.0)
    assert demand.state(1, 100.0)["pressure"] == pytest.approx(6000 * A / 30)
    assert demand.state(4, 100.0)["pressure"] == pytest.approx(6000 * A / 120)
    assert demand.state(0, 100.0)["pressure"] == 0
    assert demand.state(1, 99.0)["pressure"] == pytest.approx(6000 * A / 30)
    assert demand.state(1, 130.0)["pressure"] == pytest.approx(6000 * A / 30 * exp(-1))


def test_a_steady_stream_of_prompts_shows_as_its_share() -> None:
    demand, one = Demand(), router()
    for second in range(300):
        one.send(demand, [0], array("Q"), 500, 16, 100.0 + second)
    assert demand.state(1, 400.0)["pressure"] == pytest.approx(0.5, rel=0.05)


def test_the_share_of_cached_tokens_is_that_of_lately() -> None:
    index = Index(bytearray(Index.size(100)), 100)
    keys = array("Q", range(1, 11))
    index.note(keys, 0)
    demand, one = Demand(), router(index)
    assert demand.state(1, 0.0)["hit_ratio"] == 0
    one.send(demand, [0], keys, 320, 16, 100.0)
    assert demand.state(1, 100.0)["hit_ratio"] == pytest.approx(0.5)
    assert demand.state(1, 1000.0)["hit_ratio"] == pytest.approx(0.5)
    one.send(demand, [0], array("Q", [99]), 320, 16, 1000.0)
    assert demand.state(1, 1000.0)["hit_ratio"] < 0.001


@pytest.mark.parametrize(
    ("end", "out_tokens", "bytes_per_token"),
    [
        ((250, 100, 400), 250, 4),
        ((500, 100, 900), 255, 4.1),
        ((0, -1, -1), 245, 4),
        ((-1, 100, 0), 250, 4),
        ((-1, 0, 100), 250, 4),
        ((-1, -1, -1), 250, 4),
    ],
)
def test_lengths_follow_what_engines_count(
    end: tuple[float, float, float], out_tokens: float, bytes_per_token: float
) -> None:
    demand = Demand()
    demand.note_end(*end)
    state = demand.state(1, 0.0)
    assert state["out_tokens"] == pytest.approx(out_tokens)
    assert state["bytes_per_token"] == pytest.approx(bytes_per_token)
