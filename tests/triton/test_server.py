"""What the gateway must cope with, seen at a Triton alone: its own behaviour, and that the
stand-ins are like the backends in whose places they are."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc.aio
import numpy as np
import pytest
import tritonclient.grpc as grpcclient
from tritonclient.utils import InferenceServerException

from tests.real.server import ServerError
from tests.triton.client import (
    BLS,
    ENSEMBLE,
    FLAVOURS,
    LLMAPI,
    VLLM,
    VLLM_EARLY,
    Client,
    Flavour,
    Part,
)
from tests.triton.environment import Installation
from tests.triton.server import Triton

pytestmark = pytest.mark.engines

COUNTING = "<made-up text=count>"
LETTERS = "Grüße aus Zürich"
FREED_LIMIT_S = 5.0
HANG_S = 60.0

each_flavour = pytest.mark.parametrize("flavour", FLAVOURS, ids=lambda flavour: flavour.model)


def numbers(count: int) -> str:
    return "".join(f" {number}" for number in range(count))


def run(server: Triton, story: Callable[[Client], Any]) -> Any:
    async def play() -> Any:
        async with asyncio.timeout(HANG_S), Client(server.grpc_address) as client:
            return await story(client)

    return asyncio.run(play())


def wait_until(condition: Callable[[], bool], limit_s: float, what: str) -> float:
    since_s = time.monotonic()
    while not condition():
        assert time.monotonic() - since_s < limit_s, f"not after {limit_s} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - since_s


@each_flavour
def test_a_stream_has_what_the_whole_answer_has(triton: Triton, flavour: Flavour) -> None:
    async def story(client: Client) -> None:
        parts = await client.ask(flavour, COUNTING, 20)
        assert [part.final for part in parts] == [False] * (len(parts) - 1) + [True]
        assert sum(bool(part.texts) for part in parts) == 20
        assert await client.text(flavour, COUNTING, 20) == numbers(20)
        whole = await client.ask(flavour, COUNTING, 20, stream=False)
        assert [part.texts for part in whole if part.texts] == [[numbers(20)]]

    run(triton, story)


@each_flavour
def test_same_prompt_same_text(triton: Triton, flavour: Flavour) -> None:
    async def story(client: Client) -> None:
        texts = [await client.text(flavour, prompt, 12) for prompt in ("One.", "One.", "Two.")]
        assert texts[0] == texts[1] != texts[2]

    run(triton, story)


INPUTS = {
    VLLM: "text_input stream sampling_parameters return_num_output_tokens return_finish_reason",
    VLLM_EARLY: "text_input stream sampling_parameters exclude_input_in_output",
    ENSEMBLE: "text_input max_tokens stop_words seed return_num_output_tokens lora_task_id",
    BLS: "text_input max_tokens stop_words seed return_num_output_tokens stream",
    LLMAPI: "text_input streaming sampling_param_max_tokens return_finish_reason",
}


@pytest.mark.parametrize("flavour", INPUTS, ids=lambda flavour: flavour.model)
def test_inputs_tell_the_flavour(triton: Triton, flavour: Flavour) -> None:
    with grpcclient.InferenceServerClient(triton.grpc_address) as client:
        config = client.get_model_config(flavour.model).config
    assert {item.name for item in config.input} >= set(INPUTS[flavour].split())
    assert (config.max_batch_size > 0) == flavour.batched
    assert config.model_transaction_policy.decoupled
    if flavour is VLLM_EARLY:
        assert not any(item.name.startswith("return_") for item in config.input)


@pytest.mark.parametrize(
    ("flavour", "special_tokens"), [(VLLM, 0), (ENSEMBLE, 1), (BLS, 1)], ids=["vllm", "trt", "bls"]
)
def test_counts(triton: Triton, flavour: Flavour, special_tokens: int) -> None:
    """Of the prompt in each response; of the answer what is new in it."""
    wanted = {"return_num_input_tokens": True, "return_num_output_tokens": True}

    async def story(client: Client) -> None:
        prompt = "<made-up text=count per_response=4>"
        parts = await client.ask(flavour, prompt, 10, **wanted)
        parts = [part for part in parts if part.texts]
        assert [part.one("num_output_tokens") for part in parts] == [4, 4, 2]
        assert parts[0].one("num_input_tokens") == len(prompt) + special_tokens

    run(triton, story)


@pytest.mark.parametrize("flavour", [VLLM, LLMAPI], ids=lambda flavour: flavour.model)
def test_finish_reasons(triton: Triton, flavour: Flavour) -> None:
    async def story(client: Client) -> None:
        for prompt, reason in ((COUNTING, "length"), ("<made-up end_at=2>", "stop")):
            parts = await client.ask(flavour, prompt, 4, return_finish_reason=True)
            reasons = [part.one("finish_reason") for part in parts if part.texts]
            assert reasons == ["None"] * (len(reasons) - 1) + [reason]

    run(triton, story)


@each_flavour
def test_letters_of_several_tokens(triton: Triton, flavour: Flavour) -> None:
    """An ensemble decodes each response by itself, and loses what is not whole in one."""

    async def story(client: Client) -> None:
        text = await client.text(flavour, "<made-up text=letters>", len(LETTERS.encode()))
        if flavour.model.startswith("ensemble"):
            assert text == "".join("\ufffd" * len(c.encode()) if c > "~" else c for c in LETTERS)
        else:
            assert text == LETTERS

    run(triton, story)


# vLLM and the LLM API leave the stop string out; TensorRT-LLM's token ids keep it.
STOPPED = {VLLM: 7, VLLM_EARLY: 7, LLMAPI: 7, ENSEMBLE: 8, BLS: 8}


@pytest.mark.parametrize("flavour", STOPPED, ids=lambda flavour: flavour.model)
def test_stop_string(triton: Triton, flavour: Flavour) -> None:
    async def story(client: Client) -> None:
        text = await client.text(flavour, COUNTING, 20, stop=" 7")
        assert text == numbers(STOPPED[flavour])

    run(triton, story)


@pytest.mark.parametrize(
    ("flavour", "said"),
    [
        (VLLM, "Error generating stream: the made-up engine failed at token 3"),
        (ENSEMBLE, "Encountered an error in forwardAsync function: the made-up engine"),
        (LLMAPI, "Error generating request: the made-up engine failed at token 3"),
    ],
    ids=lambda value: getattr(value, "model", ""),
)
def test_failure_in_a_stream(triton: Triton, flavour: Flavour, said: str) -> None:
    async def story(client: Client) -> None:
        inputs = flavour.inputs("<made-up text=count fail_at=3 delay_s=0.05>", 10)
        seen: list[Part] = []
        async with client.open(flavour, inputs) as parts:
            with pytest.raises(InferenceServerException) as caught:
                await read(parts, seen)
        # Through an ensemble an error may overtake the text of steps that still run.
        assert len(seen) == 3 or (flavour is ENSEMBLE and len(seen) == 2)
        assert said in str(caught.value)

    async def read(parts: AsyncIterator[Part], seen: list[Part]) -> None:
        async for part in parts:
            seen.append(part)

    run(triton, story)


def test_vllm_does_not_say_what_is_wrong_with_a_parameter(triton: Triton) -> None:
    async def story(client: Client) -> None:
        for parameters in ('{"temperature": -1}', '{"unheard_of": 1}', '{"n": 0}'):
            inputs = VLLM.inputs("Hi", 4) | {"sampling_parameters": parameters}
            async with client.open(VLLM, inputs) as parts:
                with pytest.raises(InferenceServerException, match="'NoneType' object"):
                    await anext(parts)

    run(triton, story)


@pytest.mark.parametrize("prompt", ["<made-up delay_s=0.02>", "<made-up hang_at=2>"])
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_cancel_frees_the_engine(
    triton: Triton, prompt: str, stream: bool, figure: Callable[[str], None]
) -> None:
    async def story(client: Client) -> None:
        async with client.open(VLLM, VLLM.inputs(prompt, 2000, stream=stream)) as parts:
            if stream:
                await anext(parts)
            else:
                # It is sent when the first response is asked for.
                first = asyncio.ensure_future(anext(parts))
                await asyncio.to_thread(wait_until, lambda: running() == 1, 5, "it runs")
                first.cancel()

    def running() -> int:
        return int(triton.metric("vllm:num_requests_running"))

    run(triton, story)
    freed_s = wait_until(lambda: running() == 0, FREED_LIMIT_S, "the engine is free")
    figure(f"Triton alone, cancel ({prompt}, stream={stream}): free in {freed_s * 1000:.0f} ms")


def test_cancel_does_not_reach_the_steps_of_an_ensemble(triton: Triton) -> None:
    async def story(client: Client) -> None:
        inputs = ENSEMBLE.inputs("<made-up delay_s=0.05>", 40)
        async with client.open(ENSEMBLE, inputs) as parts:
            await anext(parts)

    run(triton, story)
    time.sleep(0.5)
    assert triton.running_requests() == 1
    wait_until(lambda: triton.running_requests() == 0, 30, "the answer that nobody reads ends")


def test_a_plain_model(triton: Triton) -> None:
    with grpcclient.InferenceServerClient(triton.grpc_address) as client:
        inputs = []
        for name in "AB":
            inputs.append(grpcclient.InferInput(name, [1, 4], "FP32"))
            inputs[-1].set_data_from_numpy(np.array([[1, 2, 3, 4]], np.float32))
        assert client.infer("add", inputs).as_numpy("SUM").tolist() == [[2, 4, 6, 8]]


def test_full_queue(triton: Triton) -> None:
    """One is served, two wait, the others are refused at once."""
    body = {
        "inputs": [{"name": "SECONDS", "shape": [1, 1], "datatype": "FP32", "data": [0.3]}],
    }

    def ask(_: int) -> str:
        try:
            triton.post("/v2/models/narrow/infer", body)
            return "served"
        except ServerError as error:
            return str(error)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert answers.count("served") in (3, 4)
    refusals = {answer for answer in answers if answer != "served"}
    assert all(text.startswith("503") for text in refusals)
    assert all("Exceeds maximum queue size" in text for text in refusals)


def test_generate_stream_in_json(triton: Triton) -> None:
    """The other way to ask, for the record: no end mark, and an error is an event of a 200."""
    body = {"text_input": COUNTING, "stream": True, "sampling_parameters": '{"max_tokens": 3}'}
    events = triton.post("/v2/models/vllm_model/generate_stream", body).decode()
    data = [json.loads(line[6:]) for line in events.splitlines() if line.startswith("data: ")]
    assert [each["text_output"] for each in data] == [" 0", " 1", " 2"]
    body["text_input"] = "<made-up text=count fail_at=1>"
    events = triton.post("/v2/models/vllm_model/generate_stream", body).decode()
    assert "the made-up engine failed" in json.loads(events.splitlines()[-2][6:])["error"]
    # Several responses where one was asked for: an error under 200.
    assert b'"error"' in triton.post("/v2/models/vllm_model/generate", body | {"text_input": "Hi"})


def test_load_and_unload(installation: Installation, servers: list[Triton]) -> None:
    """Of a server of its own, strict about readiness, and one that is not beside it."""
    strict = Triton(installation, "strict", models=["vllm_early"])
    lenient = Triton(
        installation,
        "lenient",
        models=["vllm_early"],
        flags=[
            "--strict-readiness=false",
            "--http-restricted-api=model-repository:admin-key=secret",
        ],
    )
    servers += [strict, lenient]
    for server in (strict, lenient):
        server.start()
    for server in (strict, lenient):
        server.wait_ready()
    assert strict.index()["vllm_slow"] == ""
    check_slow_load(strict)
    check_broken_load(strict)
    check_unload_of_a_busy_model(strict)
    check_restricted(lenient)
    for server in (strict, lenient):
        server.terminate()  # without waiting for it


def check_slow_load(server: Triton) -> None:
    """While anything loads a strict server says that it is not ready; its models know better."""
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(server.load, "vllm_slow")
        wait_until(lambda: not server.healthy(), 10, "it loads")
        assert server.model_ready("vllm_early")
        loading.result()
    assert server.healthy()
    assert server.model_ready("vllm_slow")


def check_broken_load(server: Triton) -> None:
    with pytest.raises(ServerError, match=r"(?s)400 .*load failed.*CUDA out of memory"):
        server.load("vllm_broken")
    assert server.index()["vllm_broken"] == "UNAVAILABLE"
    # For good: until a load of it succeeds.
    server.unload("vllm_broken")
    assert not server.healthy()
    assert server.model_ready("vllm_early")
    with pytest.raises(ServerError, match="failed to poll from model repository"):
        server.load("unheard_of")


def check_unload_of_a_busy_model(server: Triton) -> None:
    async def story(client: Client) -> str:
        prompt = "<made-up text=count delay_s=0.05>"
        async with client.open(VLLM_EARLY, VLLM_EARLY.inputs(prompt, 20)) as parts:
            first = await anext(parts)
            await asyncio.to_thread(server.unload, "vllm_early")
            assert not await asyncio.to_thread(server.model_ready, "vllm_early")
            return first.texts[0] + "".join(["".join(part.texts) async for part in parts])

    assert run(server, story) == numbers(20)


def check_restricted(server: Triton) -> None:
    with pytest.raises(ServerError, match=r"403 .*admin-key"):
        server.index()
    body = {"parameters": {}}
    path = "/v2/repository/models/vllm_broken/load"
    with pytest.raises(ServerError, match="load failed"):
        server.post(path, body, **{"admin-key": "secret"})
    # Not strict: what failed to load does not count.
    assert server.healthy()


def test_death(installation: Installation, servers: list[Triton]) -> None:
    """SIGTERM lets streams finish and takes nothing new; SIGKILL ends all, stubs and memory too."""
    server = Triton(installation, "mortal", models=["vllm_early"])
    servers.append(server)
    server.start()
    server.wait_ready()

    async def killed(client: Client) -> None:
        inputs = VLLM_EARLY.inputs("<made-up delay_s=0.05>", 1000)
        async with client.open(VLLM_EARLY, inputs) as parts:
            await anext(parts)
            await asyncio.to_thread(server.kill)
            with pytest.raises(grpc.aio.AioRpcError):
                [part async for part in parts]

    async def terminated(client: Client) -> str:
        inputs = VLLM_EARLY.inputs("<made-up text=count delay_s=0.05>", 20)
        async with client.open(VLLM_EARLY, inputs) as parts:
            first = await anext(parts)
            server.terminate()
            return first.texts[0] + "".join(["".join(part.texts) async for part in parts])

    run(server, killed)
    assert not server.running()
    server.start()
    server.wait_ready()
    assert run(server, terminated) == numbers(20)
    assert server.wait_exit(20)
