"""Sessions: where each was last, where it goes when that is gone, and what that costs."""

from array import array
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from router import POLICIES, Adapters, Sessions, State, Table, make_policy
from router._demand import Demand
from router._router import Dispatch, Router

N_SLOTS = 5
# Of the 8b-h100 profile: 1,000 prompt tokens take 35 ms.
PROFILE = (8e-3, 33e-6, 1.3e-9, 20e-6, 55e-9, 390_000)
SPREAD = 0x9E3779B97F4A7C15


class Gateway:
    """Some workers' routers over one table and one memory of sessions."""

    def __init__(self, policy: str = "marginal-cost", workers: int = 1, n: int = N_SLOTS) -> None:
        self.table = Table(bytearray(Table.size(workers)), workers)
        memory = bytearray(Sessions.size())
        self.sessions = Sessions(memory)
        self.routers = [
            Router(self.table, w, make_policy(policy, w), None, sessions=Sessions(memory))
            for w in range(workers)
        ]
        self.demand = Demand()
        for slot in range(n):
            self.table.set_row(
                slot,
                state=State.READY,
                share=1.0,
                generation=1,
                profile=PROFILE,
                identity=(slot + 1) * SPREAD % 2**64,
            )

    def send(
        self,
        session: int,
        now_s: float = 0.0,
        *,
        hard: bool = False,
        worker: int = 0,
        n_tokens: float = 1000.0,
        weight_s: float = 0.5,
        slots: range = range(N_SLOTS),
    ) -> Dispatch | None:
        return self.routers[worker].send(
            self.demand,
            slots,
            array("Q"),
            n_tokens,
            0.0,
            now_s,
            session=session * SPREAD % 2**64,
            is_bound=hard,
            home_s=weight_s,
        )

    def went(self, session: int, now_s: float = 0.0, **how: object) -> int | None:
        """Sent, and over at once."""
        dispatch = self.send(session, now_s, **how)  # type: ignore[arg-type]
        if dispatch is None:
            return None
        dispatch.release(now_s)
        return dispatch.slot


@pytest.mark.parametrize("hard", [False, True])
def test_a_session_stays(hard: bool) -> None:
    gateway = Gateway(workers=3)
    first = {session: gateway.went(session, hard=hard) for session in range(1, 41)}
    for worker in (0, 1, 2):
        for session, slot in first.items():
            assert gateway.went(session, worker=worker, hard=hard) == slot
    assert len(set(first.values())) == N_SLOTS, "sessions are spread"


def test_a_soft_session_leaves_where_staying_costs_more() -> None:
    gateway = Gateway()
    home = gateway.went(1)
    held = []
    # Each adds 35 ms and more: at some point that is more than half a second.
    while (dispatch := gateway.send(1)) is not None and dispatch.slot == home:
        held.append(dispatch)
    assert 5 < len(held) < 20
    assert dispatch is not None
    assert gateway.went(1) == dispatch.slot, "from then on it is at home there"


def test_without_weight_a_soft_session_is_free() -> None:
    gateway = Gateway()
    assert len({gateway.went(1, weight_s=0.0) for _ in range(20)}) == N_SLOTS


def test_a_hard_session_stays_under_any_load() -> None:
    gateway = Gateway()
    home = gateway.went(1, hard=True)
    held = [gateway.send(1, hard=True) for _ in range(200)]
    assert {dispatch.slot for dispatch in held if dispatch} == {home}


def test_a_hard_session_waits_for_its_full_endpoint() -> None:
    gateway = Gateway()
    home = gateway.went(1, hard=True)
    assert home is not None
    gateway.table.set_row(home, max_in_flight=1)
    held = gateway.send(1, hard=True)
    assert held is not None
    assert held.slot == home
    assert gateway.send(1, hard=True) is None
    held.release(0.0)
    assert gateway.went(1, hard=True) == home


def test_a_hard_session_stays_where_others_would_be_kept_away() -> None:
    gateway = Gateway(workers=2)
    home = gateway.went(1, hard=True)
    assert home is not None
    gateway.table.set_row(home, overloaded=True)
    assert gateway.went(1, hard=True) == home
    gateway.table.set_row(home, overloaded=False)
    # A request waits for it in the other worker since before this one came.
    gateway.table.set_held(1, home, 100.0, 50.0, 0)
    ask = {"session": SPREAD, "is_bound": True, "minds_others": True, "since_s": 99.0}
    router, slots = gateway.routers[0], range(N_SLOTS)
    assert router.send(gateway.demand, slots, array("Q"), 9.0, 0.0, 100.0, **ask) is None
    assert gateway.went(1, 101.0, hard=True) == home


@pytest.mark.parametrize("hard", [False, True])
def test_a_session_whose_endpoint_dies_moves_once_and_stays(hard: bool) -> None:
    gateway = Gateway()
    home = gateway.went(1, hard=hard)
    assert home is not None
    gateway.table.set_row(home, state=State.OPEN)
    other = gateway.went(1, hard=hard)
    assert other is not None
    assert other != home
    gateway.table.set_row(home, state=State.READY)
    assert {gateway.went(1, hard=hard) for _ in range(10)} == {other}


def test_another_endpoint_in_the_slot_is_no_home() -> None:
    gateway = Gateway()
    home = gateway.went(1)
    assert home is not None
    assert gateway.sessions.where(gateway.table, SPREAD, 0.0) == home
    gateway.table.set_row(home, generation=2)
    assert gateway.sessions.where(gateway.table, SPREAD, 0.0) is None


def test_an_idle_session_is_forgotten() -> None:
    gateway = Gateway()
    gateway.sessions.idle_s = 60.0
    home = gateway.went(1, 1000.0)
    assert gateway.sessions.where(gateway.table, SPREAD, 1059.0) == home
    assert gateway.sessions.where(gateway.table, SPREAD, 1061.0) is None


def test_gateways_agree_on_hard_sessions_untold() -> None:
    """Slots differ between gateways; names do not."""
    one, other = Gateway(), Gateway(n=0)
    for slot in range(N_SLOTS):
        other.table.set_row(
            N_SLOTS - 1 - slot,
            state=State.READY,
            share=1.0,
            generation=7,
            profile=PROFILE,
            identity=(slot + 1) * SPREAD % 2**64,
        )
    for session in range(1, 60):
        slot = one.went(session, hard=True)
        assert slot is not None
        assert other.went(session, hard=True) == N_SLOTS - 1 - slot


@pytest.mark.parametrize("policy", POLICIES)
def test_hard_holds_for_every_policy(policy: str) -> None:
    gateway = Gateway(policy)
    homes = {session: gateway.went(session, hard=True) for session in range(1, 21)}
    for _ in range(3):
        for session, home in homes.items():
            assert gateway.went(session, hard=True) == home


def test_a_home_that_lacks_the_model_now_is_left() -> None:
    gateway = Gateway()
    home = gateway.went(1, hard=True)
    rest = range(1, N_SLOTS) if home == 0 else range(0, home or 1)
    assert gateway.went(1, hard=True, slots=rest) in rest


def test_more_sessions_than_there_is_room_for() -> None:
    gateway = Gateway()
    n = 200_000
    for session in range(n):
        gateway.sessions.went(gateway.table, session * SPREAD % 2**64, session % 5, session * 0.01)
    kept = sum(
        gateway.sessions.where(gateway.table, session * SPREAD % 2**64, n * 0.01) == session % 5
        for session in range(n - 30_000, n)
    )
    assert kept > 29_000, "the newest are kept"


class Machine(RuleBasedStateMachine):
    """Hard sessions against a dictionary, while endpoints die, return and are replaced."""

    @initialize()
    def begin(self) -> None:
        self.gateway = Gateway(workers=2)
        self.now_s = 0.0
        self.up = dict.fromkeys(range(N_SLOTS), 1)  # slot -> generation
        self.homes: dict[int, tuple[int, int]] = {}
        self.moves: Counter[int] = Counter()
        self.losses: Counter[int] = Counter()

    @rule(slot=st.integers(0, N_SLOTS - 1))
    def die(self, slot: int) -> None:
        self.up.pop(slot, None)
        self.gateway.table.set_row(slot, state=State.OPEN)

    @rule(slot=st.integers(0, N_SLOTS - 1), replaced=st.booleans())
    def back(self, slot: int, replaced: bool) -> None:
        _, _, generation = self.gateway.table.row(slot)
        if slot not in self.up:
            generation += replaced
            self.gateway.table.set_row(slot, state=State.READY, generation=generation)
            self.up[slot] = generation

    @rule(session=st.integers(1, 6), worker=st.integers(0, 1), wait_s=st.floats(0, 100))
    def ask(self, session: int, worker: int, wait_s: float) -> None:
        self.now_s += wait_s
        slot = self.gateway.went(session, self.now_s, hard=True, worker=worker)
        if not self.up:
            assert slot is None
            return
        assert slot in self.up
        home = self.homes.get(session)
        if home is not None and self.up.get(home[0]) == home[1]:
            assert slot == home[0], "it stays while its endpoint is up"
        self.homes[session] = (slot, self.up[slot])

    @invariant()
    def the_map_is_right(self) -> None:
        for session, (slot, generation) in getattr(self, "homes", {}).items():
            where = self.gateway.sessions.where(
                self.gateway.table, session * SPREAD % 2**64, self.now_s
            )
            same = self.gateway.table.row(slot)[2] == generation
            # A session that nobody asked for within an hour is forgotten.
            assert where in ((slot, None) if same else (None,))


Machine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
test_hard_sessions_under_churn = Machine.TestCase


def test_what_is_long_past_does_not_look_new_once_the_clock_of_the_marks_is_round() -> None:
    gateway = Gateway()
    sessions, table = gateway.sessions, gateway.table
    memory = bytearray(Adapters.size())
    adapters = Adapters(memory)
    sessions.went(table, SPREAD, 2, 0.0)
    adapters.used(1, ["a"], 0.0)
    for minutes in range(10, 600, 10):
        now_s = 60.0 * minutes
        sessions.sweep(now_s)
        adapters.sweep(now_s)
        assert sessions.where(table, SPREAD, now_s) == (2 if now_s <= sessions.idle_s else None)
        if now_s > 4.5 * 3600:
            assert not any(memory)


def test_a_mark_that_another_process_made_a_moment_later_is_new() -> None:
    gateway = Gateway()
    gateway.sessions.went(gateway.table, SPREAD, 2, 100.0)
    assert gateway.sessions.where(gateway.table, SPREAD, 99.9) == 2
