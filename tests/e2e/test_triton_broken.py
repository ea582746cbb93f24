"""What no server may say: the connection is given up, and the next request is served."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway._shared import Count
from tests.e2e.http2 import (
    END_HEAD,
    HAS_PRIORITY,
    PADDED,
    Kind,
    frame,
    goaway,
    number,
)
from tests.e2e.triton import (
    Triton,
    answer,
    complete,
    endpoints,
    error_of,
    play_triton,
    prefixed,
    response,
    told,
)

TEXTS = ("Hello", " wörld")
WHOLE = {0: ("".join(TEXTS), "stop")}

BROKEN = {
    "oversize frame": lambda call: frame(Kind.DATA, 0, call.id, bytes(16385)),
    "garbage": lambda call: b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "half a frame": lambda call: frame(Kind.DATA, 0, call.id, b"abc")[:-1],
    "half a message": lambda call: frame(Kind.DATA, 0, call.id, response("Hello")[:9]),
    "padding of a DATA": lambda call: frame(Kind.DATA, PADDED, call.id, b"\x04abc"),
    "no padding of a DATA": lambda call: frame(Kind.DATA, PADDED, call.id),
    "padding of a HEADERS": lambda call: frame(Kind.HEADERS, PADDED | END_HEAD, call.id, b"\xff"),
    "short priority": lambda call: frame(Kind.HEADERS, HAS_PRIORITY | END_HEAD, call.id, b"abc"),
    "bad header block": lambda call: frame(Kind.HEADERS, END_HEAD, call.id, b"\xff\xff\xff"),
    "header block of nobody": lambda call: frame(Kind.HEADERS, END_HEAD, 1_001, b"\xff\xff\xff"),
    "endless header block": lambda call: (
        frame(Kind.HEADERS, 0, call.id) + 5 * frame(Kind.CONTINUATION, 0, call.id, bytes(16384))
    ),
    "continuation of nothing": lambda call: frame(Kind.CONTINUATION, END_HEAD, call.id, b"\x88"),
    "continuation of another": lambda call: (
        frame(Kind.HEADERS, 0, call.id) + frame(Kind.CONTINUATION, 0, call.id + 2, b"\x88")
    ),
    "PING in a header block": lambda call: (
        frame(Kind.HEADERS, 0, call.id) + frame(Kind.PING, body=bytes(8))
    ),
    "push": lambda call: frame(Kind.PUSH_PROMISE, END_HEAD, call.id, number(2) + b"\x88"),
    "short PING": lambda call: frame(Kind.PING, body=bytes(7)),
    "short RST_STREAM": lambda call: frame(Kind.RST_STREAM, 0, call.id, bytes(3)),
    "short GOAWAY": lambda call: frame(Kind.GOAWAY, body=bytes(4)),
    "short WINDOW_UPDATE": lambda call: frame(Kind.WINDOW_UPDATE, 0, call.id, bytes(3)),
    "SETTINGS of 5 bytes": lambda call: frame(Kind.SETTINGS, body=bytes(5)),
    "window of a call": lambda call: frame(Kind.WINDOW_UPDATE, 0, call.id, number(2**31 - 1)),
    "window": lambda call: frame(Kind.WINDOW_UPDATE, 0, 0, number(2**31 - 1)),
    "initial window": lambda call: frame(Kind.SETTINGS, body=b"\0\x04" + number(2**31)),
    "closed": lambda call: b"",
}
CLOSES = ("half a frame", "half a message", "closed")


@pytest.mark.parametrize("name", BROKEN)
def test_broken_connection_is_given_up(play, name):
    """Before and behind the first words; the request after that is served."""

    async def script(call):
        await call.asked.wait()
        n = engine.calls.index(call)
        if n % 2:
            return answer(call, *TEXTS)
        if n:
            call.head()
            call.say(response("Hello"))
            await call.link.settle()
        call.link.send(BROKEN[name](call))
        if name in CLOSES:
            call.link.close()

    engine = Triton(script)

    async def scene(house):
        for n, begun in enumerate((False, True), 1):
            got = await complete(house, stream=begun)
            assert got.reason == (None if begun else "upstream_lost")
            status, text = error_of(got)
            assert status == (0 if begun else 502)
            assert "The engine closed the connection" in text
            await engine.links[-1].closed.wait()
            assert told(await complete(house)) == WHOLE
            assert (house.count(Count.LOST), len(engine.links)) == (n, n + 1)

    play_triton(play, scene, engine)


def test_half_an_answer_is_asked_elsewhere_unless_somebody_reads_it(play):
    async def script(call):
        await call.asked.wait()
        call.head()
        call.say(response("Hello"))
        call.link.close()

    bad, good = Triton(script), Triton()

    async def scene(house):
        assert told(await complete(house)) == {0: ("Hello world", "stop")}
        assert (len(bad.calls), len(good.calls)) == (1, 1)

    play_triton(play, scene, bad, good)


ANYTHING = st.one_of(
    st.binary(max_size=60),
    st.builds(
        frame, st.integers(0, 10), st.integers(0, 255), st.sampled_from([0, 1, 2, 3, 5]),
        st.one_of(st.binary(max_size=12), st.just(prefixed(b"\x0a\x02no"))),
    ),
    st.just(goaway(0)),
)  # fmt: skip


PLACE = st.tuples(st.booleans(), st.integers(0, 400))
"""A number of frames, or of bytes."""


@pytest.mark.parametrize("n", [1, 2])
def test_whatever_it_sends_the_next_request_is_served(open_house, n):
    """Some of an answer, changed, and then the connection's end."""

    @settings(max_examples=100)
    @given(PLACE, st.integers(0, 50), ANYTHING, st.booleans())
    @example((True, 0), 0, goaway(0), False)
    def check(place, n_lost, strange, stream):
        async def script(call):
            await call.asked.wait()
            if len(bad.links) > 1:
                return answer(call, *TEXTS)
            sent, call.link.send = [], lambda data: sent.append(data)
            answer(call, *TEXTS)
            del call.link.send
            whole, (is_frame, at) = b"".join(sent), place
            if is_frame:
                at = len(b"".join(sent[: at % (len(sent) + 1)]))
            call.link.send(whole[:at] + strange + whole[at + n_lost :])
            call.link.close()

        bad, unseen = Triton(script), []
        with open_house(bad, endpoints=endpoints(bad)) as world:
            world.house.loop.set_exception_handler(lambda _, context: unseen.append(context))
            got = world.run(complete(world.house, stream=stream, n=n))
            assert got.complete
            assert got.status in (200, 400, 404, 500, 502, 503)
            assert told(world.run(complete(world.house))) == WHOLE
        assert not unseen

    check()
