"""One of two replicas dies, leaves or freezes under load, and the clients of the other see nothing.

Of the clients of the victim, those that had part of their answer get an error they can read and the
end of the stream; those that had nothing get their whole answer from the other replica. Every test
takes a victim of its own from the fleet; the last one kills a server the others have used.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine

import pytest

from tests.vllm import headgate_process
from tests.vllm.fleet import GRACE_S, Fleet
from tests.vllm.headgate_process import Gateway
from tests.vllm.load import Call, Load, explained, until
from tests.vllm.server import Server

pytestmark = [pytest.mark.engines, pytest.mark.usefixtures("through_gateway")]

STREAMS = 6
WHOLES = 6
# Some ten seconds beside eleven others on one busy replica.
STREAM_TOKENS = 1500
WHOLE_TOKENS = 700
# From an engine's end to the last client of it that knows: the engine says so itself, or a probe
# finds its listener closed, or two scrapes find its counters still.
DEATH_S = 5.0
CLOSED_S = 10.0
STALL_S = 15.0
BACK_S = 15.0

Note = Callable[[str], None]


@pytest.fixture(scope="module")
def servers(fleet: Fleet) -> list[Server]:
    """Starts at once, because together they start in the time of one, what the tests use up."""
    return fleet.require(plain=3, graceful=1)


@pytest.fixture
def plain(servers: list[Server], fleet: Fleet) -> list[Server]:
    """A replica that stays and one that may be harmed."""
    return fleet.require(plain=2)


@pytest.fixture
def graceful(servers: list[Server], fleet: Fleet) -> list[Server]:
    return fleet.require(plain=1, graceful=1)


def play(story: Callable[[Gateway], Coroutine[None, None, None]], servers: list[Server]) -> None:
    with headgate_process.running([server.url for server in servers]) as gateway:
        asyncio.run(story(gateway))


async def fill(load: Load, keeper: Server, victim: Server) -> int:
    """Streams that have produced and whole answers under way on both; the victim's streams."""
    streams = load.start(STREAMS, tokens=STREAM_TOKENS, stream=True)
    await until(lambda: all(len(call.events) > 3 for call in streams), 30, "streams produce")
    victims = await asyncio.to_thread(victim.running_requests)
    assert 0 < victims < STREAMS, f"{victims} of {STREAMS} streams are on the victim"
    load.start(WHOLES, tokens=WHOLE_TOKENS, stream=False)
    everyone = STREAMS + WHOLES
    await until(
        lambda: keeper.running_requests() + victim.running_requests() == everyone,
        10,
        "all are in flight",
    )
    assert await asyncio.to_thread(victim.running_requests) > victims, "no whole on the victim"
    return victims


def check(load: Load, victims: int, since_s: float, ceiling_s: float) -> float:
    """What every kind of death must look like from outside; when the last error was told."""
    streams = [call for call in load.calls if call.stream]
    wholes = [call for call in load.calls if not call.stream]
    lost = [call for call in streams if not call.completed]
    assert all(call.completed for call in wholes), "a whole answer was lost"
    assert len(lost) == victims, "other streams ended than those on the victim"
    for call in lost:
        assert call.error is not None, "a stream ended without an error and the end mark"
        assert set(call.error) >= {"message", "type", "param", "code"}
        assert isinstance(call.error["message"], str)
        assert len(call.events) > 3
    told_s = max(call.ended_s for call in lost) - since_s
    assert told_s < ceiling_s, f"the error came after {told_s:.1f} s"
    return told_s


def ask(load: Load) -> list[Call]:
    return load.start(4, tokens=5, stream=False) + load.start(4, tokens=5, stream=True)


async def settle(gateway: Gateway) -> None:
    await until(lambda: gateway.in_flight() == 0, 10, "the gateway has nothing in flight")


async def come_back(load: Load, gateway: Gateway) -> float:
    """The seconds until both replicas are in service; requests go on, for one must be the trial."""
    since_s = time.monotonic()
    while await asyncio.to_thread(gateway.usable) < 2:
        assert time.monotonic() - since_s < BACK_S, "the victim does not come back"
        calls = load.start(2, tokens=2, stream=False)
        await load.finish()
        assert all(call.completed for call in calls), "a request was lost on the way back"
    return time.monotonic() - since_s


def test_frozen_core(plain: list[Server], figure: Note) -> None:
    """SIGSTOP: `/health` stays 200, connections stay open, and nothing moves any more."""
    keeper, victim = plain

    async def story(gateway: Gateway) -> None:
        core = victim.core()
        async with Load(gateway.url) as load:
            with explained(load):
                victims = await fill(load, keeper, victim)
                core.kill(signal.SIGSTOP)
                since_s = time.monotonic()
                try:
                    # Some of these reach the frozen replica, whose server answers a stream with a
                    # head at once and then sends nothing.
                    early = ask(load)
                    await until(lambda: gateway.usable() == 1, STALL_S, "the stall is declared")
                    declared_s = time.monotonic() - since_s
                    late = ask(load)
                    await load.finish()
                    assert all(call.completed for call in early + late), "a new request was lost"
                    told_s = check(load, victims, since_s, STALL_S)
                finally:
                    core.kill(signal.SIGCONT)
                await until(lambda: victim.running_requests() == 0, 10, "the victim is free")
                back_s = await come_back(load, gateway)
                await settle(gateway)
        figure(
            f"frozen core: declared after {declared_s:.1f} s, last error told after "
            f"{told_s:.1f} s, back {back_s:.1f} s after it thawed"
        )

    play(story, plain)


def test_sigterm_with_a_grace_period(graceful: list[Server], figure: Note) -> None:
    """The replica finishes what it has and refuses what is new, with `/health` at 200: no client
    may notice."""
    keeper, victim = graceful

    async def story(gateway: Gateway) -> None:
        async with Load(gateway.url) as load:
            with explained(load):
                await fill(load, keeper, victim)
                victim.terminate()
                since_s = time.monotonic()
                for _ in range(6):
                    load.start(2, tokens=5, stream=False)
                    load.start(2, tokens=5, stream=True)
                    await asyncio.sleep(0.3)
                await load.finish()
                assert all(call.completed for call in load.calls), "a client noticed"
                assert await asyncio.to_thread(victim.wait_exit, GRACE_S)
                gone_s = time.monotonic() - since_s
                await settle(gateway)
        figure(f"SIGTERM with grace: {len(load.calls)} answers whole, gone after {gone_s:.1f} s")

    play(story, graceful)


def test_killed_core(plain: list[Server], figure: Note) -> None:
    """kill -9: the engine's own server says so on every stream, answers 500, and ends."""
    keeper, victim = plain

    async def story(gateway: Gateway) -> None:
        async with Load(gateway.url) as load:
            with explained(load):
                victims = await fill(load, keeper, victim)
                victim.core().kill(signal.SIGKILL)
                since_s = time.monotonic()
                # Until the end is known some go to the victim. A stream of it that has no token yet
                # has a head, and its first event is the error: nothing a client must see.
                again = ask(load)
                await load.finish()
                assert all(call.completed for call in again), "a new request was lost"
                told_s = check(load, victims, since_s, DEATH_S)
                assert await asyncio.to_thread(victim.wait_exit, 20), "the server lives on"
                await until(lambda: gateway.usable() == 1, 10, "the death is known")
                await settle(gateway)
        figure(f"killed core: last error told after {told_s:.2f} s")

    play(story, plain)


def test_sigterm_at_once(plain: list[Server], figure: Note) -> None:
    """Default SIGTERM: the listener closes, and requests in flight hang until their client goes."""
    keeper, victim = plain

    async def story(gateway: Gateway) -> None:
        async with Load(gateway.url) as load:
            with explained(load):
                victims = await fill(load, keeper, victim)
                victim.terminate()
                since_s = time.monotonic()
                again = ask(load)
                await load.finish()
                assert all(call.completed for call in again), "a new request was lost"
                told_s = check(load, victims, since_s, CLOSED_S)
                # It waits for its clients: it ends once the gateway has let go of it.
                assert await asyncio.to_thread(victim.wait_exit, 20), "the server lives on"
                await until(lambda: gateway.usable() == 1, 10, "the end is known")
                await settle(gateway)
        figure(f"SIGTERM at once: last error told after {told_s:.1f} s")

    play(story, plain)
