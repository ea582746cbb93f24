"""Triton's own clients through the gateway's data port: they cannot tell it from a Triton."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.real.headgate_process import ADMIN_TOKEN, Gateway
from tests.triton import gateway as lane
from tests.triton.server import Triton

pytest.importorskip("geventhttpclient", reason="tritonclient[http] is not installed")
import tritonclient.http as httpclient
import tritonclient.http.aio as aioclient

pytestmark = pytest.mark.engines

ADMIN = {"authorization": f"Bearer {ADMIN_TOKEN}"}


@pytest.fixture(scope="module")
def gateway(triton: Triton) -> Iterator[Gateway]:
    with lane.running([triton]) as (gateway, _):
        yield gateway


def place(url: str) -> str:
    return url.removeprefix("http://")


def sums(binary: bool, names: str = "AB") -> dict[str, Any]:
    inputs = []
    for name in names:
        inputs.append(httpclient.InferInput(name, [1, 4], "FP32"))
        values = np.array([[1, 2, 3, 4]], np.float32)
        inputs[-1].set_data_from_numpy(values, binary_data=binary)
    outputs = [httpclient.InferRequestedOutput("SUM", binary_data=binary)]
    return {"model_name": "add", "inputs": inputs, "outputs": outputs}


def answer(result: Any) -> tuple[Any, list[Any]]:
    return result.get_response(), result.as_numpy("SUM").tolist()


SAME = {
    "live": lambda c: c.is_server_live(),
    "ready": lambda c: c.is_server_ready(),
    "model ready": lambda c: c.is_model_ready("vllm_model"),
    "version ready": lambda c: c.is_model_ready("vllm_model", "1"),
    "model not ready": lambda c: c.is_model_ready("unheard_of"),
    "metadata": lambda c: c.get_model_metadata("add", "1"),
    "config": lambda c: c.get_model_config("ensemble"),
    "binary": lambda c: answer(c.infer(**sums(True), request_id="7")),
    "JSON": lambda c: answer(c.infer(**sums(False))),
    "compressed": lambda c: answer(
        c.infer(
            **sums(True),
            request_compression_algorithm="gzip",
            response_compression_algorithm="deflate",
        )
    ),
    "async": lambda c: answer(c.async_infer(**sums(True)).get_result()),
    "missing input": lambda c: c.infer(**sums(True, "A")),
    "decoupled": lambda c: c.infer("vllm_model", sums(True)["inputs"]),
}


@pytest.mark.parametrize("name", SAME)
def test_same_as_a_triton(triton: Triton, gateway: Gateway, name: str) -> None:
    found = []
    for url in (triton.url, gateway.url):
        with httpclient.InferenceServerClient(place(url)) as client:
            try:
                found.append(SAME[name](client))
            except InferenceServerException as error:
                found.append((error.status(), error.message()))
    assert found[1] == found[0]


def test_repository(triton: Triton, gateway: Gateway) -> None:
    with httpclient.InferenceServerClient(place(gateway.url)) as client:
        for change in (client.load_model, client.unload_model):
            with pytest.raises(InferenceServerException, match=r"403.*admin token"):
                change("vllm_slow")
        client.load_model("vllm_slow", headers=ADMIN)
        assert triton.model_ready("vllm_slow")
        client.unload_model("vllm_slow", headers=ADMIN)
        states = {one["name"]: one["state"] for one in client.get_model_repository_index()}
        assert states["add"] == "READY"


def test_coroutines(gateway: Gateway) -> None:
    async def story() -> list[Any]:
        async with aioclient.InferenceServerClient(place(gateway.url)) as client:
            assert await client.is_server_ready()
            return await asyncio.gather(*(client.infer(**sums(True)) for _ in range(50)))

    assert [answer(one)[1] for one in asyncio.run(story())] == [[[2, 4, 6, 8]]] * 50


BODY = {"text_input": "<made-up text=count>", "sampling_parameters": '{"max_tokens": 5}'}
GENERATED = {
    "whole": ("vllm_model/generate", {**BODY, "stream": False}),
    "events": ("vllm_model/generate_stream", {**BODY, "stream": True, "id": "7"}),
    "ensemble": (
        "ensemble/generate_stream",
        {"text_input": "<made-up text=count>", "max_tokens": 5, "stream": True},
    ),
    "failing": (
        "vllm_model/generate_stream",
        {**BODY, "stream": True, "text_input": "<made-up fail_at=2>"},
    ),
    "many for one": ("vllm_model/generate", {**BODY, "stream": True}),
    "not JSON's type": ("vllm_model/generate", {"text_input": {"a": 1}}),
}


@pytest.mark.parametrize("name", GENERATED)
def test_generate(triton: Triton, gateway: Gateway, name: str) -> None:
    path, body = GENERATED[name]
    found = []
    for url in (triton.url, gateway.url):
        answer = httpx.post(f"{url}/v2/models/{path}", json=body, timeout=30, trust_env=False)
        found.append((answer.status_code, answer.content))
    assert found[1] == found[0]


def test_statistics(gateway: Gateway) -> None:
    with httpclient.InferenceServerClient(place(gateway.url)) as client:
        counts = []
        for _ in range(2):
            client.infer(**sums(True))
            found = client.get_inference_statistics("add")
            counts.append(found["model_stats"][0]["inference_count"])
        assert counts[1] == counts[0] + 1
