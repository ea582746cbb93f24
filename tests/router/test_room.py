"""Which endpoints have room: those that are full, where one would wait, and that say too much."""

from array import array

import pytest

from router import POLICIES, State, Table, make_policy
from router._demand import Demand
from router._router import Router

NOW_S = 1000.0
PROFILE = (0.0, 0.01, 0.0, 0.0, 0.0, 0.0)
"""10 ms per token of a prompt."""


def house(name="marginal-cost", n=3, workers=2):
    table = Table(bytearray(Table.size(workers)), workers)
    for slot in range(n):
        table.set_row(slot, state=State.READY, share=1.0, generation=1, profile=PROFILE)
    return table, Router(table, 0, make_policy(name, 1), None)


def send(router, slots=range(3), n_tokens=100.0, **ask):
    """The slot, or None."""
    found = router.send(Demand(), slots, array("Q"), n_tokens, 64.0, NOW_S, **ask)
    return None if found is None else found.slot


@pytest.mark.parametrize("name", POLICIES)
def test_nothing_is_sent_where_it_would_wait_for_too_long(name):
    table, router = house(name)
    sent = []
    while (slot := send(router, max_wait_s=2.5)) is not None:
        sent.append(slot)
        assert len(sent) < 300
    # A second of work each.
    assert all(table.standing(slot, NOW_S)["wait_s"] > 2.5 for slot in range(3))
    assert len(sent) >= 9
    assert send(router) is not None  # any wait will do


def test_who_has_nothing_to_do_has_room_whatever_was_estimated():
    table, router = house(n=1)
    table.set_work(0, 0, (0, 0, 0.0, 0.0, NOW_S + 500.0, 0, 0))
    assert table.standing(0, NOW_S)["wait_s"] > 2.5
    assert send(router, [0], max_wait_s=2.5) == 0


@pytest.mark.parametrize("name", POLICIES)
def test_a_full_endpoint_gets_nothing_whoever_filled_it(name):
    table, router = house(name)
    for slot in range(3):
        table.set_row(slot, max_in_flight=2)
    table.set_work(1, 0, (2, 0, 0.0, 0.0, 0.0, 0, 0))
    assert sorted(send(router) for _ in range(4)) == [1, 1, 2, 2]
    assert send(router) is None


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(
    ("claim", "is_left"),
    [
        ((NOW_S, NOW_S - 9.0, 0), True),
        ((NOW_S - 0.1, NOW_S - 9.0, 0), True),
        ((NOW_S - 0.5, NOW_S - 9.0, 0), False),
        ((NOW_S, NOW_S - 1.1, 0), False),
        ((NOW_S, NOW_S - 9.0, 1), False),
        ((NOW_S, NOW_S, -1), True),
        ((0.0, 0.0, 0), False),
    ],
    ids=["older", "just said", "not said again", "hardly older", "less urgent", "more", "none"],
)
def test_an_endpoint_is_left_to_who_waits_longer_in_another_worker(name, claim, is_left):
    table, router = house(name)
    ask = {"minds_others": True, "since_s": NOW_S - 1.0, "priority": 0}
    for slot in (0, 1):
        table.set_held(1, slot, *claim)
    sent = {send(router, **ask) for _ in range(30)}
    assert sent == ({2} if is_left else {0, 1, 2})
    table.set_held(1, 2, *claim)
    assert (send(router, **ask) is None) == is_left
    # Nobody waits for himself, and a worker that is gone wants nothing.
    table.lose_worker(1)
    for slot in range(3):
        table.set_held(0, slot, *claim)
    assert send(router, **ask) is not None


@pytest.mark.parametrize("name", POLICIES)
def test_who_says_it_is_overloaded_gets_nothing_while_another_does_not(name):
    table, router = house(name)
    for slot in (0, 2):
        table.set_row(slot, overloaded=True)
    assert [send(router) for _ in range(6)] == [1] * 6
    table.set_row(1, overloaded=True)
    assert {send(router) for _ in range(20)} == {0, 1, 2}
    # A full one is no alternative to it.
    table.set_row(1, overloaded=False, max_in_flight=1)
    assert {send(router) for _ in range(20)} == {0, 2}
