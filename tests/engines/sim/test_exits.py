"""The ways an engine goes, and its return."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

LONG = {"prompt": "The quick brown", "max_tokens": 8000}
STREAM = {**LONG, "stream": True}
SHORT = {"prompt": "The quick brown", "max_tokens": 2}
SLOW = {"profile": "demo", "time_scale": 0.5}


def request(body: object) -> bytes:
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(data)}\r\n\r\n".encode() + data


async def refused(engine) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", engine.port)
    except ConnectionRefusedError:
        return True
    writer.close()
    return False


def test_hang_leaves_what_runs_without_a_byte_or_an_end(sim, dial, until):
    async def scenario(engine, client):
        await client.get("/health")
        reader, writer = await dial(engine, request(STREAM))
        await until(lambda: engine.state()["output_tokens"] > 1)
        engine.fault("sigterm_hang")
        assert await refused(engine)
        # Only the busy connection is left: the idle one of the client was closed.
        await until(lambda: engine.state()["connections_open"] == 1)
        tokens = engine.state()["output_tokens"]
        while True:
            try:
                data = await asyncio.wait_for(reader.read(65536), 0.15)
            except TimeoutError:
                break
            assert data
        assert engine.state()["output_tokens"] == tokens
        assert engine.state()["life"] == "hanging"
        writer.close()
        await asyncio.wait_for(engine.exited.wait(), 10)
        assert engine.state()["requests_aborted"] == 1

    sim(scenario, **SLOW)


def test_drain_finishes_what_runs_and_refuses_the_rest_under_a_healthy_health(sim, until):
    async def scenario(engine, client):
        running = asyncio.create_task(
            client.post("/v1/completions", json={**SHORT, "max_tokens": 25})
        )
        await until(lambda: engine.state()["output_tokens"] > 1)
        engine.fault("sigterm_drain")
        late = await client.post("/v1/completions", json=SHORT)
        assert late.status_code == 500
        error = late.json()["error"]
        assert error["message"] == "cannot schedule new futures after shutdown"
        assert (await client.get("/health")).status_code == 200
        assert (await running).json()["usage"]["completion_tokens"] == 25
        await asyncio.wait_for(engine.exited.wait(), 10)
        assert await refused(engine)

    sim(scenario, **SLOW)


def test_an_idle_engine_drains_at_once(sim):
    async def scenario(engine, client):
        engine.fault("sigterm_drain")
        await asyncio.wait_for(engine.exited.wait(), 10)

    sim(scenario)


def test_a_dead_core_tells_its_streams_then_refuses(sim, until):
    async def scenario(engine, client):
        async def read(body):
            return await client.post("/v1/completions", json=body)

        tasks = [asyncio.create_task(read(body)) for body in (STREAM, LONG)]
        await until(lambda: engine.state()["output_tokens"] > 3)
        engine.fault("kill_core", seconds=0.5, exit_s=0.6)
        assert (await client.get("/health")).status_code == 503
        stream, whole = await asyncio.gather(*tasks)
        *_, error, done, end = stream.text.split("\n\n")
        message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
        assert error == (
            f'data: {{"error": {{"message": "{message}", "type": "InternalServerError", '
            '"param": null, "code": 500}}'
        )
        assert (done, end) == ("data: [DONE]", "")
        assert (whole.status_code, whole.json()["error"]["message"]) == (500, message)
        await asyncio.wait_for(engine.exited.wait(), 10)
        assert await refused(engine)
        assert engine.state()["requests_failed"] == 2

    sim(scenario, **SLOW)


def test_a_dead_core_refuses_new_requests(sim):
    async def scenario(engine, client):
        engine.fault("kill_core", seconds=5, exit_s=5)
        response = await client.post("/v1/completions", json=SHORT)
        assert response.status_code == 500
        assert response.json()["error"]["message"].startswith("EngineCore encountered an issue.")

    sim(scenario)


def test_quit_cuts_everything(sim, dial, until):
    async def scenario(engine, client):
        reader, writer = await dial(engine, request(STREAM))
        await until(lambda: engine.state()["output_tokens"] > 1)
        engine.fault("sigterm_quit")
        assert engine.exited.is_set()
        assert await refused(engine)
        got = await reader.read()
        assert not got.endswith(b"0\r\n\r\n")
        writer.close()
        await until(lambda: engine.state()["requests_failed"] == 1)

    sim(scenario, **SLOW)


@pytest.mark.parametrize("kind", ["sigterm_hang", "sigterm_drain", "sigterm_quit", "kill_core"])
def test_a_healed_engine_is_a_new_process_on_the_old_port(sim, kind):
    async def scenario(engine, client):
        body = {"prompt": "word " * 100, "max_tokens": 2}
        port = engine.port
        for _ in range(2):
            await client.post("/v1/completions", json=body)
        assert engine.state()["cached_tokens"] > 0
        engine.fault(kind)
        engine.heal()
        assert engine.port == port
        async with httpx.AsyncClient(base_url=engine.url) as anew:
            again = await anew.post("/v1/completions", json=body)
        assert again.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        state = engine.state()
        assert (state["restarts"], state["life"]) == (1, "serving")
        assert (state["requests_finished"], state["core_finished"]) == (3, 1)

    sim(scenario)


def test_an_exit_with_a_time_is_a_restart(sim, until):
    async def scenario(engine, client):
        await client.post("/v1/completions", json=SHORT)
        engine.fault("sigterm_hang", seconds=0.1)
        await asyncio.wait_for(engine.exited.wait(), 10)
        await until(lambda: engine.state()["restarts"] == 1)
        async with httpx.AsyncClient(base_url=engine.url) as anew:
            assert (await anew.post("/v1/completions", json=SHORT)).status_code == 200

    sim(scenario)


def test_sleep_ends_what_runs_and_looks_healthy(sim, until):
    async def scenario(engine, client):
        running = asyncio.create_task(client.post("/v1/completions", json=LONG))
        stream = asyncio.create_task(client.post("/v1/completions", json=STREAM))
        # Both: one that came after the order would wait for the engine to wake.
        await until(lambda: engine.state()["running"] == 2)
        slept = await client.post("/sleep?level=1")
        assert slept.json() == {"status": "sleeping", "level": 1}
        (choice,) = (await running).json()["choices"]
        assert choice["finish_reason"] == "abort"
        assert len(choice["text"].split()) < 100
        *_, last, done, _ = (await stream).text.split("\n\n")
        assert '"finish_reason":"abort"' in last
        assert done == "data: [DONE]"
        assert (await client.get("/is_sleeping")).json() == {"is_sleeping": True}
        assert (await client.get("/health")).status_code == 200
        waiting = asyncio.create_task(client.post("/v1/completions", json=SHORT))
        await until(lambda: engine.state()["waiting"] == 1)
        page = (await client.get("/metrics")).text
        assert 'sleep_state="weights_offloaded"} 1.0' in page
        assert 'finished_reason="abort",model_name="sim"} 2.0' in page
        await client.post("/wake_up")
        assert (await waiting).status_code == 200
        assert (await client.post("/sleep?level=7")).status_code == 400

    sim(scenario, **SLOW)


def test_a_step_that_was_planned_before_sleep_is_not_made(sim, until):
    async def scenario(engine, client):
        running = asyncio.create_task(client.post("/v1/completions", json=LONG))
        await until(lambda: engine.state()["running"] == 1)
        engine.interrupt()
        engine.asleep = True
        steps = engine.state()["core_steps"]
        await running
        waiting = asyncio.create_task(client.post("/v1/completions", json=SHORT))
        await until(lambda: engine.state()["waiting"] == 1)
        await asyncio.sleep(0.1)
        assert engine.state()["core_steps"] == steps
        engine.asleep = False
        engine.wake()
        assert (await waiting).status_code == 200

    sim(scenario, **SLOW)


def test_pause_can_keep_what_runs(sim, until):
    async def scenario(engine, client):
        body = {**SHORT, "max_tokens": 30}
        running = asyncio.create_task(client.post("/v1/completions", json=body))
        await until(lambda: engine.state()["output_tokens"] > 1)
        await client.post("/pause?mode=keep")
        assert (await client.get("/is_paused")).json() == {"is_paused": True}
        await client.post("/resume")
        assert (await running).json()["choices"][0]["finish_reason"] == "length"

    sim(scenario, **SLOW)


PROCESS = """
import sys
from engines.sim import SimConfig
from engines.sim.main import run
run(
    [SimConfig(name="sim-0", sigterm=sys.argv[1]), SimConfig(name="sim-1", sigterm=sys.argv[1])],
    "127.0.0.1",
    [0, 0],
)
"""


@pytest.fixture
def process(request):
    """Two engines as a process of their own, and their addresses."""
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    command = [sys.executable, "-c", PROCESS, request.param]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as child:
        assert child.stdout is not None
        lines = [child.stdout.readline().split() for _ in range(2)]
        try:
            yield child, lines
        finally:
            child.kill()


@pytest.mark.parametrize("process", ["hang", "drain", "quit"], indirect=True)
def test_a_process_says_it_is_ready_and_ends_on_sigterm(process):
    child, lines = process
    assert [line[:3] for line in lines] == [["sim-0", "ready", "on"], ["sim-1", "ready", "on"]]
    assert " ".join(lines[0][4:]) == "(model sim, profile demo)"
    for line in lines:
        assert httpx.get(f"{line[3]}/health").status_code == 200
    states = [httpx.get(f"{lines[0][3]}/sim/state?engine=sim-{at}").json() for at in range(2)]
    assert [state["name"] for state in states] == ["sim-0", "sim-1"]
    child.send_signal(signal.SIGTERM)
    assert child.wait(10) == 0


@pytest.mark.parametrize("process", ["hang"], indirect=True)
def test_a_hanging_process_lives_until_its_last_client_leaves(process):
    child, lines = process
    port = int(lines[0][3].rsplit(":", 1)[1])
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(request(STREAM))
        assert client.recv(100)
        child.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.5)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
    assert child.wait(10) == 0
