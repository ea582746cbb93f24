"""Calls to Triton that fail, are refused or left: what its client hears, and who is asked anew."""

import asyncio

import pytest

from router import State
from tests.e2e.http2 import (
    CANCEL,
    END,
    END_HEAD,
    INTERNAL,
    NO_ERROR,
    REFUSED,
    Kind,
    number,
)
from tests.e2e.triton import (
    Triton,
    begin,
    complete,
    error_of,
    first_and_then,
    greet,
    in_flight,
    play_triton,
    prefixed,
    response,
    responses,
    told,
)

GREETING = {0: ("Hello world", "stop")}


# -- errors: of a call that has said nothing yet


def trailers_only(status, text):
    async def script(call):
        call.answered = True
        block = call.block((":status", "200"), ("grpc-status", status), ("grpc-message", text))
        call.send(Kind.HEADERS, END_HEAD | END, block)

    return script


def http_answer(status):
    async def script(call):
        call.answered = True
        call.send(Kind.HEADERS, END_HEAD | END, call.block((":status", status)))

    return script


def reset(code):
    async def script(call):
        call.refuse(code)

    return script


def says(*messages, status=None, text=""):
    async def script(call):
        call.head()
        call.say(*messages)
        if status is not None:
            call.end(status, text)

    return script


# What the engine does -> what its client gets if there is no other, and whether another is asked.
ERRORS = {
    "invalid": (trailers_only("3", "bad%20input%3A %C3%A9%"), 400, "bad input: é%", False),
    "not found": (trailers_only("5", "none"), 404, "none", False),
    "exhausted": (trailers_only("8", "full"), 429, "full", True),
    "unimplemented": (trailers_only("12", "no"), 501, "no", False),
    "internal": (trailers_only("13", "oh"), 500, "oh", False),
    "unavailable": (trailers_only("14", "later"), 503, "later", True),
    "unauthenticated": (trailers_only("16", "who"), 401, "who", False),
    "strange status": (trailers_only("abc", "what"), 500, "what", False),
    "endless status": (trailers_only("9" * 40, "what"), 500, "what", False),
    "known words": (trailers_only("2", "Exceeds maximum queue size"), 503, "queue size", True),
    "HTTP 404": (http_answer("404"), 501, "the server answers HTTP 404", False),
    "cancelled": (reset(CANCEL), 503, "the server reset the call (error 8)", True),
    "reset": (reset(INTERNAL), 503, "the server reset the call (error 2)", True),
    "error message": (
        says(response(error="unexpected inference input 'x'")),
        400,
        "unexpected inference input 'x'",
        False,
    ),
    "other error message": (says(response(error="CUDA é"), status=0), 500, "CUDA é", False),
    "status behind no message": (says(status=13, text="died"), 500, "died", False),
    "no protobuf": (says(prefixed(b"\xff\xff")), 500, "no ModelStreamInferResponse", False),
    "compressed": (says(prefixed(b"abc", 1)), 500, "a compressed message", False),
    "huge message": (says(b"\0" + number(2**31) + b"x"), 500, "a message of 2147483648", False),
}


@pytest.mark.parametrize("name", ERRORS)
def test_error_instead_of_an_answer(play, name):
    """Another engine is asked where that may help."""
    script, status, text, elsewhere = ERRORS[name]

    async def every_other(call):
        await call.asked.wait()
        await (greet if bad.calls.index(call) % 2 else script)(call)

    bad, good = Triton(every_other), Triton()

    async def scene(house):
        house.state(1, State.OPEN)
        for stream in (False, True):
            got = await complete(house, stream=stream)
            told_status, told_text = error_of(got)
            assert (told_status, got.reason) == (status, None)
            assert text in told_text
            assert in_flight(house) == 0
            assert told(await complete(house)) == GREETING
        # Whatever the server still believed to be under way was reset.
        assert not any(call.is_open for call in bad.calls)
        assert len(bad.links) == 1
        house.state(1, State.READY, 0.01)
        assert (await complete(house)).status == (200 if elsewhere else status)
        assert (len(bad.calls), len(good.calls)) == (5, elsewhere)

    play_triton(play, scene, bad, good)


# What comes behind the first text -> what ends the stream, and whether another engine is asked for
# somebody who has not seen any of it.
LATE = {
    "error message": (says(response(error="CUDA died")), "CUDA died", False),
    "status 13": (says(status=13, text="died"), "died", False),
    "status 14": (says(status=14, text="gone"), "gone", True),
    "reset": (reset(INTERNAL), "the server reset the call (error 2)", True),
    "cancelled": (reset(CANCEL), "the server reset the call (error 8)", True),
    "refused": (reset(REFUSED), "The engine closed the connection", True),
    "no protobuf": (says(prefixed(b"\xff\xff")), "no ModelStreamInferResponse", False),
    "compressed": (says(prefixed(b"abc", 1)), "a compressed message", False),
}


@pytest.mark.parametrize("name", LATE)
def test_error_in_the_middle(play, name):
    script, text, elsewhere = LATE[name]

    async def begun(call):
        engine.script = greet
        await call.asked.wait()
        call.head()
        call.say(response("Hel"))
        await call.link.settle()
        call.head = lambda: None
        await script(call)

    engine = Triton()

    async def scene(house):
        for stream in (True, False):
            engine.script = begun
            got = await complete(house, stream=stream)
            if elsewhere and not stream:
                assert told(got) == GREETING
            else:
                assert error_of(got)[0] == (0 if stream else 500)
                assert text in error_of(got)[1]
                assert (b'"text":"Hel"' in got.body) is stream
            assert in_flight(house) == in_flight(house, 1) == 0
            assert told(await complete(house)) == GREETING

    play_triton(play, scene, engine, Triton())


@pytest.mark.parametrize("stream", [False, True])
def test_call_that_ends_within_a_message_is_no_answer(play, stream):
    async def script(call):
        await call.asked.wait()
        call.head()
        call.say(response("Hello"), response(" world")[:-3])
        call.end()

    async def scene(house):
        got = await complete(house, stream=stream)
        assert error_of(got)[0] == (0 if stream else 500)

    play_triton(play, scene, Triton(script))


def test_call_that_is_answered_early_is_ended_on_both_sides(play):
    """Else the server counts a call that is half open among those that it can have."""

    async def script(call):
        await trailers_only("3", "too long")(call)

    engine = Triton(first_and_then(script), gives=False)

    async def scene(house):
        got = await complete(house, "x" * 100_000)
        assert error_of(got) == (400, "too long")
        await asyncio.wait_for(engine.calls[0].over.wait(), 2)
        assert engine.calls[0].reset in (NO_ERROR, CANCEL)

    play_triton(play, scene, engine)


def test_status_without_words_is_told_in_words(play):
    async def script(call):
        await call.asked.wait()
        call.answered = True
        block = call.block((":status", "200"), ("grpc-status", "13"))
        call.send(Kind.HEADERS, END_HEAD | END, block)

    async def scene(house):
        status, text = error_of(await complete(house))
        assert (status, bool(text)) == (500, True)

    play_triton(play, scene, Triton(script))


@pytest.mark.parametrize("status", ["401", "429", "502", "503", "504"])
def test_http_status_of_a_proxy_counts_as_its_grpc_status(play, status):
    """As gRPC maps them: a proxy without a server behind it is UNAVAILABLE."""

    async def script(call):
        await call.asked.wait()
        await http_answer(status)(call)

    async def scene(house):
        got = await complete(house)
        assert got.status == (401 if status == "401" else 503)
        assert f"HTTP {status}" in error_of(got)[1]

    play_triton(play, scene, Triton(script))


def test_hint_before_the_head_is_no_status(play):
    async def script(call):
        await call.asked.wait()
        call.send(Kind.HEADERS, END_HEAD, call.block((":status", "103")))
        call.head()
        call.answered = True
        call.send(Kind.HEADERS, END_HEAD | END, call.block(("grpc-status", "13")))

    async def scene(house):
        assert "HTTP 103" not in error_of(await complete(house))[1]

    play_triton(play, scene, Triton(script))


def test_what_comes_late_is_not_the_next_ones(play):
    """A client's connection goes from one call to the next, whose ends may still be coming."""

    async def script(call):
        await call.asked.wait()
        if len(engine.calls) > 1:
            engine.calls[-2].say(response("late"), response(error="late"))
            engine.calls[-2].end(13, "late")
        call.head()
        call.say(*responses("Hello", " world"))

    engine = Triton(script)

    async def scene(house):
        wire = await house.dial()
        for stream in (False, True, True, False, False):
            body = {"model": "sim", "prompt": "Hi", "stream": stream}
            assert told(await wire.ask(path="/v1/completions", body=body)) == GREETING
            assert in_flight(house) == 0
        assert len(engine.links) == 1
        engine.calls[-1].end()

    play_triton(play, scene, engine)


def test_header_blocks_of_calls_that_were_left_count(play):
    """The table that they build is the connection's."""

    async def script(call):
        await call.asked.wait()
        call.head()
        if call.id == 1:
            call.say(response("Hel"))
            await call.over.wait()
        else:
            call.say(*responses("Hello", " world"))
        fields = (("grpc-status", "0"), ("x-own", "of this connection"))
        call.answered = True
        call.send(Kind.HEADERS, END_HEAD | END, call.block(*fields))

    engine = Triton(script)

    async def scene(house):
        wire = await begin(house, b"Hel")
        wire.close()
        for _ in range(2):
            assert told(await complete(house)) == GREETING
        assert len(engine.links) == 1

    play_triton(play, scene, engine)
