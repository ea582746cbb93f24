"""Every fault on command, seen from the client's side of a socket."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from engines.sim import Fault, SimConfig, SimEngine

STREAM = {"prompt": "The quick brown", "max_tokens": 5, "stream": True}
WHOLE = {"prompt": "The quick brown", "max_tokens": 5}


def request(body: Any, path: str = "/v1/completions") -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(data)}\r\n\r\n".encode() + data


async def drain(dial: Any, engine: SimEngine, body: Any) -> tuple[bytes, bool]:
    """What comes until the connection ends, and whether it ended with a reset."""
    reader, writer = await dial(engine, request(body))
    got = b""
    try:
        while data := await reader.read(65536):
            got += data
    except ConnectionResetError:
        return got, True
    finally:
        writer.close()
    return got, False


async def silent(reader: asyncio.StreamReader) -> bool:
    try:
        await asyncio.wait_for(reader.read(1), 0.1)
    except TimeoutError:
        return True
    return False


@pytest.mark.parametrize("status", [500, 503, 429])
def test_error_statuses_for_so_many_requests(sim, status):
    async def scenario(engine, client):
        engine.fault(str(status), count=2)
        codes = [(await client.post("/v1/completions", json=WHOLE)).status_code for _ in range(3)]
        assert codes == [status, status, 200]
        assert (await client.get("/health")).status_code == 200
        assert engine.state()["requests_refused"] == 2

    sim(scenario)


def test_429_says_when_to_come_back(sim):
    async def scenario(engine, client):
        engine.fault("429")
        response = await client.post("/v1/completions", json=WHOLE)
        assert response.headers["retry-after"] == "1"
        assert response.json()["error"]["code"] == 429

    sim(scenario)


def test_refuse_closes_the_listener_and_keeps_what_is_open(sim, dial):
    async def scenario(engine, client):
        await client.get("/health")
        engine.fault("refuse")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", engine.port)
        assert (await client.get("/health")).status_code == 200
        engine.heal()
        await dial(engine)

    sim(scenario)


def test_a_fault_may_heal_by_itself(sim, until):
    async def scenario(engine, client):
        engine.fault("refuse", seconds=0.05)
        await until(lambda: not engine.state()["faults"])
        assert (await client.get("/health")).status_code == 200

    sim(scenario)


def test_freeze_stops_the_core_and_nothing_else(sim, dial, until):
    async def scenario(engine, client):
        _, writer = await dial(engine, request({**STREAM, "max_tokens": 4000}))
        await until(lambda: engine.state()["output_tokens"] > 2)
        engine.fault("freeze")
        page = (await client.get("/metrics")).text
        tokens = engine.state()["output_tokens"]
        late, late_writer = await dial(engine, request(STREAM))
        assert (await late.readline()) == b"HTTP/1.1 200 OK\r\n"
        await late.readuntil(b"\r\n\r\n")
        assert await silent(late)
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/metrics")).text == page
        assert 'num_requests_running{engine="0",model_name="sim"} 1.0' in page
        engine.heal()
        await until(lambda: engine.state()["output_tokens"] > tokens)
        assert (await late.read(1)) != b""
        writer.close()
        late_writer.close()

    sim(scenario, profile="demo", time_scale=0.2)


def test_delay_comes_before_the_engine_and_ends_with_the_client(sim, dial, until):
    async def scenario(engine, client):
        engine.fault("delay", seconds=0.05, count=1)
        assert (await client.post("/v1/completions", json=WHOLE)).status_code == 200
        engine.fault("delay", seconds=30)
        _, writer = await dial(engine, request(WHOLE))
        await until(lambda: engine.state()["requests_seen"] == 2)
        assert engine.state()["requests_started"] == 1
        writer.close()
        await until(lambda: engine.state()["requests_aborted"] == 1)

    sim(scenario)


def test_hang_never_answers(sim, dial, until):
    async def scenario(engine, client):
        engine.fault("hang")
        reader, writer = await dial(engine, request(WHOLE))
        assert await silent(reader)
        writer.close()
        await until(lambda: engine.state()["requests_aborted"] == 1)

    sim(scenario)


def test_stop_reading_takes_no_more_than_buffers_hold(sim, dial, until):
    async def scenario(engine, client):
        engine.fault("stop_reading", count=1)
        reader, writer = await dial(engine, request({**WHOLE, "user": "x" * 30_000_000}))
        assert await silent(reader)
        assert engine.state()["bytes_in"] < 1_000_000
        assert engine.state()["requests_unread"] == 1
        assert (await client.post("/v1/completions", json=WHOLE)).status_code == 200
        engine.heal()
        with pytest.raises((ConnectionResetError, BrokenPipeError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.transport.abort()

    sim(scenario)


@pytest.mark.parametrize("body", [STREAM, WHOLE])
@pytest.mark.parametrize("after_events", [-1, 0, 2])
@pytest.mark.parametrize("kind", ["reset", "early_close", "clean_close", "bad_chunk"])
def test_breaks_in_the_middle(sim, dial, kind, after_events, body):
    async def scenario(engine, client):
        engine.fault(kind, after_events=after_events, count=1)
        got, was_reset = await drain(dial, engine, body)
        assert was_reset == (kind == "reset")
        if after_events < 0 and kind != "bad_chunk":
            assert got == b""
        elif after_events >= 0:
            assert got.startswith(b"HTTP/1.1 200 OK\r\n")
            whole_events = got.count(b"}\n\n\r\n")
            if body is STREAM and kind != "bad_chunk":
                assert whole_events == after_events
        assert not got.endswith(b"\r\n0\r\n\r\n")
        if kind == "bad_chunk":
            assert b"xyz\r\n" in got
        assert engine.state()["requests_failed"] == 1
        assert (await client.post("/v1/completions", json=WHOLE)).status_code == 200

    sim(scenario)


def test_stall_goes_silent_and_keeps_the_connection(sim, dial, until):
    async def scenario(engine, client):
        engine.fault("stall", after_events=1)
        reader, writer = await dial(engine, request(STREAM))
        await reader.readuntil(b"}\n\n\r\n")
        assert await silent(reader)
        writer.close()
        await until(lambda: engine.state()["requests_failed"] == 1)

    sim(scenario)


@pytest.mark.parametrize("body", [STREAM, WHOLE])
def test_both_framings(sim, dial, body):
    async def scenario(engine, client):
        engine.fault("cl_te")
        reader, writer = await dial(engine, request(body))
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"\r\ncontent-length: " in head
        assert b"\r\ntransfer-encoding: chunked\r\n" in head
        writer.close()

    sim(scenario)


@pytest.mark.parametrize("body", [STREAM, WHOLE])
def test_a_second_response_nobody_asked_for(sim, dial, body):
    async def scenario(engine, client):
        engine.fault("two_responses", count=1)
        reader, writer = await dial(engine, request(body))
        for _ in range(2):
            assert (await reader.readuntil(b"\r\n")) == b"HTTP/1.1 200 OK\r\n"
            await reader.readuntil(b"\r\n\r\n")
            if body is STREAM:
                await reader.readuntil(b"\r\n0\r\n\r\n")
                body_seen = await reader.readuntil(b"\r\n")
                assert body_seen == b"HTTP/1.1 200 OK\r\n"
                break
            await reader.readuntil(b"}")
            if body is WHOLE:
                got = await reader.read(65536)
                assert b"HTTP/1.1 200 OK\r\n" in got
                assert got.endswith(b"{}")
                break
        writer.close()

    sim(scenario)


def test_a_head_without_end(sim, dial, until):
    async def scenario(engine, client):
        engine.fault("endless_head", seconds=0)
        reader, writer = await dial(engine, request(WHOLE))
        head = await reader.readexactly(100_000)
        assert b"\r\n\r\n" not in head
        writer.close()
        await until(lambda: engine.state()["requests_aborted"] == 1)

    sim(scenario)


def test_no_status_line(sim):
    async def scenario(engine, client):
        engine.fault("bad_status")
        with pytest.raises(httpx.RemoteProtocolError):
            await client.post("/v1/completions", json=WHOLE)

    sim(scenario)


def test_a_dripping_response_is_complete(sim):
    async def scenario(engine, client):
        plain = await client.post("/v1/completions", json=STREAM, headers={"x-request-id": "1"})
        engine.fault("drip", seconds=0.0, bytes=7)
        slow = await client.post("/v1/completions", json=STREAM, headers={"x-request-id": "1"})
        assert slow.text.count("data: ") == plain.text.count("data: ")
        assert slow.text.endswith("data: [DONE]\n\n")
        assert engine.state()["requests_finished"] == 2

    sim(scenario)


def test_faults_over_http(sim):
    async def scenario(engine, client):
        body = {"kind": "500", "count": 1}
        state = (await client.post("/sim/fault", json=body)).json()
        assert state["faults"] == ["500"]
        assert (await client.post("/v1/completions", json=WHOLE)).status_code == 500
        assert (await client.get("/sim/state")).json()["faults"] == []
        await client.post("/sim/fault", json={"kind": "hang"})
        assert (await client.post("/sim/heal")).json()["faults"] == []
        assert (await client.post("/v1/completions", json=WHOLE)).status_code == 200

    sim(scenario)


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "nonsense"},
        {},
        {"kind": "freeze", "count": 1},
        {"kind": "500", "count": 0},
        {"kind": "reset", "after_events": -2},
        {"kind": "500", "count": "many"},
    ],
)
def test_commands_that_make_no_sense(sim, body):
    async def scenario(engine, client):
        assert (await client.post("/sim/fault", json=body)).status_code == 400
        assert engine.state()["faults"] == []

    sim(scenario)


def test_one_engine_speaks_for_another_of_its_process(sim):
    async def scenario(engine, client):
        other = SimEngine(SimConfig(name="sim-1", profile="instant"))
        await other.start()
        engine.peers["sim-1"] = other
        try:
            await client.post("/sim/fault", json={"kind": "refuse", "engine": "sim-1"})
            with pytest.raises(httpx.ConnectError):
                await client.get(f"{other.url}/health")
            await client.post("/sim/heal?engine=sim-1")
            assert (await client.get(f"{other.url}/health")).status_code == 200
            assert (await client.get("/sim/state?engine=sim-2")).status_code == 404
        finally:
            await other.stop()

    sim(scenario)


def test_every_kind_has_a_name_of_its_own():
    labels = [kind.label for kind in Fault]
    assert len(set(labels)) == len(labels)
    assert all(Fault.named(label).label == label for label in labels)
