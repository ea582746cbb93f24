"""Windows, frame sizes and numbers of calls: who may send how much, on both sides."""

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.e2e.conftest import request
from tests.e2e.http2 import CALL_WINDOW, CANCEL, LAST_ID, MOST_CALLS, MOST_FRAME, WINDOW
from tests.e2e.triton import (
    Triton,
    answer,
    complete,
    endpoints,
    error_of,
    greet,
    play_triton,
    prefixed,
    prompt_of,
    response,
    told,
)

GREETING = {0: ("Hello world", "stop")}
LARGE = "Größe " * 50_000


# -- to the server


@pytest.mark.parametrize(
    "first", [{}, {CALL_WINDOW: 0}, {CALL_WINDOW: 1}, {CALL_WINDOW: LAST_ID}, {MOST_FRAME: 60_000}]
)
def test_large_prompts(play, first):
    async def script(call):
        if call.link.call_window < 1_000:
            call.link.widen(call.id, 1_000)
        await greet(call)

    engine = Triton(script, settings=first)
    prompts = [LARGE + str(index) for index in range(3)]

    async def scene(house):
        got = await asyncio.gather(*(complete(house, prompt) for prompt in prompts))
        assert [told(one) for one in got] == 3 * [GREETING]
        assert sorted(map(prompt_of, engine.calls)) == prompts
        assert len(engine.links) == 1

    play_triton(play, scene, engine)


def test_large_frames_are_used_where_they_are_taken(play):
    sizes = []
    engine = Triton(settings={MOST_FRAME: 60_000, CALL_WINDOW: 1 << 20})

    async def scene(house):
        await complete(house)
        engine.links[0].widen(0, 1 << 20)
        take = engine.links[0]._take
        engine.links[0]._take = lambda kind, flags, id, body: (
            sizes.append(len(body)) or take(kind, flags, id, body)
        )
        assert told(await complete(house, LARGE)) == GREETING
        assert max(sizes) == 60_000

    play_triton(play, scene, engine)


def test_windows_of_a_call_and_of_all(play):
    """What is sent is what both take, to the byte, whatever becomes of them meanwhile."""
    seen = []

    async def script(call):
        link = call.link
        await link.settle()

        async def see():
            await link.settle()
            seen.append((len(call.body), call.allowed, link.allowed))

        await see()
        link.settings({CALL_WINDOW: 40})
        await see()
        link.widen(call.id, 50)
        await see()
        link.widen(call.id, 20)
        await see()
        link.settings({CALL_WINDOW: 100_000})
        await see()
        link.widen(0, 1)
        await see()
        link.widen(0, LAST_ID - 1)
        link.widen(call.id, 1 << 22)
        await greet(call)

    engine = Triton(script, settings={CALL_WINDOW: 100}, gives=False)

    async def scene(house):
        assert told(await complete(house, LARGE)) == GREETING
        assert prompt_of(engine.calls[0]) == LARGE

    play_triton(play, scene, engine)
    assert seen == [
        (100, 0, WINDOW - 100),
        (100, -60, WINDOW - 100),
        (100, -10, WINDOW - 100),
        (110, 0, WINDOW - 110),
        (WINDOW, 34_535, 0),
        (WINDOW + 1, 34_534, 0),
    ]


@pytest.mark.parametrize(
    "more", [{CALL_WINDOW: 1 << 20}, {MOST_FRAME: 60_000, CALL_WINDOW: 60_000}]
)
def test_settings_are_acknowledged_before_they_are_used(play, more):
    """Servers apply them when they are: until then more is an error of flow control."""

    async def script(call):
        await call.link.settle()
        call.link.settings(more)
        await greet(call)

    engine = Triton(script, settings={CALL_WINDOW: 100})

    async def scene(house):
        assert told(await complete(house, LARGE)) == GREETING
        assert engine.links[0].n_hasty == 0

    play_triton(play, scene, engine)


GRANTS = st.lists(
    st.one_of(
        st.tuples(st.just("call"), st.integers(1, 70_000)),
        st.tuples(st.just("all"), st.integers(1, 70_000)),
        st.tuples(st.just("first"), st.integers(0, 200_000)),
        st.tuples(st.just("frame"), st.integers(16_384, 100_000)),
    ),
    max_size=12,
)


def test_windows_however_they_are_granted(open_house):
    grants = []

    async def script(call):
        for what, n in grants:
            if what == "call":
                call.link.widen(call.id, n)
            elif what == "all":
                call.link.widen(0, n)
            else:
                call.link.settings({CALL_WINDOW if what == "first" else MOST_FRAME: n})
            await call.link.settle()
            left = 5 + len(request) - len(call.body)
            assert left == 0 or min(call.allowed, call.link.allowed) <= 0
        call.link.widen(call.id, 2_000_000)
        call.link.widen(0, 2_000_000)
        await greet(call)
        await call.link.settle()

    engine = Triton(greet, gives=False)
    with open_house(engine, endpoints=endpoints(engine)) as world:
        assert told(world.run(complete(world.house, LARGE[:5_000]))) == GREETING
        request = bytes(engine.calls[0].body[5:])
        n_more = len(LARGE.encode()) - len(LARGE[:5_000].encode())
        request += bytes(n_more + 8)  # its lengths may take some bytes more
        engine.script = script

        @settings(max_examples=50)
        @given(GRANTS)
        def check(some):
            grants[:] = some
            assert told(world.run(complete(world.house, LARGE))) == GREETING
            assert prompt_of(engine.calls[-1]) == LARGE
            engine.links[0].settings({CALL_WINDOW: WINDOW})
            assert not engine.faults

        check()


def test_one_that_may_not_send_delays_no_other(play):
    async def script(call):
        if len(engine.calls) == 1:
            await asyncio.sleep(60)
        call.link.widen(call.id, 1_000)
        await greet(call)

    engine = Triton(script, settings={CALL_WINDOW: 0}, gives=False)

    async def scene(house):
        slow = asyncio.create_task(complete(house, LARGE))
        await house.until(lambda: engine.calls)
        for _ in range(3):
            assert told(await complete(house)) == GREETING
        slow.cancel()
        await asyncio.wait([slow])
        await asyncio.wait_for(engine.calls[0].over.wait(), 5)
        assert (engine.calls[0].reset, len(engine.links)) == (CANCEL, 1)
        assert told(await complete(house)) == GREETING

    play_triton(play, scene, engine)


# -- from the server


def test_much_text_comes_through(play):
    """The client gives the windows back as it goes."""
    texts = ["x" * 8_000 + str(index) for index in range(600)]

    async def script(call):
        await call.asked.wait()
        call.head()
        await call.pour(b"".join(map(response, texts)) + response(final=True))
        call.end()

    engine = Triton(script)

    async def scene(house):
        for stream in (True, False):
            got = await complete(house, stream=stream, max_tokens=1_000)
            assert told(got) == {0: ("".join(texts), "stop")}
        given = [n for id, n in engine.links[0].widened if id == engine.calls[0].id]
        assert 4 << 20 < sum(given) < 6 << 20
        assert len(given) < 12

    play_triton(play, scene, engine)


def test_window_of_all_is_given_back(play):
    """Also for what nobody wants to hear any more."""

    async def script(call):
        await call.asked.wait()
        if len(engine.calls) > 1:
            return answer(call, "Hello", " world")
        call.head()
        call.say(response("Hello"), response(final=True))
        await call.pour(80 * (1 << 10) * prefixed(bytes(1_019)))
        call.end()

    engine = Triton(script)

    async def scene(house):
        assert told(await complete(house)) == {0: ("Hello", "stop")}
        await house.until(lambda: engine.calls[0].answered)
        assert sum(n for id, n in engine.links[0].widened if id == 0) >= 80 << 20
        assert told(await complete(house)) == GREETING

    play_triton(play, scene, engine)


def test_server_waits_for_a_client_that_does_not_read(play):
    texts = ["x" * 8_000 for _ in range(1_200)]

    async def script(call):
        await call.asked.wait()
        if len(engine.calls) > 1:
            return answer(call, "Hello", " world")
        call.head()
        await call.pour(b"".join(map(response, texts)) + response(final=True))
        call.end()

    engine = Triton(script)

    async def scene(house):
        wire = await house.dial(limit=1)
        body = {"model": "sim", "prompt": "Hi", "stream": True}
        wire.write(request("POST", "/v1/completions", body, [("Connection", "close")]))
        await house.until(lambda: engine.calls and engine.calls[0].room <= 0)
        # Others do not wait for it.
        assert told(await complete(house)) == GREETING
        got = b""
        while piece := await wire.reader.read(1 << 20):
            got += piece
        assert got.count(b"x" * 8_000) == len(texts)
        assert b'"finish_reason":"length"' in got
        assert len(engine.links) == 1

    play_triton(play, scene, engine)


# -- how many calls


def slowly(call):
    """A script that leaves others the time to come."""

    async def script(call):
        await asyncio.sleep(0.02)
        await greet(call)

    return script(call)


@pytest.mark.parametrize("most", [1, 2])
def test_no_more_calls_than_a_connection_takes(play, most):
    engine = Triton(slowly, settings={MOST_CALLS: most})

    async def scene(house):
        for _ in range(2):
            got = await asyncio.gather(*(complete(house, str(index)) for index in range(6)))
            assert [told(one) for one in got] == 6 * [GREETING]

    play_triton(play, scene, engine)


def test_choices_of_one_request_where_a_connection_takes_one_call(play):
    engine = Triton(slowly, settings={MOST_CALLS: 1})

    async def scene(house):
        got = await complete(house, n=3)
        assert told(got) == dict.fromkeys(range(3), GREETING[0])

    play_triton(play, scene, engine)


def test_choices_of_one_request_beside_other_calls(play):
    """Where the connection there is has not room for all of them, another one has."""
    done = asyncio.Event()

    async def script(call):
        if len(engine.calls) < 3:
            await done.wait()
        await greet(call)

    engine = Triton(script, settings={MOST_CALLS: 4})

    async def scene(house):
        slow = [asyncio.create_task(complete(house)) for _ in range(2)]
        await house.until(lambda: len(engine.calls) == 2)
        try:
            assert told(await complete(house, n=3)) == dict.fromkeys(range(3), GREETING[0])
        finally:
            done.set()
            assert [told(await one) for one in slow] == 2 * [GREETING]

    play_triton(play, scene, engine)


def test_fewer_calls_from_now_on(play):
    engine = Triton(slowly)

    async def scene(house):
        assert told(await complete(house)) == GREETING
        engine.links[0].settings({MOST_CALLS: 1})
        await engine.links[0].settle()
        got = await asyncio.gather(*(complete(house, str(index)) for index in range(4)))
        assert [told(one) for one in got] == 4 * [GREETING]

    play_triton(play, scene, engine)


def test_server_that_takes_no_calls(play):
    engine = Triton(settings={MOST_CALLS: 0})

    async def scene(house):
        status, text = error_of(await complete(house))
        assert (status, "its gRPC server takes no calls" in text) == (503, True)

    play_triton(play, scene, engine)
