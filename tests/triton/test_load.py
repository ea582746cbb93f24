"""Many streams at once, clients that leave, models that come and go, and the death of a server:
what the clients of the gateway see of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.real import headgate_process
from tests.real.headgate_process import Gateway
from tests.triton.environment import Installation
from tests.triton.server import Triton
from tests.vllm.load import until

pytestmark = pytest.mark.engines

STREAMS = 200
LONG_STREAMS = 64
TOKENS = 60
FREED_LIMIT_S = 5.0
TOLD_LIMIT_S = 15.0
HANG_S = 120.0

Note = Callable[[str], None]


@dataclass
class Stream:
    """A completion that counts: what has come of it, and how it ended."""

    model: str
    tokens: int
    delay_s: float = 0.0
    status: int = 0
    texts: list[str] = field(default_factory=list)
    done: bool = False
    error: str = ""
    failure: str = ""

    @property
    def body(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "prompt": f"<made-up text=count delay_s={self.delay_s}>",
            "max_tokens": self.tokens,
            "temperature": 0,
            "stream": True,
        }

    @property
    def whole(self) -> bool:
        """Nothing lost, reordered or told twice."""
        return self.done and not self.error and self.texts == numbers(self.tokens)

    @property
    def told(self) -> bool:
        """It broke off, and its client was told so in OpenAI's form; what it has is right."""
        if self.status != 200:
            return bool(self.error)
        return self.done and bool(self.error) and self.texts == numbers(len(self.texts))

    async def run(self, client: httpx.AsyncClient, url: str) -> None:
        try:
            async with (
                asyncio.timeout(HANG_S),
                client.stream("POST", f"{url}/v1/completions", json=self.body) as answer,
            ):
                self.status = answer.status_code
                async for line in answer.aiter_lines():
                    self._read(line)
        except TimeoutError:
            self.failure = "hangs"
        except httpx.HTTPError as error:
            self.failure = repr(error)

    def _read(self, line: str) -> None:
        if self.status != 200:
            self.error += line
        elif line == "data: [DONE]":
            self.done = True
        elif line.startswith("data: "):
            event = json.loads(line[6:])
            if "error" in event:
                self.error = str(event["error"]["message"])
            else:
                self.texts += [choice["text"] for choice in event["choices"] if choice["text"]]


def numbers(count: int) -> list[str]:
    return [f" {number}" for number in range(count)]


def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None))


async def run_all(streams: list[Stream], url: str) -> None:
    async with client() as http:
        await asyncio.gather(*(stream.run(http, url) for stream in streams))


def bad(streams: list[Stream], good: Callable[[Stream], bool]) -> list[str]:
    """What is wrong with those that are not as they should be."""
    return [
        f"{one.model}: {one.status}, {len(one.texts)} of {one.tokens}, ends {one.texts[-2:]}, "
        f"done {one.done}, error {one.error!r}, failure {one.failure!r}"
        for one in streams
        if not good(one)
    ]


@pytest.fixture(scope="module")
def gateway(triton: Triton) -> Iterator[Gateway]:
    with headgate_process.running([f"triton={triton.url}"]) as gateway:
        yield gateway


@pytest.mark.parametrize("model", ["vllm_model", "ensemble"])
def test_many_streams_at_once(gateway: Gateway, model: str) -> None:
    streams = [Stream(model, TOKENS, 0.02) for _ in range(STREAMS)]
    asyncio.run(run_all(streams, gateway.url))
    assert bad(streams, lambda stream: stream.whole) == []


@pytest.mark.parametrize(
    "n_events", [16_000, pytest.param(100_032, marks=pytest.mark.soak)], ids=["some", "many"]
)
def test_no_event_is_lost(gateway: Gateway, n_events: int) -> None:
    n_tokens = n_events // LONG_STREAMS
    streams = [Stream("vllm_model", n_tokens, 0.01) for _ in range(LONG_STREAMS)]
    asyncio.run(run_all(streams, gateway.url))
    assert bad(streams, lambda stream: stream.whole) == []
    assert sum(len(stream.texts) for stream in streams) >= n_events


@pytest.mark.parametrize("prompt", ["<made-up delay_s=0.02>", "<made-up hang_at=2>"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_client_that_leaves_frees_the_engine(
    gateway: Gateway, triton: Triton, prompt: str, stream: bool, figure: Note
) -> None:
    """Also where no stream was asked for: Triton itself runs on then."""
    body = {"model": "vllm_model", "prompt": prompt, "max_tokens": 5000, "stream": stream}

    async def story() -> float:
        async with client() as http:
            asked = asyncio.create_task(http.post(f"{gateway.url}/v1/completions", json=body))
            await until(lambda: running(triton) == 1, 30, "it runs")
            asked.cancel()
        return await until(lambda: running(triton) == 0, FREED_LIMIT_S, "the engine is free")

    asyncio.run(asyncio.wait_for(until(lambda: running(triton) == 0, 30, "idle"), 60))
    freed_s = asyncio.run(story())
    figure(f"client left Triton ({prompt}, stream={stream}): free in {freed_s * 1000:.0f} ms")


def test_an_ensemble_stays_booked_until_it_has_ended(gateway: Gateway) -> None:
    """Triton runs it to its end, whoever left; then its endpoint is free again."""
    prompt = "<made-up text=count delay_s=0.02>"

    async def story() -> None:
        for body in (
            {"max_tokens": 200, "stream": True},
            {"max_tokens": 200},
            {"max_tokens": 200, "n": 2, "stream": True},
        ):
            async with client() as http:
                body = {"model": "ensemble", "prompt": prompt, **body}
                asked = asyncio.create_task(http.post(f"{gateway.url}/v1/completions", json=body))
                await until(lambda: gateway.in_flight() == 1, 30, "it runs")
                await asyncio.sleep(0.5)
                asked.cancel()
                await asyncio.sleep(1.0)
            assert gateway.in_flight() == 1
            await until(lambda: gateway.in_flight() == 0, 30, "it has ended")
        # A stop word that is found here, too: the answer is there, and the engine works on.
        async with client() as http:
            body = {"model": "ensemble", "prompt": prompt, "max_tokens": 200, "stop": " 7"}
            answer = await http.post(f"{gateway.url}/v1/completions", json=body)
            assert answer.json()["choices"][0]["text"] == " 0 1 2 3 4 5 6"
        await until(lambda: gateway.in_flight() == 0, 30, "it has ended")

    asyncio.run(story())


def running(triton: Triton) -> int:
    return int(triton.metric("vllm:num_requests_running"))


def test_models_come_and_go_under_traffic(gateway: Gateway, triton: Triton) -> None:
    """Another model's clients see nothing of it. Those of the model get a whole answer, or are
    told at once that there is no such model now."""

    async def story() -> None:
        steady = [Stream("vllm_model", 200, 0.05) for _ in range(10)]
        async with client() as http:
            tasks = [asyncio.create_task(stream.run(http, gateway.url)) for stream in steady]
            during = [Stream("vllm_early", 20, 0.02) for _ in range(10)]
            asked = [asyncio.create_task(stream.run(http, gateway.url)) for stream in during]
            await asyncio.sleep(0.2)
            await asyncio.to_thread(triton.unload, "vllm_early")
            await asyncio.gather(*asked)
            assert bad(during, lambda stream: stream.whole) == []
            await until(lambda: not serves("vllm_early"), 10, "the gateway knows it is gone")
            refused = Stream("vllm_early", 1)
            await refused.run(http, gateway.url)
            assert refused.status == 404, refused
            await asyncio.to_thread(triton.load, "vllm_early")
            await until(lambda: serves("vllm_early"), 10, "the gateway knows it is back")
            again = Stream("vllm_early", 5)
            await again.run(http, gateway.url)
            assert again.whole, again
            await asyncio.gather(*tasks)
        assert bad(steady, lambda stream: stream.whole) == []

    def serves(model: str) -> bool:
        models = httpx.get(f"{gateway.url}/v1/models", timeout=10).json()["data"]
        return any(each["id"] == model for each in models)

    asyncio.run(story())


def test_death_of_one_of_two(
    triton: Triton, installation: Installation, servers: list[Triton], figure: Note
) -> None:
    """SIGTERM: what runs there ends well, and nobody notices. SIGKILL: its streams are told, and
    what had nothing yet is answered by the other."""
    # After SIGTERM it sometimes waits for nothing as long as it may.
    flags = ["--exit-timeout-secs=10"]
    mortal = Triton(installation, "one-of-two", models=["vllm_model"], flags=flags)
    servers.append(mortal)

    def start() -> None:
        mortal.start()
        mortal.wait_ready()
        mortal.leaving = False

    async def terminated(gateway: Gateway) -> None:
        async with client() as http:
            streams, tasks = await busy(gateway, http)
            mortal.terminate()
            late = [Stream("vllm_model", 10) for _ in range(20)]
            await asyncio.gather(*(one.run(http, gateway.url) for one in late), *tasks)
        assert bad(streams + late, lambda stream: stream.whole) == []

    async def killed(gateway: Gateway) -> None:
        async with client() as http:
            streams, tasks = await busy(gateway, http)
            there = mortal.metric("vllm:num_requests_running")
            await asyncio.to_thread(mortal.kill)
            late = [Stream("vllm_model", 10) for _ in range(20)]
            async with asyncio.timeout(TOLD_LIMIT_S):
                await asyncio.gather(*(one.run(http, gateway.url) for one in late), *tasks)
        assert bad(late, lambda stream: stream.whole) == []
        assert bad(streams, lambda stream: stream.whole or stream.told) == []
        lost = sum(not stream.whole for stream in streams)
        assert 0 < lost <= there
        figure(f"kill -9 of a Triton: {lost} of its {there:.0f} streams told, the others whole")

    async def busy(
        gateway: Gateway, http: httpx.AsyncClient
    ) -> tuple[list[Stream], list[asyncio.Task[None]]]:
        streams = [Stream("vllm_model", 60, 0.05) for _ in range(20)]
        tasks = [asyncio.create_task(stream.run(http, gateway.url)) for stream in streams]
        await until(lambda: all(len(one.texts) > 3 for one in streams), 30, "they run")
        assert mortal.metric("vllm:num_requests_running") > 0
        return streams, tasks

    for story in (terminated, killed):
        start()
        play(story, [triton, mortal])
        assert mortal.wait_exit(40)


def play(story: Callable[[Gateway], Coroutine[None, None, None]], servers: list[Triton]) -> None:
    engines = [f"triton={server.url}" for server in servers]
    with headgate_process.running(engines, policy="least-requests") as gateway:
        asyncio.run(story(gateway))
