"""Dials to Triton, and what becomes of them when clients and endpoints leave."""

import asyncio

import pytest

from gateway._shared import Count
from router import State
from tests.e2e.conftest import request
from tests.e2e.http2 import Kind, frame, goaway
from tests.e2e.triton import (
    Triton,
    begin,
    complete,
    error_of,
    in_flight,
    play_triton,
    response,
    responses,
    rest_of,
    told,
)

GREETING = {0: ("Hello world", "stop")}


def say_http(link):
    link.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")


def say_farewell(link):
    link.settings({})
    link.send(goaway())


# What becomes of a connection at its beginning -> what its client is told.
OPENINGS = {
    "closed": (lambda link: link.writer.transport.abort(), "closed at once"),
    "ended": (lambda link: link.close(), "closed at once"),
    "HTTP/1.1": (say_http, "it does not speak gRPC"),
    "PING first": (lambda link: link.send(frame(Kind.PING, body=bytes(8))), "not SETTINGS"),
    "bad SETTINGS": (lambda link: link.send(frame(Kind.SETTINGS, body=b"x")), "multiple of 6"),
    "silent": (lambda link: None, "no gRPC connection in time"),
    "GOAWAY": (say_farewell, "takes no calls"),
}


@pytest.mark.parametrize("name", OPENINGS)
def test_connection_that_does_not_come_about(play, name, caplog):
    opening, text = OPENINGS[name]
    bad, good = Triton(opening=opening), Triton()

    async def scene(house):
        got = await asyncio.gather(*(complete(house) for _ in range(3)))
        assert [told(one) for one in got] == 3 * [GREETING]
        # Who waited, waited for the same one.
        assert len(bad.links) == 1
        assert house.count(Count.DIAL_FAILED) == house.count(Count.RETRY_DIAL) > 1
        house.state(1, State.OPEN)
        got = await complete(house)
        assert (got.status, got.reason) == (503, "connect_failed")
        assert text in error_of(got)[1]
        assert (len(bad.links), bad.calls) == (2, [])
        bad.opening = lambda link: link.settings({})
        assert told(await complete(house)) == GREETING

    play_triton(play, scene, bad, good, connect_s=0.5)
    # Once, however many there were.
    assert caplog.text.count("is that its gRPC port?") == 1
    assert text in caplog.text


def test_nobody_listens(play):
    engine = Triton()

    async def scene(house):
        await engine.deafen()
        got = await complete(house)
        assert (got.status, got.reason) == (503, "connect_failed")
        await engine.listen()
        assert told(await complete(house)) == GREETING

    play_triton(play, scene, engine)


def test_client_leaves_before_there_is_a_connection(play):
    engine = Triton(opening=lambda link: None)

    async def scene(house):
        wire = await house.dial()
        body = {"model": "sim", "prompt": "Hi"}
        wire.write(request("POST", "/v1/completions", body))
        await house.until(lambda: house.count(Count.WAITING_FOR_DIAL) == 1)
        await house.until(lambda: engine.links)
        wire.close()
        await house.until(lambda: house.count(Count.CANCELLED) == 1)
        assert (in_flight(house), house.count(Count.WAITING_FOR_DIAL)) == (0, 0)
        # The dial goes on, for whoever comes next.
        engine.links[0].settings({})
        assert told(await complete(house)) == GREETING
        assert (len(engine.links), len(engine.calls)) == (1, 1)

    play_triton(play, scene, engine)


def leave(house):
    """The fleet has no endpoint any more."""
    house.tell(endpoints=[], models=[])


def test_dial_that_ends_when_its_endpoint_has_left(play):
    engine = Triton(opening=lambda link: None)

    async def scene(house):
        asked = asyncio.create_task(complete(house))
        await house.until(lambda: engine.links)
        leave(house)
        assert (await complete(house)).status in (404, 503)
        engine.links[0].settings({})
        assert (await asked).complete
        await asyncio.wait_for(engine.links[0].closed.wait(), 5)

    play_triton(play, scene, engine)


def test_calls_go_on_when_their_endpoint_has_left(play):
    done = asyncio.Event()

    async def script(call):
        await call.asked.wait()
        call.head()
        call.say(response("Hel"))
        await done.wait()
        call.say(*responses("lo"))
        call.end()

    engine = Triton(script)

    async def scene(house):
        wire = await begin(house, b"Hel")
        leave(house)
        assert (await complete(house)).status in (404, 503)
        done.set()
        assert b'"text":"lo"' in await rest_of(wire)
        await asyncio.wait_for(engine.links[0].closed.wait(), 5)

    play_triton(play, scene, engine)
