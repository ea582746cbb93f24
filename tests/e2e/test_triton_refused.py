"""Calls that the server never began, by RST_STREAM or GOAWAY: they are asked anew."""

import asyncio

import pytest

from gateway._shared import Count
from tests.e2e.conftest import request
from tests.e2e.http2 import CANCEL, LAST_ID, REFUSED, goaway
from tests.e2e.triton import (
    Triton,
    answer,
    begin,
    complete,
    error_of,
    first_and_then,
    greet,
    play_triton,
    response,
    responses,
    rest_of,
    told,
)

GREETING = {0: ("Hello world", "stop")}


def greetings(n):
    return dict.fromkeys(range(n), GREETING[0])


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_refused_call_is_asked_anew(play, stream, n):
    async def refuse(call):
        call.refuse(REFUSED)

    engine = Triton(first_and_then(refuse))

    async def scene(house):
        assert told(await complete(house, stream=stream, n=n)) == greetings(n)
        assert len(engine.links) == 1
        assert house.shared.table.load(0)["failures_in_row"] == 0

    play_triton(play, scene, engine)


def test_last_of_several_calls_is_refused(play):
    """All are asked anew, as nobody has read of the others."""

    async def script(call):
        if engine.calls.index(call) == 2:
            await call.link.settle()
            return call.refuse(REFUSED)
        await greet(call)

    engine = Triton(script)

    async def scene(house):
        assert told(await complete(house, n=3)) == greetings(3)
        assert (len(engine.calls), len(engine.links)) == (6, 1)

    play_triton(play, scene, engine)


@pytest.mark.parametrize("end", ["refused", "GOAWAY"])
def test_call_is_asked_anew_however_late_it_is_refused(play, end):
    """The server says for sure that it has not begun."""

    async def script(call):
        await asyncio.sleep(1.1)
        call.refuse(REFUSED) if end == "refused" else call.link.go_away(0)

    engine = Triton(first_and_then(script))

    async def scene(house):
        assert told(await complete(house)) == GREETING

    play_triton(play, scene, engine)


def test_engine_that_refuses_all_is_left(play):
    async def refuse(call):
        call.refuse(REFUSED)

    bad, good = Triton(refuse), Triton()

    async def scene(house):
        assert told(await complete(house)) == GREETING
        assert (len(bad.calls), len(good.calls)) == (2, 1)

    play_triton(play, scene, bad, good)


class Leaving:
    """A server that says GOAWAY of its first connection as soon as it has so many more calls
    behind a first one, which goes on until `done`."""

    def __init__(self, n_more, last_id):
        self.done = asyncio.Event()
        self.engine = Triton(first_and_then(self._first, self._then))
        self._n_more, self._last_id = n_more, last_id

    async def _first(self, call):
        await call.asked.wait()
        call.head()
        call.say(response("Hel"))
        await self.done.wait()
        call.say(*responses("lo", " world"))
        call.end()

    async def _then(self, call):
        if call.link is self.engine.links[0] and len(self.engine.calls) == 1 + self._n_more:
            call.link.go_away(self._last_id)
        if call.link is not self.engine.links[0] or call.id <= self._last_id:
            await greet(call)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_calls_behind_the_last_one_are_asked_anew(play, stream, n):
    """Those before it end well."""
    server = Leaving(n, 1)
    engine = server.engine

    async def scene(house):
        wire = await begin(house, b"Hel")
        assert told(await complete(house, stream=stream, n=n)) == greetings(n)
        assert (len(engine.links), len(engine.calls)) == (2, 1 + 2 * n)
        assert not engine.links[0].closed.is_set()
        server.done.set()
        assert b" world" in await rest_of(wire)
        await asyncio.wait_for(engine.links[0].closed.wait(), 5)
        assert house.shared.table.load(0)["failures_in_row"] == 0

    play_triton(play, scene, engine)


def test_farewell_with_time_to_end(play):
    """Nothing that runs is touched, all that is new goes over another connection."""
    server = Leaving(1, LAST_ID)
    engine = server.engine

    async def scene(house):
        wire = await begin(house, b"Hel")
        assert told(await complete(house)) == GREETING
        assert (len(engine.links), len(engine.calls)) == (1, 2)
        await house.until(lambda: engine.links[0].pongs)
        assert told(await complete(house)) == GREETING
        assert (len(engine.links), len(engine.calls)) == (2, 3)
        # The second GOAWAY names the last call that there will be.
        engine.links[0].go_away(3)
        server.done.set()
        assert b" world" in await rest_of(wire)
        await asyncio.wait_for(engine.links[0].closed.wait(), 5)
        assert not engine.links[1].closed.is_set()

    play_triton(play, scene, engine)


def test_call_that_was_heard_of_cannot_be_asked_anew(play):
    async def script(call):
        await call.asked.wait()
        call.head()
        call.say(response("Hel"))
        await asyncio.sleep(0.01)
        call.link.go_away(0)

    engine = Triton(first_and_then(script))

    async def scene(house):
        status, text = error_of(await complete(house, stream=True))
        assert (status, "closed the connection" in text) == (0, True)
        await asyncio.wait_for(engine.links[0].closed.wait(), 5)
        assert told(await complete(house)) == GREETING

    play_triton(play, scene, engine)


def test_engine_that_refuses_and_leaves_all_the_time(play):
    """Nobody notices, as long as there is another one."""

    async def script(call):
        await call.asked.wait()
        n = bad.calls.index(call)
        if n % 7 == 3:
            call.link.send(goaway(max(call.id - 2, 0)))
        elif n % 7 == 5:
            call.refuse(REFUSED)
        else:
            answer(call, "Hello", " world")

    bad = Triton(script)

    async def scene(house):
        for _ in range(10):
            got = await asyncio.gather(*(complete(house) for _ in range(8)))
            assert [told(one) for one in got] == 8 * [GREETING]
        assert len(bad.links) > 2

    play_triton(play, scene, bad, Triton())


def test_farewell_to_nobody(play):
    engine = Triton()

    async def scene(house):
        for n in (1, 2, 3):
            assert told(await complete(house)) == GREETING
            assert len(engine.links) == n
            engine.links[-1].go_away(LAST_ID)
            await asyncio.wait_for(engine.links[-1].closed.wait(), 5)

    play_triton(play, scene, engine)


def test_idle_connection_that_ends(play):
    engine = Triton()

    async def scene(house):
        for end in ("close", "abort"):
            assert told(await complete(house)) == GREETING
            getattr(engine.links[-1].writer.transport, end)()
            await house.until(lambda: house.count(Count.UPSTREAM_CLOSED) == len(engine.links))
        assert told(await complete(house)) == GREETING
        assert len(engine.links) == 3

    play_triton(play, scene, engine)


@pytest.mark.parametrize("first", ["request", "farewell"])
def test_request_and_farewell_at_once(play, first):
    """No call begins on a connection that has said GOAWAY."""
    engine = Triton()

    async def scene(house):
        for _ in range(20):
            wire = await house.dial()
            assert told(await complete(house)) == GREETING
            ask = request("POST", "/v1/completions", {"model": "sim", "prompt": "Hi"})
            if first == "request":
                wire.write(ask)
            engine.links[-1].go_away(LAST_ID)
            if first == "farewell":
                wire.write(ask)
            assert told(await wire.answer()) == GREETING

    play_triton(play, scene, engine)


def test_last_call_of_a_leaving_connection_is_reset(play):
    async def script(call):
        await call.asked.wait()
        call.head()
        call.say(response("Hel"))
        call.link.go_away(LAST_ID)
        await call.over.wait()

    engine = Triton(first_and_then(script))

    async def scene(house):
        wire = await begin(house, b"Hel")
        await house.until(lambda: engine.links[0].pongs)
        wire.close()
        await asyncio.wait_for(engine.calls[0].over.wait(), 5)
        assert engine.calls[0].reset == CANCEL
        await asyncio.wait_for(engine.links[0].closed.wait(), 5)

    play_triton(play, scene, engine)
