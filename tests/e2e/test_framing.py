"""The corpus of framing tricks against the live front, and every way to send a request badly."""

import asyncio
import itertools
import tomllib
from pathlib import Path
from typing import Any

import pytest

from gateway._shared import Count

CORPUS = Path(__file__).parents[1] / "gateway/http/corpus"
VERDICTS: dict[str, dict[str, Any]] = {
    name: verdict
    for name, verdict in tomllib.loads((CORPUS / "verdicts.toml").read_text("ascii")).items()
    if not name.startswith("response_")
}
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
BODY = b'{"model":"sim"}'
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"


def split(data: bytes, at: list[int]) -> list[bytes]:
    return [data[a:b] for a, b in itertools.pairwise([0, *at, len(data)]) if a < b]


async def send(house, pieces) -> tuple[list[int], bool]:
    """The statuses that come back, and whether the gateway closed before we did."""
    wire = await house.dial()
    for piece in pieces:
        wire.write(piece)
        if len(pieces) > 1:
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.003)
    statuses = []
    wire.writer.write_eof()
    while True:
        answer = await wire.answer("GET")
        if not answer.status:
            return statuses, wire.eof
        statuses.append(answer.status)
        if not answer.complete:
            return statuses, wire.eof


def test_the_corpus_live(play, script):
    """A refused file gets its status, once, and nothing of that message reaches an engine."""
    engine = script([OK])

    async def scene(house):
        for name, verdict in VERDICTS.items():
            data = (CORPUS / f"{name}.http").read_bytes()
            middle = len(data) // 2
            for cuts in ([], [middle], [1, middle, len(data) - 1]):
                before = len(engine.asked), house.count(Count.REFUSED)
                statuses, _ = await send(house, split(data, cuts))
                if "fault" not in verdict:
                    continue
                where = (name, cuts, statuses)
                assert statuses, where
                assert statuses[-1] == verdict["status"], where
                assert len(statuses) <= len(verdict.get("ok", ())) + 1, where
                accepted = sum(line.startswith("POST") for line in verdict.get("ok", ()))
                assert len(engine.asked) - before[0] <= accepted, where
                assert house.count(Count.REFUSED) > before[1], where

    play(scene, engine)


UPLOADS = {
    "length": POST + b"Content-Length: 15\r\n\r\n" + BODY,
    "chunked": POST
    + b"Transfer-Encoding: chunked\r\n\r\n5\r\n"
    + BODY[:5]
    + b"\r\na\r\n"
    + BODY[5:]
    + b"\r\n0\r\n\r\n",
    "trailers": POST + b"Transfer-Encoding: chunked\r\n\r\nf\r\n" + BODY + b"\r\n0\r\nX: y\r\n\r\n",
    "HTTP/1.0": POST.replace(b"1.1", b"1.0") + b"Content-Length: 15\r\n\r\n" + BODY,
    "HTTP/1.0 kept": POST.replace(b"1.1", b"1.0")
    + b"Connection: keep-alive\r\nContent-Length: 15\r\n\r\n"
    + BODY,
    "close": POST + b"Connection: close\r\nContent-Length: 15\r\n\r\n" + BODY,
}


@pytest.mark.parametrize("name", UPLOADS)
def test_uploads_cut_at_every_byte(play, script, name):
    engine = script([OK])
    data = UPLOADS[name]

    async def scene(house):
        for at in range(1, len(data)):
            wire = await house.dial(data[:at])
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            wire.write(data[at:])
            answer = await wire.answer()
            assert (answer.status, answer.body, answer.complete) == (200, b"{}", True)
            closes = name in ("HTTP/1.0", "close")
            assert (answer.get("connection") == "close") == closes
            if closes:
                assert await wire.is_closed()
            elif name == "HTTP/1.0 kept":
                assert answer["connection"] == "keep-alive"
            wire.close()

    play(scene, engine)
    assert {asked.body for asked in engine.asked} == {BODY}
    assert len(engine.asked) == len(data) - 1


def test_pipelined_requests_are_answered_in_order(play, script):
    def answers(asked):
        return [b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n", asked.json["n"].encode()]

    async def scene(house):
        wire = await house.dial()
        for n in "0123456789":
            body = b'{"model":"sim","n":"%s"}' % n.encode()
            wire.write(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            wire.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        for n in "0123456789":
            assert (await wire.answer()).body == n.encode()
            assert (await wire.answer()).json == {"status": "ok"}

    play(scene, script(answers))


def test_too_much_sent_ahead_cancels(play, script):
    engine = script(["hang"])

    async def scene(house):
        wire = await house.dial(UPLOADS["length"])
        await house.until(lambda: engine.asked)
        wire.write(b"x" * 40_000)
        assert await wire.is_closed()
        assert house.count(Count.CANCEL_PIPELINE) == 1
        await house.until(lambda: engine.closed)

    play(scene, engine)


@pytest.mark.parametrize("half_close", [False, True])
def test_half_close(play, script, half_close):
    """Off: a FIN means gone, and frees the engine. On: the answer still comes."""
    engine = script([0.1, OK])

    async def scene(house):
        wire = await house.dial(UPLOADS["length"])
        await house.until(lambda: engine.asked)
        wire.writer.write_eof()
        answer = await wire.answer()
        assert answer.complete == half_close
        assert house.count(Count.CANCEL_CLIENT_GONE) == (not half_close)
        assert await wire.is_closed()

    play(scene, engine, client_half_close=half_close)


def test_expect_continue(play, script):
    async def scene(house):
        wire = await house.dial(POST + b"Expect: 100-continue\r\nContent-Length: 15\r\n\r\n")
        assert (await asyncio.wait_for(wire.reader.read(100), 5)).startswith(b"HTTP/1.1 100 ")
        wire.write(BODY)
        assert (await wire.answer()).status == 200
        wire = await house.dial(
            POST.replace(b"completions", b"none")
            + b"Expect: 100-continue\r\nContent-Length: 15\r\n\r\n"
        )
        answer = await wire.answer()
        assert (answer.status, answer.informational) == (404, [])

    engine = script([OK])
    play(scene, engine)
    assert not engine.asked[0].all("expect")


def test_head_requests(play, script):
    async def scene(house):
        wire = await house.dial()
        for path in ("/health", "/v1/models", "/v1/models/sim", "/v1/models/none"):
            got = await wire.ask("GET", path)
            head = await wire.ask("HEAD", path)
            assert (head.status, head.body) == (got.status, b"")
            assert head["content-length"] == got["content-length"] == str(len(got.body))

    play(scene, script([]))


LATE = {
    "no head": (b"", None, None),
    "half a head": (POST, 408, "head_timeout"),
    "no body": (POST + b"Content-Length: 15\r\n\r\n", 408, "body_timeout"),
    "half a body": (POST + b"Content-Length: 15\r\n\r\n{", 408, "body_timeout"),
    "half a chunk": (POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", 408, "body_timeout"),
}


@pytest.mark.parametrize("name", LATE)
def test_slow_clients_are_let_go(play, script, name):
    data, status, reason = LATE[name]
    engine = script([])

    async def scene(house):
        wire = await house.dial(data)
        answer = await wire.answer()
        assert (answer.status or None, answer.reason if status else None) == (status, reason)
        assert await wire.is_closed()

    play(scene, engine, head_s=0.2, body_idle_s=0.2)
    assert engine.opened == 0


def test_a_dripping_head_and_body(play, script):
    """Each byte is progress for nobody: the head's time and the body's rate are bounded."""

    async def scene(house):
        for start in (b"", POST + b"Content-Length: 100000\r\n\r\n"):
            wire = await house.dial(start or b"P")
            drip = asyncio.create_task(_drip(wire))
            assert (await wire.answer()).status == 408
            drip.cancel()

    play(scene, script([]), head_s=0.3, body_idle_s=0.3)


async def _drip(wire) -> None:
    while True:
        await asyncio.sleep(0.02)
        wire.write(b"x")


def test_memory_for_bodies_is_bounded(play, script):
    """At the bound nobody is read any more; who waits too long is told so; then it is free."""

    async def scene(house):
        big = POST + b"Content-Length: 300000\r\n\r\n" + b" " * 200_000
        wires = [await house.dial(big) for _ in range(3)]
        await house.until(lambda: house.count(Count.BUFFERED_BYTES) > 100_000)
        answers = await asyncio.gather(*(wire.answer() for wire in wires))
        assert {answer.status for answer in answers} <= {408, 503}
        assert "overloaded" in {answer.reason for answer in answers}
        await house.until(lambda: house.count(Count.BUFFERED_BYTES) == 0)
        assert (await house.ask(body=BODY)).status == 200

    play(scene, script([OK]), buffered_bytes=100_000, body_idle_s=0.4)
