"""Triton's own clients through the gateway's gRPC port: they cannot tell it from a Triton."""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as aioclient
from tritonclient.utils import InferenceServerException

from tests.real.headgate_process import ADMIN_TOKEN, Gateway
from tests.triton import gateway as lane
from tests.triton.client import FLAVOURS, VLLM, VLLM_EARLY, Client, Flavour
from tests.triton.environment import Installation
from tests.triton.server import Triton

pytestmark = pytest.mark.engines

COUNTING = "<made-up text=count>"
ADMIN = {"authorization": f"Bearer {ADMIN_TOKEN}"}


@pytest.fixture(scope="module")
def both(triton: Triton) -> Iterator[tuple[Gateway, str]]:
    with lane.running([triton]) as found:
        yield found


@pytest.fixture
def address(both: tuple[Gateway, str]) -> Iterator[str]:
    gateway, address = both
    yield address
    until(lambda: gateway.in_flight() == 0, "nothing is left behind")


def until(condition: Callable[[], bool], what: str, limit_s: float = 20.0) -> None:
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, f"not after {limit_s} s: {what}"
        time.sleep(0.02)


def numbers(count: int) -> str:
    return "".join(f" {number}" for number in range(count))


def sums(names: str = "AB") -> list[Any]:
    inputs = []
    for name in names:
        inputs.append(grpcclient.InferInput(name, [1, 4], "FP32"))
        inputs[-1].set_data_from_numpy(np.array([[1, 2, 3, 4]], np.float32))
    return inputs


def generate(prompt: str, tokens: int, stream: bool = True) -> list[Any]:
    """Inputs of the vLLM backend."""
    values = {
        "text_input": ("BYTES", prompt.encode()),
        "sampling_parameters": ("BYTES", b'{"max_tokens": %d}' % tokens),
        "stream": ("BOOL", stream),
    }
    inputs = []
    for name, (kind, value) in values.items():
        inputs.append(grpcclient.InferInput(name, [1], kind))
        array = np.array([value], dtype=bool if kind == "BOOL" else np.object_)
        inputs[-1].set_data_from_numpy(array)
    return inputs


SAME = {
    "live": lambda c: c.is_server_live(),
    "ready": lambda c: c.is_server_ready(),
    "model ready": lambda c: c.is_model_ready("vllm_model"),
    "model not ready": lambda c: c.is_model_ready("unheard_of"),
    "metadata": lambda c: c.get_model_metadata("add", as_json=True),
    "config": lambda c: c.get_model_config("ensemble", as_json=True),
    "infer": lambda c: c.infer("add", sums(), request_id="7").get_response(as_json=True),
    "missing input": lambda c: c.infer("add", sums("A")),
    "decoupled": lambda c: c.infer("vllm_model", sums()),
}


@pytest.mark.parametrize("name", SAME)
def test_same_as_a_triton(triton: Triton, address: str, name: str) -> None:
    found = []
    for place in (triton.grpc_address, address):
        with grpcclient.InferenceServerClient(place) as client:
            try:
                found.append(SAME[name](client))
            except InferenceServerException as error:
                found.append((error.status(), error.message()))
    assert found[1] == found[0]


def test_unknown_model(address: str) -> None:
    with grpcclient.InferenceServerClient(address) as client:
        for ask in (
            lambda: client.infer("unheard_of", sums()),
            lambda: client.get_model_config("unheard_of"),
        ):
            with pytest.raises(InferenceServerException, match="unknown model: 'unheard_of'") as e:
                ask()
            assert e.value.status() == "StatusCode.NOT_FOUND"


def test_statistics_grow(address: str) -> None:
    with grpcclient.InferenceServerClient(address) as client:
        counts = []
        for _ in range(2):
            client.infer("add", sums())
            found = client.get_inference_statistics("add", as_json=True)
            counts.append(int(found["model_stats"][0]["inference_count"]))
        assert counts[1] == counts[0] + 1


def test_statistics_of_all_models(triton: Triton, address: str) -> None:
    found = []
    for place in (triton.grpc_address, address):
        with grpcclient.InferenceServerClient(place) as client:
            statistics = client.get_inference_statistics(as_json=True)["model_stats"]
        found.append(sorted((one["name"], one["version"]) for one in statistics))
    assert found[1] == found[0]


def test_repository(triton: Triton, both: tuple[Gateway, str]) -> None:
    _, address = both
    with grpcclient.InferenceServerClient(address) as client:
        for change in (client.load_model, client.unload_model):
            with pytest.raises(InferenceServerException, match="admin token") as caught:
                change("vllm_slow")
            assert caught.value.status() == "StatusCode.PERMISSION_DENIED"
        client.load_model("vllm_slow", headers=ADMIN)
        assert triton.model_ready("vllm_slow")
        assert client.is_model_ready("vllm_slow")
        index = client.get_model_repository_index(as_json=True)["models"]
        assert {one["name"]: one["state"] for one in index}["vllm_slow"] == "READY"
        client.unload_model("vllm_slow", headers=ADMIN)
        until(lambda: not client.is_model_ready("vllm_slow"), "the gateway knows it")
        with pytest.raises(InferenceServerException, match="failed to poll") as caught:
            client.load_model("unheard_of", headers=ADMIN)
        assert caught.value.status() == "StatusCode.INTERNAL"


@pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda flavour: flavour.model)
def test_stream_of_each_flavour(triton: Triton, address: str, flavour: Flavour) -> None:
    async def story(place: str) -> list[Any]:
        async with Client(place) as client:
            parts = await client.ask(flavour, COUNTING, 12)
            return [(part.texts, part.final) for part in parts]

    assert asyncio.run(story(address)) == asyncio.run(story(triton.grpc_address))


def test_callbacks_of_one_stream(address: str) -> None:
    """The synchronous client: many requests of several models, each with an end of its own."""
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with grpcclient.InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for number in range(40):
            client.async_stream_infer("add", sums(), request_id=str(number))
        client.async_stream_infer("unheard_of", sums(), request_id="x")
        client.async_stream_infer("add", sums(), request_id="last")
        found = [answers.get(timeout=20) for _ in range(42)]
        client.stop_stream()
    errors = [str(error) for _, error in found if error is not None]
    assert len(errors) == 1
    assert "unknown model: 'unheard_of'" in errors[0]
    ids = [result.get_response().id for result, error in found if error is None]
    assert ids == [*map(str, range(40)), "last"]


def test_200_streams_lose_nothing(address: str, figure: Callable[[str], None]) -> None:
    async def one(client: Client, number: int) -> str:
        prompt = f"{number} <made-up text=count delay_s=0.01>"
        return await client.text(VLLM, prompt, 50)

    async def story() -> list[str]:
        async with Client(address) as client:
            return await asyncio.gather(*(one(client, number) for number in range(200)))

    since_s = time.monotonic()
    assert set(asyncio.run(story())) == {numbers(50)}
    per_s = 200 * 50 / (time.monotonic() - since_s)
    figure(f"KServe over gRPC: 200 streams of 50 responses, {per_s:.0f} responses/s")


def test_cancel_frees_the_model(triton: Triton, address: str) -> None:
    async def story() -> None:
        async with Client(address) as client:
            inputs = VLLM.inputs("<made-up delay_s=0.05>", 2000)
            async with client.open(VLLM, inputs) as parts:
                await anext(parts)
                assert triton.running_requests() >= 1

    asyncio.run(story())
    until(lambda: triton.running_requests() == 0, "the engine is free", 5)


def test_deadline_frees_the_model(triton: Triton, address: str) -> None:
    async def story() -> None:
        async def requests() -> Any:
            yield {"model_name": VLLM.model, "inputs": generate("<made-up delay_s=0.05>", 2000)}

        async with aioclient.InferenceServerClient(address) as client:
            with pytest.raises(Exception, match="Deadline Exceeded"):
                async for _ in client.stream_infer(requests(), stream_timeout=0.5):
                    pass

    asyncio.run(story())
    until(lambda: triton.running_requests() == 0, "the engine is free", 5)


def test_large_tensors(address: str) -> None:
    """8 MB there and back."""
    text = "x" * (8 << 20)

    async def story() -> bytes:
        async def requests() -> Any:
            yield {"model_name": VLLM.model, "inputs": generate(text, 1, stream=False)}

        async with aioclient.InferenceServerClient(address) as client:
            async for result, error in client.stream_infer(requests()):
                assert error is None
                return bytes(result.as_numpy("text_output")[0])
        raise AssertionError

    assert asyncio.run(story()).startswith(text.encode())


def test_two_servers(installation: Installation, servers: list[Triton]) -> None:
    """Load spreads, a prompt that was seen goes back, and the death of one is mended."""
    pair = [Triton(installation, f"pair{n}", models=["vllm_early"]) for n in range(2)]
    servers += pair
    for server in pair:
        server.start()
    for server in pair:
        server.wait_ready()
    with lane.running(pair) as (gateway, address):
        asyncio.run(spread(address, pair))
        asyncio.run(meet(address, gateway))
        asyncio.run(mend(address, pair))
        until(lambda: gateway.in_flight() == 0, "nothing is left behind")


def running(server: Triton) -> int:
    return int(server.metric("vllm:num_requests_running"))


async def spread(address: str, pair: list[Triton]) -> None:
    async with Client(address) as client:
        prompts = [f"{n} <made-up delay_s=0.05>" for n in range(8)]
        tasks = [asyncio.create_task(client.text(VLLM_EARLY, one, 30)) for one in prompts]
        await asyncio.to_thread(
            until, lambda: [running(server) for server in pair] == [4, 4], "four each"
        )
        await asyncio.gather(*tasks)


async def meet(address: str, gateway: Gateway) -> None:
    def dispatched() -> list[int]:
        return [int(one["load"]["in_flight"]) for one in gateway.endpoints()]

    text = "The same long beginning of a prompt, again and again. " * 200
    places = []
    async with Client(address) as client:
        for number in range(4):
            inputs = VLLM_EARLY.inputs(f"{text} {number} <made-up delay_s=0.05>", 20)
            async with client.open(VLLM_EARLY, inputs) as parts:
                await anext(parts)
                places.append((await asyncio.to_thread(dispatched)).index(1))
                async for _ in parts:
                    pass
    assert len(set(places)) == 1


async def mend(address: str, pair: list[Triton]) -> None:
    async with Client(address) as client:
        prompts = [f"{n} <made-up text=count delay_s=0.05>" for n in range(8)]
        tasks = [asyncio.create_task(client.text(VLLM_EARLY, one, 30)) for one in prompts]
        await asyncio.to_thread(until, lambda: min(map(running, pair)) > 1, "some on each")
        await asyncio.sleep(0.3)
        await asyncio.to_thread(pair[1].kill)
        found = await asyncio.gather(*tasks, return_exceptions=True)
        lost = [str(one) for one in found if isinstance(one, InferenceServerException)]
        assert 1 < len(lost) < 7
        assert sum(one == numbers(30) for one in found) == 8 - len(lost)
        assert all("closed the connection" in text for text in lost)
        # Nobody who comes now is told.
        again = [client.text(VLLM_EARLY, COUNTING, 3) for _ in range(8)]
        assert set(await asyncio.gather(*again)) == {numbers(3)}
