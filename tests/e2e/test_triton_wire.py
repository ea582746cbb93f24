"""HTTP/2 as servers may write it, and as they may not: what the gateway's client makes of it."""

import asyncio
import ssl
from itertools import pairwise

import pytest
import trustme
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway._shared import Count
from tests.e2e.http2 import (
    END,
    END_HEAD,
    HAS_PRIORITY,
    NO_ERROR,
    PADDED,
    Kind,
    frame,
    number,
    padded,
)
from tests.e2e.triton import (
    METHOD,
    Triton,
    answer,
    complete,
    endpoints,
    play_triton,
    prompt_of,
    response,
    responses,
    told,
)

TEXTS = ("Hello", " wörld", " \U0001f600!")
WHOLE = {0: ("".join(TEXTS), "stop")}


@pytest.mark.parametrize("stream", [False, True])
def test_answer(play, stream):
    engine = Triton()

    async def scene(house):
        body = {"model": "sim", "prompt": "Größe", "stream": stream}
        headers = [("x-request-id", "mine")]
        for _ in range(2):
            got = await house.ask(path="/v1/completions", body=body, headers=headers)
            assert (got.status, told(got)) == (200, {0: ("Hello world", "stop")})
        assert len(engine.links) == 1

    play_triton(play, scene, engine)
    for call in engine.calls:
        assert prompt_of(call) == "Größe"
        assert call.fields[":path"] == METHOD
        assert call.fields[":authority"] == f"127.0.0.1:{engine.grpc_port}"
        assert (call.fields[":method"], call.fields[":scheme"]) == ("POST", "http")
        assert (call.fields["te"], call.fields["x-request-id"]) == ("trailers", "mine")
        assert call.fields["content-type"] == "application/grpc"


def test_tls(play, tmp_path):
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2"])
    ca.issue_cert("engine.test").configure_cert(context)
    engine = Triton(tls=context)
    tls = {"tls": True, "server_name": "engine.test", "ca_file": str(tmp_path / "ca.pem")}

    async def scene(house):
        assert told(await complete(house)) == {0: ("Hello world", "stop")}
        assert engine.calls[0].fields[":scheme"] == "https"
        link = engine.links[0].writer.get_extra_info("ssl_object")
        assert link.selected_alpn_protocol() == "h2"

    play(scene, engine, endpoints={0: engine.fields | tls})


# -- what a server may do: the same answer, written otherwise


def one_data(call):
    call.head()
    call.say(b"".join(responses(*TEXTS)))
    call.end()


def bytewise(call):
    call.head()
    call.say(*(bytes([byte]) for message in responses(*TEXTS) for byte in message))
    call.end()


def padded_frames(call):
    call.send(Kind.HEADERS, END_HEAD | PADDED, padded(call.head_block(), 200))
    for n, message in zip((0, 1, 255, 7), responses(*TEXTS), strict=True):
        call.send(Kind.DATA, PADDED, padded(message, n))
        call.send(Kind.DATA, PADDED, padded(b"", n))
    call.end()


def priorities(call):
    block = number(3) + b"\x10" + call.head_block()
    call.send(Kind.HEADERS, END_HEAD | HAS_PRIORITY | PADDED, padded(block, 3))
    call.send(Kind.PRIORITY, 0, number(1) + b"\x10")
    call.say(*responses(*TEXTS))
    call.end()


def continued(call):
    for flags, block in ((0, call.head_block()), (END, call.end_block())):
        pieces = [bytes([byte]) for byte in block]
        call.send(Kind.HEADERS, flags, pieces[0])
        for piece in pieces[1:]:
            call.send(Kind.CONTINUATION, 0, piece)
        call.send(Kind.CONTINUATION, END_HEAD)
        if not flags:
            call.say(*responses(*TEXTS))


def other_frames(call):
    """Between those of the call."""
    others = [
        frame(Kind.PING, body=b"12345678"),
        frame(Kind.PING, END, body=b"not ours"),
        frame(77, 255, 5, b"unknown"),
        frame(Kind.WINDOW_UPDATE, 0, 0, number(1)),
        frame(Kind.WINDOW_UPDATE, 0, call.id, number(1)),
        frame(Kind.RST_STREAM, 0, 1_001, number(NO_ERROR)),
        frame(Kind.DATA, 0, 1_001, b"of nobody"),
    ]
    call.head()
    for message, *more in zip(responses(*TEXTS), others[::2], [*others[1::2], b""], strict=True):
        call.say(message, b"")
        call.link.send(b"".join(more))
    call.link.settings({77: 1})
    call.end()


def early_hints(call):
    call.send(Kind.HEADERS, END_HEAD, call.block((":status", "103"), ("link", "x")))
    answer(call, *TEXTS)


def no_trailers(call):
    call.head()
    *most, last = responses(*TEXTS)
    call.say(*most)
    call.send(Kind.DATA, END, last)


def no_final(call):
    call.head()
    call.say(*responses(*TEXTS)[:-1])
    call.end()


def more_behind(call):
    call.head()
    call.say(*responses(*TEXTS), response("not this"), response(error="nor this"))
    call.end(13, "whatever")


def reset_behind(call):
    answer(call, *TEXTS)
    call.refuse(NO_ERROR)


def reset_for_end(call):
    """The status, and then no more need for the rest of the request."""
    call.head()
    call.say(*responses(*TEXTS)[:-1])
    call.send(Kind.HEADERS, END_HEAD, call.end_block())
    call.refuse(NO_ERROR)


def large_head(call):
    block = call.block((":status", "200"), ("x-large", "y" * 20_000))
    call.send(Kind.HEADERS, 0, block[:10_000])
    call.send(Kind.CONTINUATION, END_HEAD, block[10_000:])
    call.say(*responses(*TEXTS))
    call.end()


FORMS = (
    one_data, bytewise, padded_frames, priorities, continued, other_frames, early_hints,
    no_trailers, no_final, more_behind, reset_behind, reset_for_end, large_head,
)  # fmt: skip


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_same_answer_however_it_is_written(play, form):
    async def script(call):
        await call.asked.wait()
        form(call) if len(engine.calls) % 2 else answer(call, *TEXTS)

    engine = Triton(script)

    async def scene(house):
        for stream in (False, False, True, True):
            assert told(await complete(house, stream=stream)) == WHOLE
        assert len(engine.links) == 1
        if form is other_frames:
            assert engine.links[0].pongs == 2 * [b"12345678"]
            assert not engine.links[0].unacknowledged

    play_triton(play, scene, engine)


# -- cuts


def cut(data, places):
    edges = sorted({0, *(place % len(data) for place in places), len(data)})
    return [data[a:b] for a, b in pairwise(edges)]


class Cutter:
    """A server whose answers go out in pieces, each read before the next one goes."""

    def __init__(self, open_house):
        self._open_house = open_house
        self.frames_cut = self.bytes_cut = ()
        self.engine = Triton(self._script)

    async def _script(self, call):
        await call.asked.wait()
        sent, call.link.send = [], lambda data: sent.append(data)
        call.head()
        call.say(*cut(b"".join(responses(*TEXTS)), self.frames_cut))
        call.end()
        del call.link.send
        for piece in cut(b"".join(sent), self.bytes_cut):
            call.link.send(piece)
            while self.house.count(Count.UPSTREAM_BYTES_IN) < call.link.n_sent:  # noqa: ASYNC110
                await asyncio.sleep(0)
        self.n_answers += 1

    def check(self, *cuts):
        """Answers that are cut so: in frames, in bytes."""
        with self._open_house(self.engine, endpoints=endpoints(self.engine)) as world:
            self.house = world.house

            async def ask(stream):
                self.n_answers = 0
                got = await complete(world.house, stream=stream)
                await world.house.until(lambda: self.n_answers)  # its trailers come later
                return told(got)

            for n, (self.frames_cut, self.bytes_cut) in enumerate(cuts):
                assert world.run(ask(stream=n % 4 > 0)) == WHOLE


N_MESSAGE_BYTES = sum(map(len, responses(*TEXTS)))
N_BYTES = N_MESSAGE_BYTES + 100


def test_messages_cut_in_two_anywhere(open_house):
    Cutter(open_house).check(*(((place,), ()) for place in range(N_MESSAGE_BYTES)))


def test_answer_cut_in_two_anywhere(open_house):
    Cutter(open_house).check(*(((), (place,)) for place in range(N_BYTES)))


def test_answer_byte_by_byte(open_house):
    bytewise = range(10 * N_BYTES)
    Cutter(open_house).check(((), bytewise), (bytewise, bytewise))


PLACES = st.lists(st.integers(0, 1_000), max_size=20)


def test_answer_cut_anyhow(open_house):
    @settings(max_examples=20)
    @given(st.lists(st.tuples(PLACES, PLACES), min_size=1, max_size=20))
    def check(cuts):
        Cutter(open_house).check(*cuts)

    check()
