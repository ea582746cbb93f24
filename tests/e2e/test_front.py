"""The front, piece by piece: every cut of every file of the corpus, and h11's opinion."""

import asyncio
import tomllib
from functools import partial
from pathlib import Path

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.e2e.tape import Tape, turn

CORPUS = Path(__file__).parents[1] / "gateway/http/corpus"
VERDICTS = tomllib.loads((CORPUS / "verdicts.toml").read_text("ascii"))
FILES = {
    name: (CORPUS / f"{name}.http").read_bytes()
    for name in VERDICTS
    if not name.startswith("response_")
}
# What is asked with POST here has no answer to HEAD.
ENGINES_SIDE = sorted(
    name
    for name, verdict in VERDICTS.items()
    if name.startswith("response_") and not verdict.get("to_head")
)
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"

# Their heads decide; an answer does not wait for a body, but then it is the connection's last.
ANSWERED_EARLY = {"get_with_body"}


class Exchange:
    """A connection that brings some pieces: what its client and the engine have seen so far."""

    def __init__(self, house, engine):
        self._engine = engine
        self._before = len(engine.asked)
        self.tape = Tape(house.worker.plane)

    @property
    def asked(self):
        return self._engine.asked[self._before :]

    @property
    def seen(self):
        """All but dates and ids, which are the gateway's own."""
        # Whether 100 is sent depends on what of the body is here.
        answers = self.tape.output.replace(CONTINUE, b"").split(b"HTTP/1.1 ")[1:]
        return (
            [(answer[:3], answer.partition(b"\r\n\r\n")[2]) for answer in answers],
            self.tape.half_closed or self.tape.closing,
            [
                (one.line, [pair for pair in one.headers if pair[0] != "x-request-id"], one.body)
                for one in self.asked
            ],
        )

    async def play(self, *pieces):
        for piece in pieces:
            self.tape.feed(piece)
            await turn(2)

    async def until(self, condition, patience_s=2.0):
        """Wait for it, but not for long: what comes is compared anyway."""
        for _ in range(int(patience_s / 0.0005)):
            if condition():
                return
            await asyncio.sleep(0.0005)

    async def end(self):
        self.tape.drop()
        await turn(2)
        assert self.tape.lost


def _is_over(one, whole):
    return one.seen == whole or one.tape.half_closed


async def seen_whole(house, engine, data):
    one = Exchange(house, engine)
    await one.play(data)
    await asyncio.sleep(0.03)
    whole = one.seen
    await one.end()
    return whole


@pytest.mark.parametrize("part", range(4))
def test_the_corpus_cut_at_every_byte(play, script, part):
    """However a file comes, answers are the same, and so is what the engine gets."""
    engine = script([OK])

    async def scene(house):
        for name in sorted(FILES)[part::4]:
            data = FILES[name]
            whole = await seen_whole(house, engine, data)
            for at in range(1, len(data)):
                one = Exchange(house, engine)
                await one.play(data[:at], data[at:])
                await one.until(partial(_is_over, one, whole))
                await turn()
                if name in ANSWERED_EARLY and one.tape.half_closed:
                    assert one.seen[0] == whole[0][:1], (name, at)
                else:
                    assert one.seen == whole, (name, at)
                await one.end()

    play(scene, engine)


BODY = b'{"model":"sim","prompt":"' + b"p" * 40 + b'"}'
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
NAMES = ["X-A", "x_b", "Accept", "Connection", "Content-Length", "Transfer-Encoding", "Host", "TE"]
VALUES = [
    "a",
    "",
    " ",
    "chunked",
    "Chunked",
    "gzip",
    "close",
    "keep-alive",
    "x-a",
    "0",
    "+1",
    "1, 1",
]
LENGTHS = [str(len(BODY)), f"0{len(BODY)}", f" {len(BODY)} ", "5", "999", "-1"]
FIELDS = st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES + LENGTHS))
ODD_BYTES = st.sampled_from([b"\r", b"\n", b"\0", b" ", b"\t", b":", b"\x80", b"\r\n", b"0"])


@st.composite
def requests(draw):
    """A request as a client sends it, then perhaps bent a little."""
    chunked = draw(st.booleans())
    lines = ["POST /v1/completions HTTP/1.1", "Host: x"]
    lines += [f"{name}: {value}" for name, value in draw(st.lists(FIELDS, max_size=2))]
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(BODY)}"
    lines.insert(draw(st.integers(1, len(lines))), framing)
    data = "\r\n".join([*lines, "", ""]).encode() + (CHUNKS if chunked else BODY)
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.just(b"") | ODD_BYTES) + data[at + draw(st.integers(0, 1)) :]
    return data


def by_h11(data):
    """(method, target, payload), the reason of a refusal, or None for an incomplete request."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=65536)
    connection.receive_data(data)
    head, payload = None, b""
    try:
        while (event := connection.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                payload += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                return head.method, head.target, payload
    except h11.RemoteProtocolError as error:
        return str(error)
    return None


@settings(max_examples=400, derandomize=True, deadline=None, database=None)
@given(data=requests(), cut=st.integers(1, 400))
def judge(world, data, cut):
    house, engine, run = world
    told = by_h11(data)

    async def scene():
        one = Exchange(house, engine)
        await one.play(data[:cut], data[cut:])
        await one.until(
            lambda: one.tape.statuses or one.tape.closing, 0.02 if told is None else 2.0
        )
        await turn()
        await one.end()
        return one

    one = run(scene())
    if one.asked:
        # What goes on to the engine, h11 reads in the same way.
        assert isinstance(told, tuple), (data, told)
        method, path, _ = one.asked[0].line.encode().split(b" ")
        assert (method, path, one.asked[0].body) == told
        (length,) = one.asked[0].all("content-length")
        assert int(length) == len(told[2])
        assert not one.asked[0].all("transfer-encoding")
    elif told is not None:
        # What does not, has an answer. Where we are stricter than h11, the unit tests say why.
        assert one.tape.statuses or one.tape.closing, (data, told)
    assert len(one.asked) <= 1 + data.count(b"POST")
    for status in one.tape.statuses:
        assert status == 200 or 400 <= status < 500 or status in (501, 505), (data, status)


def test_h11_agrees_with_what_goes_on(open_house, script):
    engine = script([OK])
    with open_house(engine) as world:
        judge((world.house, engine, world.run))


@pytest.mark.parametrize("cut", [None, 1, 9, 17, -1])
def test_what_engines_send_live(play, script, cut):
    """A malformed response costs its own request alone, and the engine's connection."""

    async def scene(house):
        for name in ENGINES_SIDE:
            verdict = VERDICTS[name]
            steps[:] = split(name)
            wire = await house.dial(POSTED)
            answer = await wire.answer()
            where = (name, answer)
            if "fault" not in verdict:
                *_, said = verdict["ok"]
                assert (answer.status, answer.complete) == (int(said.split()[0]), True), where
                continue
            # Where the response had begun, the end of the connection says that it is broken.
            if answer.complete:
                assert (answer.status, answer.reason) == (502, "upstream_malformed"), where
            else:
                assert wire.eof, where
            # The next request is as good as ever, and goes another way.
            steps[:] = [OK]
            wire = await house.dial(POSTED)
            answer = await wire.answer()
            assert (answer.status, answer.body) == (200, b"{}"), where
            assert engine.asked[-1].connection != engine.asked[-2].connection, name

    def split(name):
        data = (CORPUS / f"{name}.http").read_bytes()
        if cut is None:
            return [data, "close"]
        return [data[:cut], 0.005, data[cut:], "close"]

    steps = []
    engine = script(lambda asked: list(steps))
    play(scene, engine, endpoints={0: {"keep_alive_s": 60.0}})


POSTED = (
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n" + b'{"model":"sim"}'
)
