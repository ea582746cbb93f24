"""OpenAI's requests as what each flavour is asked."""

import json
import struct
from typing import Any

import pytest

from engines.triton import _wire
from engines.triton.model import Flavour, TritonModel
from engines.triton.request import Generation, RefusedError, read_request

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
COMMON = {"text_input": "BYTES", "stream": "BOOL"}
MODELS = {
    Flavour.VLLM: TritonModel(
        "m",
        Flavour.VLLM,
        {
            **COMMON,
            "sampling_parameters": "BYTES",
            "exclude_input_in_output": "BOOL",
            "return_num_output_tokens": "BOOL",
        },
        frozenset(("text_output",)),
        batched=False,
        streams=True,
        is_cumulative=False,
        abandons=True,
    ),
    Flavour.TENSORRT_LLM: TritonModel(
        "m",
        Flavour.TENSORRT_LLM,
        {
            **COMMON,
            "max_tokens": "INT32",
            "stop_words": "BYTES",
            "temperature": "FP32",
            "top_k": "INT32",
            "seed": "UINT64",
        },
        frozenset(("text_output",)),
        batched=True,
        streams=True,
        is_cumulative=False,
        abandons=False,
    ),
    Flavour.LLMAPI: TritonModel(
        "m",
        Flavour.LLMAPI,
        {
            "text_input": "BYTES",
            "streaming": "BOOL",
            "sampling_param_max_tokens": "INT32",
            "sampling_param_stop": "BYTES",
            "sampling_param_temperature": "FP32",
        },
        frozenset(("text_output",)),
        batched=False,
        streams=True,
        is_cumulative=False,
        abandons=True,
    ),
}


def read(flavour: Flavour, path: str = TEXT, **fields: Any) -> Generation:
    body = {"model": "m", "prompt": "one two", **fields}
    return read_request(path, json.dumps(body).encode(), MODELS[flavour])


Sent = tuple[str, tuple[int, ...], bytes]


def inputs(generation: Generation, choice: int = 0) -> dict[str, Sent]:
    """As they go over the wire: datatype, shape, contents."""
    seen = {}
    for name, value in generation._inputs("one two", choice):
        _, datatype, shape, values = generation._tensor(name, value)
        seen[name] = (datatype, shape, _wire.raw_contents(datatype, values))
    return seen


def text(*items: str) -> bytes:
    return b"".join(struct.pack("<I", len(item)) + item.encode() for item in items)


def test_vllm_gets_one_json_text() -> None:
    seen = inputs(read(Flavour.VLLM, max_tokens=5, temperature=0.5, seed=7, stop=["x"]), choice=2)

    assert set(seen) == set(MODELS[Flavour.VLLM].inputs)
    assert seen["text_input"] == ("BYTES", (1,), text("one two"))
    assert json.loads(seen["sampling_parameters"][2][4:]) == {
        "max_tokens": 5,
        "temperature": 0.5,
        "seed": 9,
        "stop": ["x"],
    }


def test_tensorrt_llm_gets_a_tensor_each() -> None:
    generation = read(Flavour.TENSORRT_LLM, max_tokens=5, temperature=0.5, seed=7, stop=["a", "bc"])

    assert inputs(generation) == {
        "text_input": ("BYTES", (1, 1), text("one two")),
        "stream": ("BOOL", (1, 1), b"\x01"),
        "max_tokens": ("INT32", (1, 1), struct.pack("<i", 5)),
        "stop_words": ("BYTES", (1, 2), text("a", "bc")),
        "temperature": ("FP32", (1, 1), struct.pack("<f", 0.5)),
        "top_k": ("INT32", (1, 1), struct.pack("<i", 0)),
        "seed": ("UINT64", (1, 1), struct.pack("<Q", 7)),
    }
    assert generation.cuts_stops


def test_llmapi_has_names_of_its_own() -> None:
    seen = inputs(read(Flavour.LLMAPI, max_tokens=5, temperature=0.5, stop="x"))

    assert set(seen) == set(MODELS[Flavour.LLMAPI].inputs)
    assert seen["sampling_param_stop"] == ("BYTES", (1,), text("x"))


def test_no_temperature_is_the_likeliest_token() -> None:
    seen = inputs(read(Flavour.TENSORRT_LLM, temperature=0, top_k=5))

    assert "temperature" not in seen
    assert seen["top_k"][2] == struct.pack("<i", 1)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"temperature": "warm"}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"seed": -1}, "seed"),
        ({"top_k": True}, "top_k"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"best_of": 3}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"logprobs": 2}, "logprobs"),
        ({"stop": [3]}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"stream": "yes"}, "stream"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)
def test_what_cannot_be_done_is_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(RefusedError) as refused:
        read(Flavour.TENSORRT_LLM, **fields)

    assert refused.value.field == field
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "fields",
    [
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "logprobs": None},
        {"user": "me", "metadata": {"a": "b"}, "store": True, "service_tier": "auto"},
        {"best_of": 1, "n": 1, "suffix": "", "response_format": {"type": "text"}},
        {"logprobs": False, "stop": None, "stream_options": None, "an_extra": [1]},
    ],
)
def test_what_changes_nothing_is_left_out(fields: dict[str, Any]) -> None:
    assert set(inputs(read(Flavour.TENSORRT_LLM, **fields))) == {
        "text_input",
        "stream",
        "max_tokens",
        "top_k",
    }


def test_other_paths_and_bodies_are_refused() -> None:
    model = MODELS[Flavour.VLLM]
    with pytest.raises(RefusedError, match="/v1/embeddings") as refused:
        read_request("/v1/embeddings", b"{}", model)
    assert refused.value.status == 404
    for body in (b"", b"[]", b"{", b"\xff"):
        with pytest.raises(RefusedError):
            read_request(TEXT, body, model)


def test_a_chat_names_its_tools_choice() -> None:
    tools = [{"type": "function", "function": {"name": "f"}}]
    read(Flavour.VLLM, CHAT, messages=[], tools=tools, tool_choice="auto")
    with pytest.raises(RefusedError, match="tool_choice"):
        read(Flavour.VLLM, CHAT, messages=[], tools=tools, tool_choice="required")
