"""One of two replicas dies, leaves or freezes under load, and the clients of the other see nothing.

Of the clients of the victim, those that had part of their answer get an error they can read and the
end of the stream; those that had nothing get their whole answer from the other replica. Every test
takes a victim of its own from the fleet; the last ones harm servers the others have used.
"""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import httpx
import pytest

from tests.real import headgate_process
from tests.real.headgate_process import Gateway
from tests.vllm.fleet import GRACE_S, Fleet
from tests.vllm.load import Call, Load, explained, until
from tests.vllm.server import MODEL, Server

pytestmark = [pytest.mark.engines, pytest.mark.usefixtures("through_gateway")]

STREAMS = 6
ATTEMPTS = 3
WHOLES = 6
# Some ten seconds beside eleven others on one busy replica.
STREAM_TOKENS = 1500
WHOLE_TOKENS = 700
# From an engine's end to the last client of it that knows: the engine says so itself, or a probe
# finds its listener closed, or two scrapes find its counters still.
DEATH_S = 10.0
CLOSED_S = 15.0
EXIT_S = 60.0  # of a busy machine: its processes end one after the other
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


def have_begun(streams: list[Call]) -> bool:
    return all(len(call.events) > 3 for call in streams)


async def fill(load: Load, keeper: Server, victim: Server) -> int:
    """Streams that have produced and whole answers under way on both; the victim's streams."""
    for _ in range(ATTEMPTS):
        streams = load.start(STREAMS, tokens=STREAM_TOKENS, stream=True)
        await until(partial(have_begun, streams), 60, "all streams have begun")
        victims = await asyncio.to_thread(victim.running_requests)
        wholes = load.start(WHOLES, tokens=WHOLE_TOKENS, stream=False)
        await asyncio.sleep(0.5)
        spread = await asyncio.to_thread(lambda: [s.running_requests() for s in (keeper, victim)])
        if 0 < victims < min(STREAMS, spread[1]) and sum(spread) == STREAMS + WHOLES:
            return victims
        # On a busy machine the first may be through before the last has begun.
        await load.finish()
        assert all(call.completed for call in streams + wholes)
        load.calls.clear()
    raise AssertionError(f"{spread} requests on the replicas, {victims} streams on the victim")


def check(load: Load, victims: int, since_s: float, ceiling_s: float) -> float:
    """What every kind of death must look like from outside; when the last error was told."""
    streams = [call for call in load.calls if call.stream]
    wholes = [call for call in load.calls if not call.stream]
    lost = [call for call in streams if not call.completed]
    assert all(call.completed for call in wholes), "a whole answer was lost"
    assert len(lost) == victims, "other streams ended than those on the victim"
    for call in lost:
        if call.aborted:  # on SIGTERM vLLM sometimes finds the time to say so
            continue
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
                assert await asyncio.to_thread(victim.wait_exit, EXIT_S), "the server lives on"
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
                assert await asyncio.to_thread(victim.wait_exit, EXIT_S), "the server lives on"
                await until(lambda: gateway.usable() == 1, 10, "the end is known")
                await settle(gateway)
        figure(f"SIGTERM at once: last error told after {told_s:.1f} s")

    play(story, plain)


def test_each_dialect_is_told(fleet: Fleet, figure: Note) -> None:
    """An engine without another beside it: its streams end, each as its own library expects."""
    [victim] = fleet.require(plain=1)
    core = victim.core()

    def freeze() -> None:
        core.kill(signal.SIGSTOP)

    def kill() -> None:
        core.kill(signal.SIGKILL)

    async def story(gateway: Gateway, harm: Callable[[], None], ceiling_s: float) -> float:
        streams = [Tale(path, body) for path, body in DIALECTS.items()]
        async with httpx.AsyncClient(timeout=60) as client:
            tasks = [asyncio.create_task(s.read(client, gateway.url)) for s in streams]
            await until(lambda: all(s.body.count(b"data:") > 20 for s in streams), 30, "they run")
            harm()
            since_s = time.monotonic()
            async with asyncio.timeout(ceiling_s):
                await asyncio.gather(*tasks)
        for stream in streams:
            stream.check()
        return time.monotonic() - since_s

    try:
        with headgate_process.running([victim.url]) as gateway:
            frozen_s = asyncio.run(story(gateway, freeze, STALL_S))
    finally:
        core.kill(signal.SIGCONT)
    # Awake again, and not only willing: else the next gateway sees it stall, and rightly.
    warm = {"model": MODEL, "prompt": "Once", "max_tokens": 5}
    assert httpx.post(f"{victim.url}/v1/completions", json=warm, timeout=60).status_code == 200
    with headgate_process.running([victim.url]) as gateway:
        killed_s = asyncio.run(story(gateway, kill, DEATH_S))
    assert victim.wait_exit(20), "the server lives on"
    figure(f"each dialect told: {frozen_s:.1f} s after the freeze, {killed_s:.2f} s after the kill")


MESSAGES = [{"role": "user", "content": "Tell me a story about the river."}]
DIALECTS: dict[str, dict[str, Any]] = {
    "chat/completions": {"messages": MESSAGES, "max_tokens": STREAM_TOKENS},
    "messages": {"messages": MESSAGES, "max_tokens": STREAM_TOKENS},
    "responses": {"input": "Tell me a story.", "max_output_tokens": STREAM_TOKENS},
}


class Tale:
    """A stream read whole, as bytes."""

    def __init__(self, path: str, body: dict[str, Any]) -> None:
        self.path = path
        self.body = b""
        self._request = {"model": MODEL, "stream": True, **body}

    async def read(self, client: httpx.AsyncClient, url: str) -> None:
        async with client.stream("POST", f"{url}/v1/{self.path}", json=self._request) as answer:
            assert answer.status_code == 200
            # A response cut off in the middle raises here.
            async for data in answer.aiter_bytes():
                self.body += data

    def check(self) -> None:
        events = [event for event in self.body.decode().split("\n\n") if event]
        assert self.body.endswith(b"\n\n"), events[-3:]
        if self.path == "chat/completions":
            assert events.pop() == "data: [DONE]"
            assert set(self._data(events)["error"]) >= {"message", "type", "param", "code"}
        else:
            assert events[-1].startswith("event: error\n"), events[-3:]
            assert self._data(events)["type"] == "error"
        if self.path == "messages":
            assert set(self._data(events)["error"]) >= {"type", "message"}

    def _data(self, events: list[str]) -> Any:
        return json.loads(events[-1].partition("data: ")[2])
