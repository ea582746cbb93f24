"""Bookings of several workers against a model in plain Python, by way of `Router.send`."""

from array import array
from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from router import State, Table, make_policy
from router._booking import Booker
from router._demand import Demand
from router._router import Dispatch, Router

N_WORKERS = 3
SLOTS = [0, 1, 1023]
A, Q = 1e-3, 1e-7
PROFILE = (0.01, A, Q, 1e-4, 1e-7, 1e6)
NO_KEYS = array("Q")


def table_of(n_workers: int = N_WORKERS) -> Table:
    table = Table(bytearray(Table.size(n_workers)), n_workers)
    for slot in SLOTS:
        table.set_row(slot, state=State.READY, share=1.0, generation=1, profile=PROFILE)
    return table


def prefill_s(n_tokens: float) -> float:
    return n_tokens * (A + Q * n_tokens / 2)


@dataclass
class Booked:
    """A dispatch, and what the model has of it."""

    dispatch: Dispatch
    worker: int
    slot: int
    n_tokens: int
    is_seen: bool
    kv_tokens: int
    is_waiting: bool = True
    is_over: bool = False


@dataclass
class Engine:
    """What the model knows of an endpoint beside its dispatches."""

    anchor_s: float = 0.0
    unseen_until_s: list[float] = field(default_factory=lambda: [0.0] * N_WORKERS)


class Bookings(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = table_of()
        self.routers = [
            Router(self.table, worker, make_policy("least-requests"), None)
            for worker in range(N_WORKERS)
        ]
        self.demand = Demand()
        self.engines = {slot: Engine() for slot in SLOTS}
        self.booked: list[Booked] = []
        self.now_s = 100.0

    def live(self, slot: int, worker: int | None = None) -> list[Booked]:
        return [
            one
            for one in self.booked
            if not one.is_over and one.slot == slot and worker in (None, one.worker)
        ]

    def computing(self, slot: int) -> list[Booked]:
        return [one for one in self.live(slot) if one.is_waiting and one.is_seen]

    @rule(
        worker=st.integers(0, N_WORKERS - 1),
        slot=st.sampled_from(SLOTS),
        n_tokens=st.integers(0, 20_000),
        is_seen=st.booleans(),
    )
    def book(self, worker: int, slot: int, n_tokens: int, is_seen: bool) -> None:
        engine = self.engines[slot]
        if is_seen:
            if not self.computing(slot):
                engine.anchor_s = self.now_s
        else:
            engine.unseen_until_s[worker] = max(
                engine.unseen_until_s[worker], self.now_s
            ) + prefill_s(n_tokens)
        dispatch = self.routers[worker].send(
            self.demand, [slot], NO_KEYS, n_tokens, 16, self.now_s, is_seen=is_seen
        )
        assert dispatch is not None
        assert dispatch.slot == slot
        self.booked.append(Booked(dispatch, worker, slot, n_tokens, is_seen, n_tokens))

    @rule(passed_s=st.floats(0.001, 30))
    def pass_time(self, passed_s: float) -> None:
        self.now_s += passed_s

    @precondition(lambda self: self.booked)
    @rule(data=st.data(), times=st.integers(1, 2))
    def first_token(self, data: st.DataObject, times: int) -> None:
        one = data.draw(st.sampled_from(self.booked))
        for _ in range(times):
            one.dispatch.first_token(self.now_s)
        if not one.is_over and one.is_waiting:
            self.end_prefill(one)
            one.is_waiting = False
            one.kv_tokens += 1

    @precondition(lambda self: self.booked)
    @rule(data=st.data(), n=st.integers(0, 100))
    def grow(self, data: st.DataObject, n: int) -> None:
        one = data.draw(st.sampled_from(self.booked))
        one.dispatch.grow(n)
        one.kv_tokens += n

    @precondition(lambda self: self.booked)
    @rule(data=st.data(), times=st.integers(1, 2))
    def release(self, data: st.DataObject, times: int) -> None:
        one = data.draw(st.sampled_from(self.booked))
        for _ in range(times):
            one.dispatch.release(self.now_s)
        if not one.is_over:
            if one.is_waiting:
                self.end_prefill(one)
            one.is_over = True
            if not self.live(one.slot, one.worker):
                # What no longer runs is not waited for, however long it was thought to take.
                self.engines[one.slot].unseen_until_s[one.worker] = 0.0

    @rule(worker=st.integers(0, N_WORKERS - 1))
    def lose(self, worker: int) -> None:
        """Its dispatches die with the worker; its column is zeroed by the control process."""
        self.table.lose_worker(worker)
        self.booked = [one for one in self.booked if one.worker != worker]
        for engine in self.engines.values():
            engine.unseen_until_s[worker] = 0.0

    def end_prefill(self, one: Booked) -> None:
        if one.is_seen:
            self.engines[one.slot].anchor_s = self.now_s

    @invariant()
    def sums_agree(self) -> None:
        for slot in SLOTS:
            live, computing = self.live(slot), self.computing(slot)
            standing = self.table.standing(slot, self.now_s)
            assert standing["in_flight"] == len(live)
            assert standing["kv_tokens"] == sum(one.kv_tokens for one in live)
            assert standing["prefill_tokens"] == sum(one.n_tokens for one in computing)
            load = self.table.load(slot)
            assert load["in_flight"] == len(live)
            assert load["producing"] == sum(not one.is_waiting for one in live)
            assert standing["wait_s"] == pytest.approx(self.wait_s(slot), abs=1e-6)
            for worker in range(N_WORKERS):
                work = self.table.work(worker, slot)
                assert min(work) >= 0
                if not self.live(slot, worker):
                    assert (*work[:3], *work[4:]) == (0, 0, 0.0, 0.0, 0, 0)

    def wait_s(self, slot: int) -> float:
        """Prompts one after the other; what has passed is work on the first of them alone."""
        engine, computing = self.engines[slot], self.computing(slot)
        wait = sum(max(0.0, until - self.now_s) for until in engine.unseen_until_s)
        if computing:
            total = sum(prefill_s(one.n_tokens) for one in computing)
            done = min(total / len(computing), self.now_s - engine.anchor_s)
            wait += total - done
        return wait


Bookings.TestCase.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
TestBookings = Bookings.TestCase


@pytest.mark.parametrize("worker", [-1, 2])
def test_a_worker_has_a_column(worker: int) -> None:
    with pytest.raises(IndexError, match=r"not in 0\.\.1"):
        Booker(table_of(2), worker)


def test_waits_shrink_as_time_passes() -> None:
    table = table_of(1)
    router = Router(table, 0, make_policy("least-requests"), None)
    for is_seen in (True, False):
        sent = [
            router.send(Demand(), [0], NO_KEYS, 1000, 16, 50.0, is_seen=is_seen) for _ in range(2)
        ]
        one_s = prefill_s(1000)
        waits = [table.standing(0, 50.0 + passed)["wait_s"] for passed in (0, one_s / 2, one_s, 99)]
        # Of a stream the first token is due, so what comes behind it has not begun.
        last = one_s if is_seen else 0.0
        assert waits == pytest.approx([2 * one_s, 1.5 * one_s, one_s, last])
        for dispatch in sent:
            assert dispatch is not None
            dispatch.release(60.0)


def test_work_under_way_is_not_begun_anew_by_another_workers_booking() -> None:
    table = table_of(2)
    routers = [Router(table, worker, make_policy("least-requests"), None) for worker in range(2)]
    long_s, short_s = prefill_s(8000), prefill_s(100)
    routers[0].send(Demand(), [0], NO_KEYS, 8000, 16, 50.0)
    at_s = 50.0 + long_s / 4
    routers[1].send(Demand(), [0], NO_KEYS, 100, 16, at_s)
    assert table.standing(0, at_s)["wait_s"] == pytest.approx(0.75 * long_s + short_s)
