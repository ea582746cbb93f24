"""The whole product as its users run it, over engines that die, and under its own end."""

import asyncio
import os
import re
import signal

import httpx
import pytest
import uvloop

from engines.sim import SimConfig, SimEngine
from tests.e2e.product import Product, until

CHAT = "/v1/chat/completions"
SLOW = {"profile": "demo", "time_scale": 0.2}


def running(engines):
    return sum(engine.state()["running"] for engine in engines)


async def stream(client, tokens):
    """(bytes were received, the stream is whole, it ended in the dialect's way)."""
    body = {
        "model": "sim",
        "messages": [{"role": "user", "content": "Hello"}],
        "stream": True,
        "max_tokens": tokens,
        "ignore_eos": True,
    }
    text = b""
    try:
        async with client.stream("POST", CHAT, json=body) as response:
            if response.status_code != 200:
                return False, False, False
            async for piece in response.aiter_bytes():
                text += piece
    except httpx.HTTPError:
        return bool(text), False, False
    ended = text.endswith(b"data: [DONE]\n\n")
    return bool(text), ended and b'"error"' not in text, ended


def total(metrics, name):
    return sum(value for key, value in metrics.items() if key.split("{")[0] == name)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("sigterm_hang", marks=pytest.mark.soak),
        pytest.param("sigterm_drain", marks=pytest.mark.soak),
        "kill_core",
    ],
)
def test_rolling_restart(product, kind):
    """One engine after the other goes and comes back, under load."""

    async def scene(house, engines):
        stop = asyncio.Event()
        results = []

        async def load():
            while not stop.is_set():
                results.append(await stream(house.client, 12))

        workers = [asyncio.create_task(load()) for _ in range(16)]
        await asyncio.sleep(0.5)
        for engine in engines:
            engine.fault(kind)
            await asyncio.sleep(1.2)
            engine.heal()
            await until(lambda: house.all_up(len(engines)))
        stop.set()
        await asyncio.gather(*workers)
        assert len(results) > 50
        assert all(received for received, _, _ in results), "a request without a byte failed"
        assert all(ended for _, _, ended in results), "a stream ended without the dialect's end"
        if kind == "sigterm_drain":
            assert all(whole for _, whole, _ in results)

    product(scene, 4, "timeouts: {dead_silence_s: 0.5}\n", **SLOW)


def test_sigterm_cuts_no_stream(product):
    async def scene(house, engines):
        streams = [asyncio.create_task(stream(house.client, 120)) for _ in range(200)]
        await until(lambda: sum(engine.state()["requests_seen"] for engine in engines) >= 200)
        assert running(engines) > 20
        house.process.send_signal(signal.SIGTERM)
        results = await asyncio.gather(*streams)
        assert results == [(True, True, True)] * 200
        assert await asyncio.wait_for(house.process.wait(), 20) == 0

    product(scene, 2, "drain: {pre_stop_s: 0.2, grace_s: 60}\n", **SLOW)


def test_the_grace_ends_in_the_dialect(product):
    async def scene(house, engines):
        streams = [asyncio.create_task(stream(house.client, 5000)) for _ in range(10)]
        await until(lambda: running(engines) == 10 or any(one.done() for one in streams))
        assert not [one.result() for one in streams if one.done()]
        await asyncio.sleep(0.5)
        house.process.send_signal(signal.SIGTERM)
        assert await asyncio.gather(*streams) == [(True, False, True)] * 10
        assert await asyncio.wait_for(house.process.wait(), 20) == 0

    product(scene, 2, "drain: {pre_stop_s: 0, grace_s: 0.5}\n", **SLOW)


def test_a_worker_that_is_killed_loses_no_count(product):
    async def scene(house, engines):
        for _ in range(5):
            assert (await stream(house.client, 4))[1]
        before = await house.metrics()
        streams = [asyncio.create_task(stream(house.client, 5000)) for _ in range(10)]
        await until(lambda: running(engines) == 10)
        pids = [re.search(r"pid (\d+)", line) for line in house.lines if "worker 0" in line]
        os.kill(int(next(pid for pid in pids if pid)[1]), signal.SIGKILL)
        await asyncio.gather(*streams)
        while True:
            try:
                if (await stream(house.client, 4))[1]:
                    break
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.05)
        await until(lambda: not any(engine.state()["requests_open"] for engine in engines))
        after = await house.metrics()
        for name, value in before.items():
            if name.split("{")[0].endswith(("_total", "_count", "_sum", "_bucket")):
                assert after[name] >= value, name
        gauges = [v for k, v in after.items() if "in_flight" in k or "buffered" in k]
        assert gauges
        assert not any(gauges)

    product(scene, 2, **SLOW)


def test_metrics_on_the_data_port(product):
    async def scene(house, engines):
        assert (await house.client.get("/metrics")).status_code == 200
        text = (await house.client.get("/metrics")).text
        assert "headgate_requests_accepted_total" in text

    product(scene, 1, "metrics_on_data_port: true\n", profile="instant")


def test_the_openai_client(product):
    import openai

    messages = [{"role": "user", "content": "Hello"}]

    async def scene(house, engines):
        async with openai.AsyncOpenAI(
            base_url=house.url + "/v1",
            api_key="x",
            max_retries=0,
            http_client=httpx.AsyncClient(trust_env=False),
        ) as client:
            answer = await client.chat.completions.create(
                model="sim", messages=messages, max_tokens=5
            )
            assert answer.usage.completion_tokens == 5
            chunks = await client.chat.completions.create(
                model="sim",
                messages=messages,
                max_tokens=5,
                stream=True,
                stream_options={"include_usage": True},
            )
            seen = [chunk async for chunk in chunks]
            assert seen[-1].usage.completion_tokens == 5
            assert [model.id async for model in client.models.list()] == ["sim"]
            with pytest.raises(openai.NotFoundError):
                await client.chat.completions.create(model="none", messages=messages)
            for engine in engines:
                engine.fault("503")
            with pytest.raises(openai.InternalServerError):
                await client.chat.completions.create(model="sim", messages=messages)
            for engine in engines:
                engine.heal()
                engine.fault("early_close", count=1, after_events=2)
            chunks = await client.chat.completions.create(
                model="sim", messages=messages, max_tokens=9, stream=True
            )
            with pytest.raises(openai.APIError):
                async for _ in chunks:
                    pass

        def ask():
            with openai.OpenAI(
                base_url=house.url + "/v1", api_key="x", http_client=httpx.Client(trust_env=False)
            ) as client:
                stream = client.completions.create(
                    model="sim", prompt="Hi", max_tokens=4, stream=True
                )
                return "".join(chunk.choices[0].text for chunk in stream)

        for engine in engines:
            engine.heal()
        assert await asyncio.to_thread(ask)

    product(scene, 2, profile="instant")


def test_two_gateways_see_each_others_load(redis_server, tmp_path):
    async def asked(house):
        """A stream that goes on; the endpoint it went to."""
        body = {"model": "sim", "stream": True, "max_tokens": 400, "prompt": "go on"}
        request = house.client.build_request("POST", "/v1/completions", json=body)
        answer = await house.client.send(request, stream=True)
        words = dict(w.partition("=")[::2] for w in answer.headers["x-headgate-decision"].split())
        return answer, words["endpoint"]

    async def main():
        engines = [SimEngine(SimConfig(name=f"sim-{i}", **SLOW)) for i in range(3)]
        for engine in engines:
            await engine.start()
        houses = [Product(), Product()]
        text = "policy: least-requests\ndecision_header: true\n"
        text += f"bus: {{url: '{redis_server.url}', name: %s}}\n"
        for index, house in enumerate(houses):
            folder = tmp_path / str(index)
            folder.mkdir()
            await house.start(engines, folder, text % f"g{index}")

        async def peers(house):
            return (await house.metrics())["headgate_bus_peers"]

        async with asyncio.timeout(60):
            for house in houses:
                await until(lambda house=house: _is(peers(house), 1))
            taken = []
            for house in (houses[0], houses[1], houses[1]):
                answer, endpoint = await asked(house)
                taken.append((answer, endpoint))
                await asyncio.sleep(0.3)
            assert len({endpoint for _, endpoint in taken}) == 3
            for answer, _ in taken:
                await answer.aclose()
            houses[0].process.kill()
            await until(lambda: _is(peers(houses[1]), 0))
        await houses[0].process.wait()
        assert await houses[1].stop() == 0
        await houses[0].client.aclose()
        for engine in engines:
            await engine.stop()

    uvloop.run(main())


async def _is(found, wanted):
    return await found == wanted


def test_workers_share_their_sessions(product):
    """Each connection may meet another worker; the session is where any of them sent it last."""

    async def scene(house, _):
        async def asked(session):
            async with httpx.AsyncClient(base_url=house.url, trust_env=False) as client:
                answer = await client.post(
                    "/v1/completions",
                    json={"model": "sim", "prompt": session, "max_tokens": 2},
                    headers={"x-session-id": session},
                )
            return answer.headers["x-headgate-decision"].split()[0]

        homes = {f"s{n}": await asked(f"s{n}") for n in range(9)}
        assert len(set(homes.values())) > 1
        for _ in range(4):
            assert {session: await asked(session) for session in homes} == homes

    product(scene, 3, "workers: 2\ndecision_header: true\n", profile="instant")
