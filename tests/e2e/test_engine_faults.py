"""Engines that answer badly: what the client gets, what is asked again, which circuit suffers."""

import asyncio
import socket

import pytest

from gateway._shared import Count
from gateway.messages import Condemn
from router import State

OK = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{"ok":true}'
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DYING = b"cannot schedule new futures after shutdown"


def status(code: int, body: bytes = b"{}") -> bytes:
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (code, len(body), body)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


EVENT = chunk(b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n')
ERRORS = {
    "/v1/chat/completions": (b'data: {"error":', b"data: [DONE]"),
    "/v1/completions": (b'data: {"error":', b"data: [DONE]"),
    "/v1/responses": (b"event: error", b"event: error"),
    "/v1/messages": (b"event: error", b"event: error"),
}

# What the first engine answers -> what the client gets when a second engine is well: its status,
# the reason, and how the first dispatch is accounted for.
BEFORE_THE_FIRST_BYTE = {
    "500": ([status(500)], 500, None, "ANSWERED"),
    "502": ([status(502)], 200, None, "TURNED_AWAY"),
    "503": ([status(503)], 200, None, "TURNED_AWAY"),
    "429": ([status(429)], 200, None, "TURNED_AWAY"),
    "404": ([status(404)], 404, None, "ANSWERED"),
    "dying": ([status(500, DYING)], 200, None, "TURNED_AWAY"),
    "dying event": (
        [SSE, chunk(b'data: {"error":{"message":"EngineCore encountered an issue."}}\n\n')],
        200,
        None,
        "TURNED_AWAY",
    ),
    "closed": (["close"], 200, None, "LOST"),
    "reset": (["reset"], 200, None, "LOST"),
    "half a head": ([b"HTTP/1.1 200 OK\r\nX: ", "close"], 200, None, "LOST"),
    "head alone, then closed": ([SSE, "close"], 200, None, "LOST"),
    "half an event": ([SSE, b"30\r\ndata: ", "close"], 200, None, "LOST"),
    "silence": (["hang"], 504, "first_byte_timeout", "TIMED_OUT"),
}


@pytest.mark.parametrize("name", BEFORE_THE_FIRST_BYTE)
def test_before_the_first_byte(play, script, name):
    steps, wanted, reason, outcome = BEFORE_THE_FIRST_BYTE[name]
    bad, good = script(steps), script([OK])

    async def scene(house):
        house.state(1, State.READY, 0.01)  # the bad one is asked first
        answer = await house.ask(body={"model": "sim"})
        assert (answer.status, answer.reason, answer.complete) == (wanted, reason, True)
        assert house.count(Count[outcome]) >= 1
        assert len(bad.asked) == 1
        if wanted == 200:
            assert answer.json == {"ok": True}
            assert len(good.asked) == 1
        if "dying" in name:
            assert house.shared.table.load(0)["failures_in_row"] >= 1000

    play(scene, bad, good, first_byte_s=0.3, event_s=0.3)


MALFORMED = {
    "no status line": b"hello\r\n\r\n",
    "bare line feed": b"HTTP/1.1 200 OK\nContent-Length: 0\r\n\r\n",
    "length and chunked": SSE[:-2] + b"Content-Length: 3\r\n\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
    "gzip coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    "bad chunk": SSE + b"zz\r\n",
    "extension": SSE + b"5;a=b\r\nhello\r\n",
    "endless head": b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 60_000,
    "many fields": b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n",
    "101": b"HTTP/1.1 101 Switching\r\n\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_answers_are_502_and_never_asked_again(play, script, name):
    bad, good = script([MALFORMED[name], "hang"]), script([OK])

    async def scene(house):
        house.state(1, State.READY, 0.01)
        answer = await house.ask(body={"model": "sim"})
        assert (answer.status, answer.reason) == (502, "upstream_malformed")
        assert (house.count(Count.MALFORMED), len(good.asked)) == (1, 0)
        await house.until(lambda: bad.closed == 1)

    play(scene, bad, good)


def test_bytes_behind_a_response_drop_the_connection(play, script):
    bad = script([OK + OK])

    async def scene(house):
        wire = await house.dial()
        for _ in range(3):
            answer = await wire.ask(body={"model": "sim"})
            assert (answer.status, answer.body, answer.complete) == (200, b'{"ok":true}', True)
        assert bad.opened == 3

    play(scene, bad)


def test_bytes_nobody_asked_for_drop_an_idle_connection(play, script):
    bad = script([OK, 0.02, OK])

    async def scene(house):
        wire = await house.dial()
        assert (await wire.ask(body={"model": "sim"})).status == 200
        await house.until(lambda: house.count(Count.UPSTREAM_CLOSED) == 1)
        assert (await wire.ask(body={"model": "sim"})).status == 200
        assert bad.opened == 2

    play(scene, bad)


@pytest.mark.parametrize("path", ERRORS)
@pytest.mark.parametrize("end", ["close", "reset", "bad chunk", "silence", "half", "condemned"])
def test_in_mid_stream(play, script, path, end):
    """Whole events, then the dialect's own error, then a proper end; nothing is asked again."""
    tails = {
        "bad chunk": [b"zz\r\n"],
        "silence": ["hang"],
        "half": [b"50\r\ndata: half", "close"],
        "condemned": ["hang"],
    }
    bad, good = script([SSE + EVENT, 0.05, *tails.get(end, [end])]), script([OK])

    async def scene(house):
        house.state(1, State.READY, 0.01)
        wire = await house.dial()
        body = b'{"model":"sim","stream":true}'
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        wire.write(head.encode() + body)
        if end == "condemned":
            await house.until(lambda: house.count(Count.EVENTS))
            house.send(Condemn(0, 1, "it hangs", hung=True))
        answer = await wire.answer()
        assert (answer.status, answer.complete, answer.broken) == (200, True, "")
        first, last = ERRORS[path]
        assert answer.events[0] + b"\n\n" in EVENT
        assert answer.events[1].startswith(first)
        assert answer.events[-1].startswith(last)
        assert (b"[DONE]" in answer.body) == (b"[DONE]" in last)
        assert b"half" not in answer.body
        assert len(good.asked) == 0
        assert house.count(Count.FAILED) == 1
        # The client's connection is as good as new.
        house.state(0, State.OPEN)
        assert (await wire.ask(body={"model": "sim"})).json == {"ok": True}

    play(scene, bad, good, event_s=0.4)


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{",
        SSE.replace(b"text/event-stream", b"application/json") + chunk(b"{"),
        SSE.replace(b"Transfer-Encoding: chunked", b"Content-Length: 99") + b"data: x\n\n",
    ],
)
def test_what_takes_no_event_is_broken_off(play, script, head):
    async def scene(house):
        answer = await house.ask(body={"model": "sim"})
        assert (answer.status, answer.complete) == (200, False)

    play(scene, script([head, 0.05, "close"]))


def test_a_stream_ended_by_close_without_its_mark_was_cut(play, script):
    head = SSE.replace(b"Transfer-Encoding: chunked\r\n", b"")

    def answers(asked):
        events = [b"data: a\n\n", b"data: [DONE]\n\n"][: 1 + asked.index]
        return [head, *events, "close"]

    async def scene(house):
        answer = await house.ask(body={"model": "sim"})
        assert b"upstream_lost" in answer.body
        answer = await house.ask(body={"model": "sim"})
        assert (answer.body, answer.complete) == (b"data: a\n\ndata: [DONE]\n\n", True)

    play(scene, script(answers))


def test_a_kept_connection_that_is_gone_is_replaced_once(play, script):
    def answers(asked):
        return ["close"] if asked.index == 1 else [OK]

    engine = script(answers)

    async def scene(house):
        wire = await house.dial()
        for _ in range(2):
            assert (await wire.ask(body={"model": "sim"})).status == 200
        assert house.count(Count.RETRY_REUSED) == 1
        assert [asked.connection for asked in engine.asked] == [0, 0, 1]

    play(scene, engine)


def test_a_request_that_kills_is_not_passed_round(play, script):
    """Two engines lost it: the third is not risked."""
    engines = [script(["reset"]) for _ in range(4)]

    async def scene(house):
        answer = await house.ask(body={"model": "sim"})
        assert (answer.status, answer.reason) == (502, "upstream_lost")
        assert sum(len(engine.asked) for engine in engines) == 2

    play(scene, *engines)


def test_the_budget_bounds_what_is_asked_again(play, script):
    engines = [script([status(503)]) for _ in range(2)]

    async def scene(house):
        for _ in range(20):
            assert (await house.ask(body={"model": "sim"})).status == 503
        assert house.count(Count.RETRY_STATUS) == 5
        assert house.count(Count.RETRY_REFUSED_BY_BUDGET) == 15
        assert sum(len(engine.asked) for engine in engines) == 25

    play(scene, *engines, retry_share=0.0, retry_floor=5)


def test_failures_in_a_row_are_there_for_the_circuit(play, script):
    engine = script(["reset"])

    async def scene(house):
        for _ in range(6):
            await house.ask(body={"model": "sim"})
        assert house.shared.table.load(0)["failures_in_row"] == 6

    play(scene, engine)


class Deaf:
    """A port whose backlog is full: a SYN to it is never answered."""

    def __init__(self) -> None:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0)
        self.port = self._listener.getsockname()[1]
        self._fill = []
        for _ in range(4):
            sock = socket.socket()
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", self.port))
            self._fill.append(sock)

    async def stop(self) -> None:
        for sock in (*self._fill, self._listener):
            sock.close()


class Closed:
    """A port at which nobody listens."""

    def __init__(self) -> None:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.port = sock.getsockname()[1]

    async def stop(self) -> None:
        pass


@pytest.mark.parametrize("kind", [Deaf, Closed])
def test_dials_that_fail_go_elsewhere(play, script, kind):
    good = script([OK])

    async def scene(house):
        house.state(1, State.READY, 0.01)
        assert (await house.ask(body={"model": "sim"})).status == 200
        assert (house.count(Count.DIAL_FAILED), house.count(Count.RETRY_DIAL)) == (1, 1)
        assert house.shared.table.load(0)["dials_in_row"] == 1

    play(scene, kind(), good, connect_s=0.3)


def test_no_engine_accepts(play):
    async def scene(house):
        answer = await house.ask(body={"model": "sim"})
        assert (answer.status, answer.reason) == (503, "connect_failed")
        assert answer["retry-after"]

    play(scene, Closed(), Closed())


def test_a_client_that_leaves_frees_the_engine(play, script):
    """While dialling, waiting, and in the middle of a stream."""
    hanging = script(["hang"])
    streaming = script([SSE + EVENT, "hang"])

    async def scene(house):
        for slot in range(3):
            house.tell(models=[type(house.fleet.models[0])("sim", 0, [slot])])
            await asyncio.sleep(0.01)
            wire = await house.dial()
            body = b'{"model":"sim"}'
            wire.write(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n" + body
            )
            await house.until(lambda slot=slot: house.shared.table.load(slot)["in_flight"])
            if slot == 2:
                await wire.answer(until=b"delta")
            elif slot == 1:
                await house.until(lambda: hanging.asked)
            wire.reset()
            await house.until(lambda slot=slot: not house.shared.table.load(slot)["in_flight"])
        await house.until(lambda: hanging.closed and streaming.closed)
        assert house.count(Count.CANCEL_CLIENT_GONE) == 3
        assert house.count(Count.ABANDONED) == 3

    play(scene, Deaf(), hanging, streaming, connect_s=5.0)


def test_condemned_before_the_first_byte_goes_elsewhere(play, script):
    for hung in (True, False):
        bad, good = script(["hang"]), script([OK])

        async def scene(house, hung=hung, bad=bad):
            house.state(1, State.READY, 0.01)
            asking = asyncio.create_task(house.ask(body={"model": "sim"}))
            await house.until(lambda: bad.asked)
            house.state(0, State.OPEN)
            house.send(Condemn(0, 1, "gone", hung=hung))
            answer = await asking
            assert (answer.status, answer.json) == (200, {"ok": True})
            assert house.count(Count.CONDEMNED) == house.count(Count.RETRY_CONDEMNED) == 1

        play(scene, bad, good)


def test_an_engine_without_listener_may_finish_its_streams(play, script):
    talks = script([SSE, *[EVENT, 0.1] * 8, chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"])
    silent = script([SSE, EVENT, "hang"])

    async def scene(house):
        wires = []
        for slot in range(2):
            house.state(1 - slot, State.OPEN)
            house.state(slot, State.READY)
            wire = await house.dial()
            wire.write(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 15\r\n\r\n"
                b'{"model":"sim"}'
            )
            await house.until(lambda slot=slot: house.shared.table.load(slot)["producing"])
            wires.append(wire)
        for slot in range(2):
            house.send(Condemn(slot, 1, "its listener is gone", hung=False))
        whole, cut = [await wire.answer() for wire in wires]
        assert whole.body.count(b"delta") == 8
        assert b"endpoint_lost" not in whole.body
        assert b"endpoint_lost" in cut.body
        assert cut.complete

    play(scene, talks, silent, dead_silence_s=0.4)


CUT_SHORT = b'{"choices":[{"text":"so far","finish_reason":"abort"}]}'
QUOTED = b'{"choices":[{"text":"\\"finish_reason\\":\\"abort\\"","finish_reason":"stop"}]}'


@pytest.mark.parametrize(
    ("body", "kind", "again"),
    [(CUT_SHORT, "vllm", True), (QUOTED, "vllm", False), (CUT_SHORT, "openai", False)],
)
def test_an_answer_that_its_engine_gave_up_is_asked_elsewhere(play, script, body, kind, again):
    """A vLLM that is told to go answers 200 with what it has so far."""
    first = script([b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), 0.01, body])
    second = script([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"])

    async def scene(house):
        bodies = {(await house.ask(body={"model": "sim"})).body for _ in range(2)}
        assert bodies == ({b"{}"} if again else {body, b"{}"})
        # Where there is no other, what it has is better than nothing.
        house.state(1, State.OPEN)
        assert (await house.ask(body={"model": "sim"})).body == body

    kinds = {slot: {"kind": kind} for slot in range(2)}
    play(scene, first, second, endpoints=kinds)


GIVEN_UP = b'data: {"choices":[{"text":"","finish_reason":"abort"}]}\n\ndata: [DONE]\n\n'
WORD = b'data: {"choices":[{"text":"a","finish_reason":null}]}\n\n'


def stream(*pieces: bytes) -> list[bytes | float]:
    """What an engine writes for a stream whose events come one after the other."""
    written: list[bytes | float] = [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    ]
    for piece in pieces:
        written += [b"%x\r\n%b\r\n" % (len(piece), piece), 0.02]
    return [*written, b"0\r\n\r\n"]


@pytest.mark.parametrize(("said_before", "again"), [((), True), ((WORD,), False)])
def test_a_stream_that_its_engine_gave_up_is_asked_elsewhere_while_unseen(
    play, script, said_before, again
):
    """Later, the abort is the engine's own word to the client, and passed on."""
    first = script(stream(*said_before, GIVEN_UP))
    second = script(stream(WORD, b"data: [DONE]\n\n"))

    async def scene(house):
        bodies = [(await house.ask(body={"model": "sim", "stream": True})).body for _ in range(2)]
        assert sum(b'"abort"' in body for body in bodies) == (not again)
        assert all(body.count(b"[DONE]") == 1 for body in bodies)

    play(scene, first, second, endpoints={slot: {"kind": "vllm"} for slot in range(2)})
