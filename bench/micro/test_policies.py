"""Every policy, over small and large fleets."""

import pytest

from bench import _micro
from bench.micro.conftest import Measure
from router._table import State, Table
from router.policy import POLICIES, make_policy


@pytest.mark.parametrize("n_endpoints", [4, 64, 1000])
@pytest.mark.parametrize("name", POLICIES)
def test_pick(measure: Measure, name: str, n_endpoints: int) -> None:
    table = Table(bytearray(Table.size(1)), 1)
    for slot in range(n_endpoints):
        table.set_row(slot, state=State.READY, share=1.0, generation=1)
    policy = make_policy(name)
    measure(
        f"pick:{name}, {n_endpoints} endpoints",
        lambda n: _micro.pick_ns(policy, table, n_endpoints, n),
    )
