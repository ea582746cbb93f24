"""What went wrong once: bounds, retries and rewrites in places where they were forgotten."""

import asyncio
import time

import pytest

from gateway._shared import Count
from router import DYING, State

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"


def ev(*events):
    out = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    for e in events:
        out += b"%x\r\n%s\r\n" % (len(e), e)
    return out


E = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'


def test_slow_reader_is_bounded(play, script):
    """Sends requests for the model list and never reads: memory grows without bound?"""

    async def scene(house):
        wire = await house.dial(limit=1)
        wire.reader._transport.pause_reading()
        line = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n" * 200
        for _ in range(300):
            if wire.writer.transport.is_closing() or house.count(Count.CLIENT_CLOSED):
                break
            wire.write(line)
            await asyncio.sleep(0.002)
        out = house.count(Count.CLIENT_BYTES_OUT)
        assert out < 8 << 20, out

    play(scene, script([OK]), models={f"m{i}" * 20: [0] for i in range(20)})


def test_slow_reader_of_engine_answers(play, script):
    big = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 200000\r\n\r\n"
        + b"x" * 200000
    )

    async def scene(house):
        wire = await house.dial(limit=1)
        wire.reader._transport.pause_reading()
        body = b'{"model":"sim"}'
        req = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (
            len(body),
            body,
        )
        for _ in range(200):
            if wire.writer.transport.is_closing() or house.count(Count.CLIENT_CLOSED):
                break
            wire.write(req)
            await asyncio.sleep(0.004)
        await asyncio.sleep(0.5)
        out = house.count(Count.CLIENT_BYTES_OUT)
        assert out < 10 << 20, out

    play(scene, script([big]))


def test_client_stall(play, script):
    big = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000000\r\n\r\n"
        + b"x" * 100000000
    )

    async def scene(house):
        wire = await house.dial(limit=1)
        wire.reader._transport.pause_reading()
        body = b'{"model":"sim"}'
        wire.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"
            % (len(body), body)
        )
        await house.until(lambda: house.count(Count.CANCEL_CLIENT_SLOW), 5)

    play(scene, script([big]), client_stall_s=0.5)


def test_trailing_after_503_not_reused(play, script):
    bad = b"HTTP/1.1 503 X\r\nContent-Length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\nContent-Len"

    def first(asked):
        return [bad] if asked.index == 0 else [OK]

    a, b = script(first), script([OK])

    async def scene(house):
        house.state(1, State.OPEN)
        wire = await house.dial()
        # make slot 0 chosen first
        house.state(1, State.READY, 0.01)
        r = await wire.ask(body={"model": "sim"})
        assert r.status == 200
        house.state(1, State.OPEN)
        r = await wire.ask(body={"model": "sim"})
        assert r.status == 200
        assert a.asked[1].connection != a.asked[0].connection

    play(scene, a, b)


def test_response_id_in_second_read(play, script):
    body = b'{"id":"resp_abc","object":"response"}'

    def answers(asked):
        return [
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            % len(body),
            0.05,
            body,
        ]

    async def scene(house):
        r = await house.ask("POST", "/v1/responses", {"model": "sim", "input": "x"})
        assert r.status == 200
        r = await house.ask("GET", "/v1/responses/resp_abc")
        assert r.status == 200, r

    play(scene, script(answers), script(answers))


def test_two_authorizations(play, script):
    e = script([OK])

    async def scene(house):
        await house.ask(body={"model": "sim"}, headers=[("Authorization", "Bearer mine")])
        assert e.asked[0].all("authorization") == ["Bearer engine"], e.asked[0].headers

    play(scene, e, endpoints={0: {"api_key": "engine"}})


def test_cors_once(play, script):
    e = script(
        [b"HTTP/1.1 200 OK\r\naccess-control-allow-origin: *\r\nContent-Length: 2\r\n\r\n{}"]
    )

    async def scene(house):
        r = await house.ask(body={"model": "sim"}, headers=[("Origin", "https://a")])
        assert r.get("access-control-allow-origin") == "https://a"

    play(scene, e, cors_origins=["https://a"])


def test_producing_after_dying_event(play, script):
    dying = (
        ev(
            b'data: {"error": {"message": "EngineCore encountered an issue.", "code": 500}}\n\n',
            b"data: [DONE]\n\n",
        )
        + b"0\r\n\r\n"
    )
    a = script([dying])
    b = script([ev(E), "hang"])

    async def scene(house):
        house.state(1, State.READY, 0.01)
        wire = await house.dial()
        wire.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 29\r\n\r\n"
            b'{"model":"sim","stream":true}'
        )
        r = await wire.answer(until=b"\n\n")
        assert (r.status, b"delta" in r.body) == (200, True)
        assert house.shared.table.load(1)["producing"] == 1
        assert house.count(Count.EVENTS) == 1

    play(scene, a, b)


def test_bad_utf8_previous_response(play, script):
    async def scene(house):
        r = await house.ask(
            "POST", "/v1/responses", b'{"model":"sim","previous_response_id":"\xff"}'
        )
        assert r.status in (400, 404), r

    play(scene, script([OK]))


def test_same_fresh_after_leaving(play, script):
    def answers(asked):
        return [OK] if asked.index == 0 else [0.3, "close"]

    e = script(answers)

    async def scene(house):
        wire = await house.dial()
        assert (await wire.ask(body={"model": "sim"})).status == 200
        t = asyncio.create_task(wire.ask(body={"model": "sim"}))
        await house.until(lambda: len(e.asked) == 2)
        house.tell(endpoints=[], models=[])
        r = await t
        assert r.status in (502, 503), r

    play(scene, e)


def test_405_names_methods(play, script):
    async def scene(house):
        r = await house.ask("GET", "/v1/chat/completions")
        assert (r.status, r.get("allow")) == (405, "POST")

    play(scene, script([OK]))


def test_204_without_te(play, script):
    async def scene(house):
        r = await house.ask(body={"model": "sim"})
        assert (r.status, r.get("transfer-encoding")) == (204, None)

    play(scene, script([b"HTTP/1.1 204 X\r\nTransfer-Encoding: chunked\r\n\r\n"]))


def test_huge_event_in_exact_is_let_through(play, script):
    big = b"data: " + b"x" * 300000
    e = script([ev(E, big), "hang"])

    async def scene(house):
        wire = await house.dial()
        wire.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 29\r\n\r\n"
            b'{"model":"sim","stream":true}'
        )
        await wire.answer(until=b"x" * 100000)

    play(scene, e, usage="exact")


def test_dot_segments(play, script):
    e = script([OK])

    async def scene(house):
        r = await house.ask(
            "POST",
            "/v1/audio/../../reset_prefix_cache",
            b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nsim\r\n--b--',
            headers=[("content-type", "multipart/form-data; boundary=b")],
        )
        assert r.status == 404, (r, [a.line for a in e.asked])

    play(scene, e)


def test_previous_response_and_split(play, script):
    body = b'{"id":"resp_abc"}'

    def answers(asked):
        return [
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            % (len(body), body)
        ]

    a, b = script(answers), script(answers)

    async def scene(house):
        await house.ask("POST", "/v1/responses", {"model": "al", "input": "x"})
        first = a if a.asked else b
        for _ in range(4):
            await house.ask(
                "POST",
                "/v1/responses",
                {"model": "al", "input": "x", "previous_response_id": "resp_abc"},
            )
        models = {x.json["model"] for x in first.asked}
        assert len(models) == 1, models

    play(scene, a, b, models={"m0": [0], "m1": [1]}, aliases={"al": {"m0": 1, "m1": 1}})


@pytest.mark.parametrize(
    "body",
    [b"--x" * (10 << 20), b"{" + b'"\\u006d":1,' * (2 << 20) + b'"model":"sim"}'],
    ids=["multipart", "escapes"],
)
def test_expensive_bodies(play, script, body):

    async def scene(house):
        ct = "multipart/form-data; boundary=x" if body[:1] == b"-" else "application/json"
        path = "/v1/audio/transcriptions" if body[:1] == b"-" else "/v1/completions"
        ticks = []

        async def tick():
            last = time.monotonic()
            while True:
                await asyncio.sleep(0.005)
                now = time.monotonic()
                ticks.append(now - last)
                last = now

        task = asyncio.create_task(tick())
        r = await house.ask("POST", path, body, headers=[("content-type", ct)])
        task.cancel()
        assert r.status in (200, 400)
        assert max(ticks) < 3.0

    play(scene, script([OK]), body_bytes=64 << 20)


@pytest.mark.parametrize("pipelined", [True, False])
def test_bytes_behind_the_last_request_do_not_cost_its_answer(play, script, pipelined):
    """Closed with unread bytes, a socket resets the connection, and what the client has not read
    of the answer is lost."""
    body = b"x" * 300_000
    engine = script([b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body])
    ask = (
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 15\r\n"
        b'\r\n{"model":"sim"}'
    )

    async def scene(house):
        wire = await house.dial(ask + ask if pipelined else ask, limit=1024)
        await house.until(lambda: house.count(Count.COMPLETED))
        wire.write(ask)
        await asyncio.sleep(0.05)
        answer = await wire.answer()
        assert answer.complete
        assert answer.body == body
        assert house.count(Count.ACCEPTED) == 1

    play(scene, engine)


DYING_ANSWER = b"cannot schedule new futures after shutdown"
DIES = b"HTTP/1.1 500 X\r\nContent-Length: %d\r\n\r\n%s" % (len(DYING_ANSWER), DYING_ANSWER)


def test_each_dying_answer_adds_to_the_failures_in_a_row(play, script):
    """A trial that ends so must be seen as lost: the count has to grow again."""
    dying, well = script(lambda asked: [DIES]), script(lambda asked: [OK])

    async def scene(house):
        while len(dying.asked) < 2:
            assert (await house.ask(body={"model": "sim"})).status == 200
        assert house.shared.table.load(0)["failures_in_row"] == 2 * DYING

    play(scene, dying, well, endpoints={slot: {"kind": "vllm"} for slot in range(2)})


def test_an_endpoint_that_cannot_be_used_takes_no_requests_from_the_others(play, script):
    """Its CA file has gone since the control process looked."""

    async def scene(house):
        for _ in range(4):
            assert (await house.ask(body={"model": "sim"})).status == 200

    bad = {"tls": True, "ca_file": "/nonexistent"}
    play(scene, script([OK]), script(lambda asked: [OK]), endpoints={0: bad}, log_errors=1)


def test_bodies_that_come_at_once_count_too(play, script):
    ask = {"model": "sim", "prompt": "x" * 1000}

    async def scene(house):
        wire = await house.dial()
        wire.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
            + b'{"model":"sim","prompt":"%s"}' % (b"x" * 973)
        )
        await house.until(lambda: house.count(Count.DISPATCHED))
        assert house.count(Count.BUFFERED_BYTES) == 1000
        refused = await house.ask(path="/v1/completions", body=ask)
        assert refused.status == 503
        assert refused.reason == "overloaded"
        wire.close()
        await house.until(lambda: house.count(Count.BUFFERED_BYTES) == 0)
        other = await house.ask(path="/v1/completions", body=ask)
        assert other.status == 200

    engine = script(lambda asked: ["hang"] if asked.index == 0 else [OK])
    play(scene, engine, buffered_bytes=1500)


def test_a_kept_connection_that_is_gone_is_no_failure_of_its_engine(play, script):
    engine = script(lambda asked: ["close"] if asked.index in (1, 3) else [OK])

    async def scene(house):
        for _ in range(4):
            assert (await house.ask(body={"model": "sim"})).status == 200
        assert house.count(Count.RETRY_REUSED) == 2
        assert house.shared.table.load(0)["failures_in_row"] == 0

    play(scene, engine)


def test_events_that_nobody_saw_are_not_counted(play, script):
    head = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    given_up = b'data: {"choices":[{"finish_reason":"abort"}]}\n\ndata: [DONE]\n\n'
    whole = b'data: {"choices":[{"text":"a"}]}\n\ndata: [DONE]\n\n'

    def stream(events):
        return [head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(events), events)]

    async def scene(house):
        house.state(1, State.READY, 0.01)
        answer = await house.ask(body={"model": "sim", "stream": True})
        assert answer.body == whole
        assert house.count(Count.TURNED_AWAY) == 1
        assert house.count(Count.EVENTS) == 1

    engines = script(lambda asked: stream(given_up)), script(lambda asked: stream(whole))
    play(scene, *engines, endpoints={slot: {"kind": "vllm"} for slot in range(2)})


def test_a_key_sees_the_cards_of_its_own_models_alone(play, script):
    async def scene(house):
        for name, status in (("sim", 200), ("other", 403), ("unknown", 403)):
            answer = await house.ask(
                "GET", f"/v1/models/{name}", headers=[("authorization", "Bearer a")]
            )
            assert answer.status == status, name

    play(scene, script([]), models={"sim": [0], "other": [0]}, keys={"a": {"models": ["sim"]}})
