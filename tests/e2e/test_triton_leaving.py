"""Calls to Triton that nobody wants any more, and requests that are several calls.

An ensemble does not stop when it is cancelled: it is heard to its end, and counts as long.
"""

import asyncio

import pytest

from gateway._shared import Count
from gateway.messages import Condemn, Drain
from tests.e2e.conftest import request
from tests.e2e.http2 import CALL_WINDOW, CANCEL, INTERNAL, REFUSED
from tests.e2e.triton import (
    ENSEMBLE,
    Triton,
    begin,
    complete,
    error_of,
    first_and_then,
    greet,
    in_flight,
    play_triton,
    prompt_of,
    response,
    responses,
    rest_of,
    told,
)

GREETING = {0: ("Hello world", "stop")}


async def say_first(call):
    await call.asked.wait()
    call.head()
    call.say(response("Hel"))


async def no_more(call):
    await say_first(call)
    await call.over.wait()


async def is_reset(house, *calls):
    """Within a second or so: patience is generous for slow machines."""
    await asyncio.gather(*(asyncio.wait_for(call.over.wait(), 10) for call in calls))
    assert {call.reset for call in calls} == {CANCEL}
    await house.until(lambda: in_flight(house) == 0)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("stream", [False, True])
def test_client_leaves(play, stream, n):
    engine = Triton(no_more)

    async def scene(house):
        wire = await house.dial()
        body = {"model": "sim", "prompt": "Hi", "stream": stream, "n": n}
        wire.write(request("POST", "/v1/completions", body))
        await house.until(lambda: len(engine.calls) == n and in_flight(house) == 1)
        await engine.links[0].settle()
        wire.close()
        await is_reset(house, *engine.calls)
        assert house.count(Count.CANCEL_CLIENT_GONE) == house.count(Count.ABANDONED) == 1
        engine.script = greet
        assert told(await complete(house)) == GREETING
        assert len(engine.links) == 1

    play_triton(play, scene, engine)


def test_client_leaves_while_its_prompt_is_sent(play):
    script = first_and_then(lambda call: call.over.wait())
    engine = Triton(script, settings={CALL_WINDOW: 10}, gives=False)

    async def scene(house):
        asked = asyncio.create_task(complete(house, "x" * 100_000))
        await house.until(lambda: engine.calls and len(engine.calls[0].body) == 10)
        asked.cancel()
        await asyncio.wait([asked])
        await is_reset(house, engine.calls[0])
        engine.links[0].settings({CALL_WINDOW: 65_535})
        assert told(await complete(house)) == GREETING
        assert (len(engine.links), len(engine.calls[0].body)) == (1, 10)

    play_triton(play, scene, engine)


def test_others_on_its_connection_go_on(play):
    done = asyncio.Event()

    async def then(call):
        await say_first(call)
        await done.wait()
        call.say(*responses("lo"))
        call.end()

    engine = Triton(first_and_then(no_more, then))

    async def scene(house):
        leaves, stays = await begin(house, b"Hel"), await begin(house, b"Hel")
        leaves.close()
        await asyncio.wait_for(engine.calls[0].over.wait(), 10)
        done.set()
        assert b'"text":"lo"' in await rest_of(stays)
        assert len(engine.links) == 1

    play_triton(play, scene, engine)


def late(house):
    house.tell(event_s=0.5)


def hung(house):
    house.send(Condemn(0, 1, "hung", True))


def drained(house):
    """Its connections are closed too."""
    house.send(Drain(0, 0))


# What ends a call -> what its client hears in the middle of its stream.
ENDED_BY_US = {
    "silence": (late, "The engine sent nothing for"),
    "condemned": (hung, "The engine was declared dead or stalled: hung"),
    "drain": (drained, "The gateway shut down"),
}


@pytest.mark.parametrize("name", ENDED_BY_US)
def test_gateway_ends_a_call(play, name):
    end, text = ENDED_BY_US[name]
    engine = Triton(no_more)

    async def scene(house):
        if end is late:
            late(house)
        wire = await begin(house, b"Hel")
        end(house)
        assert text.encode() in await rest_of(wire)
        await asyncio.wait_for(engine.calls[0].over.wait(), 10)
        # A connection that is closed ends its calls too.
        assert engine.calls[0].reset == CANCEL or end is drained
        await house.until(lambda: in_flight(house) == 0)

    play_triton(play, scene, engine)


# -- several calls


def test_choices_come_as_they_are_said(play):
    """Two for each prompt; each with its own index, whoever is faster."""

    async def script(call):
        await call.asked.wait()
        call.head()
        index = engine.calls.index(call)
        for word in ("one", " two"):
            await asyncio.sleep(0.01 * (4 - index))
            call.say(response(f"{prompt_of(call)}{word}"))
        call.say(response(final=True))
        call.end()

    engine = Triton(script)

    async def scene(house):
        for stream in (True, False):
            engine.calls.clear()
            got = await complete(house, ["a", "b"], n=2, stream=stream, max_tokens=2)
            a, b = ("aonea two", "length"), ("boneb two", "length")
            assert told(got) == {0: a, 1: a, 2: b, 3: b}
        assert len(engine.links) == 1

    play_triton(play, scene, engine)


@pytest.mark.parametrize("stream", [False, True])
def test_one_choice_that_fails_ends_all(play, stream):
    async def fail(call):
        await say_first(call)
        await call.link.settle()
        call.say(response(error="CUDA"))
        call.end()

    engine = Triton(first_and_then(fail, no_more))

    async def scene(house):
        status, text = error_of(await complete(house, n=3, stream=stream))
        assert (status, text) == (0 if stream else 500, "CUDA")
        await is_reset(house, *engine.calls[1:])
        engine.script = greet
        assert told(await complete(house)) == GREETING

    play_triton(play, scene, engine)


def test_stop_word_ends_a_call(play):
    """Found by the gateway: the model is stopped."""

    async def script(call):
        await say_first(call)
        call.say(response("lo wo"), response("rld. And"))
        await call.over.wait()

    engine = Triton(first_and_then(script))

    async def scene(house):
        for _ in range(2):
            assert told(await complete(house, stop="world")) == {0: ("Hello ", "stop")}
        await is_reset(house, engine.calls[0])
        assert len(engine.links) == 1

    play_triton(play, scene, engine)


# -- ensembles


def end_well(call):
    call.say(*responses("lo"))
    call.end()


def refuse(code):
    return lambda call: call.refuse(code)


# How a call that nobody hears may end.
ENDS = {
    "end": end_well,
    "error": lambda call: call.end(13, "died"),
    "error message": lambda call: (call.say(response(error="died")), call.end()),
    "cancelled": refuse(CANCEL),
    "reset": refuse(INTERNAL),
    "refused": refuse(REFUSED),
    "GOAWAY": lambda call: call.link.go_away(0),
    "closed": lambda call: call.link.close(),
    "lost": lambda call: call.link.writer.transport.abort(),
    "garbage": lambda call: call.link.send(b"garbage " * 3),
}


async def goes_on(house, *calls):
    """Nobody hears them, and they run."""
    await house.until(lambda: house.count(Count.ACCEPTED) == house.count(Count.CANCELLED))
    await calls[0].link.settle()
    assert (in_flight(house), {call.reset for call in calls}) == (1, {None})


@pytest.mark.parametrize("name", ENDS)
def test_ensemble_that_is_left_counts_until_it_ends(play, name):
    engine = Triton(first_and_then(say_first), config=ENSEMBLE)

    async def scene(house):
        wire = await begin(house, b"Hel")
        wire.close()
        await goes_on(house, *engine.calls)
        engine.calls[0].say(response("lo"))
        await goes_on(house, *engine.calls)
        ENDS[name](engine.calls[0])
        await house.until(lambda: in_flight(house) == 0)
        assert told(await complete(house)) == GREETING

    play_triton(play, scene, engine)


def test_choices_of_an_ensemble_count_until_all_have_ended(play):
    engine = Triton(say_first, config=ENSEMBLE)

    async def scene(house):
        wire = await begin(house, b"Hel", n=3)
        await house.until(lambda: len(engine.calls) == 3)
        for call in engine.calls:
            await call.asked.wait()
        end_well(engine.calls[1])
        wire.close()
        left = [engine.calls[0], engine.calls[2]]
        await goes_on(house, *left)
        end_well(left[0])
        await goes_on(house, *left)
        end_well(left[1])
        await house.until(lambda: in_flight(house) == 0)

    play_triton(play, scene, engine)


def test_ensemble_cut_by_a_stop_word_counts_until_it_ends(play):
    async def script(call):
        await say_first(call)
        call.say(response("lo world"))

    engine = Triton(script, config=ENSEMBLE)

    async def scene(house):
        assert told(await complete(house, stop="world")) == {0: ("Hello ", "stop")}
        await engine.links[0].settle()
        assert (in_flight(house), engine.calls[0].reset) == (1, None)
        end_well(engine.calls[0])
        await house.until(lambda: in_flight(house) == 0)

    play_triton(play, scene, engine)


def test_what_a_left_ensemble_says_goes_nowhere(play):
    """It must not stand still because nobody takes its text."""

    async def script(call):
        await say_first(call)
        await call.pour(3_000 * response("x" * 1_000))
        end_well(call)

    engine = Triton(script, config=ENSEMBLE)

    async def scene(house):
        wire = await begin(house, b"Hel")
        wire.close()
        await house.until(lambda: engine.calls[0].answered and in_flight(house) == 0)
        assert engine.calls[0].reset is None

    play_triton(play, scene, engine)


@pytest.mark.parametrize("how", ["fleet", "condemned"])
def test_left_ensemble_of_an_endpoint_that_goes(play, how):
    """What is declared dead counts no more."""
    engine = Triton(say_first, config=ENSEMBLE)

    async def scene(house):
        wire = await begin(house, b"Hel")
        if how == "fleet":
            wire.close()
            await goes_on(house, *engine.calls)
            house.tell(endpoints=[], models=[])
        else:
            hung(house)
            assert b"declared dead" in await rest_of(wire)
        await house.until(lambda: in_flight(house) == 0)
        end_well(engine.calls[0])

    play_triton(play, scene, engine)
