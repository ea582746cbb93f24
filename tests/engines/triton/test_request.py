"""OpenAI's requests as what each flavour is asked."""

import json
import struct
from typing import Any

import msgspec
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
            "return_finish_reason": "BOOL",
            "return_logprobs": "BOOL",
            "return_num_output_tokens": "BOOL",
        },
        batched=False,
        streams=True,
        is_cumulative=False,
        cancels=True,
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
        batched=True,
        streams=True,
        is_cumulative=False,
        cancels=False,
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
        batched=False,
        streams=True,
        is_cumulative=False,
        cancels=True,
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
        ({"response_format": {"type": "yaml"}}, "response_format"),
        ({"response_format": "json_object"}, "response_format"),
        ({"structured_outputs": {"regex": "a+"}}, "structured_outputs"),
        ({"guided_json": {}}, "guided_json"),
    ],
)
def test_what_cannot_be_done_is_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(RefusedError) as refused:
        read(Flavour.TENSORRT_LLM, **fields)

    assert refused.value.field == field
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"seed": 1 << 31}, "seed must be at least 0, and at most 2147483647"),
        ({"temperature": -0.1}, "temperature must be at least 0"),
        ({"stop": ""}, "stop must be a text, or a list of texts, none of them empty"),
    ],
)
def test_the_refusal_says_what_would_do(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(RefusedError) as refused:
        read(Flavour.TENSORRT_LLM, **fields)

    assert str(refused.value) == text


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


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
BY_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
GUIDED = msgspec.structs.replace(
    MODELS[Flavour.TENSORRT_LLM],
    inputs={
        **MODELS[Flavour.TENSORRT_LLM].inputs,
        "guided_decoding_guide_type": "BYTES",
        "guided_decoding_guide": "BYTES",
    },
)


@pytest.mark.parametrize(
    ("fields", "outputs", "kind", "guide"),
    [
        ({"response_format": {"type": "json_object"}}, {"json_object": True}, "json", None),
        ({"response_format": BY_SCHEMA}, {"json": SCHEMA}, "json_schema", SCHEMA),
        ({"structured_outputs": {"json": SCHEMA}}, {"json": SCHEMA}, "json_schema", SCHEMA),
        ({"structured_outputs": {"regex": "a+"}}, {"regex": "a+"}, "regex", "a+"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, {"choice": ["a", "b"]}, None, None),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "weather"}}},
            {"json": SCHEMA},
            "json_schema",
            SCHEMA,
        ),
        ({"tools": TOOLS, "tool_choice": "required"}, {"json": SCHEMA}, "json_schema", SCHEMA),
    ],
)
def test_a_guide_reaches_the_model(
    fields: dict[str, Any], outputs: dict[str, Any], kind: str | None, guide: Any
) -> None:
    chat = {"messages": [], **fields}
    _, _, sent = inputs(read(Flavour.VLLM, CHAT, **chat))["sampling_parameters"]
    assert json.loads(json.loads(sent[4:])["structured_outputs"]) == outputs
    if kind is None:
        with pytest.raises(RefusedError, match="no input for what structured_outputs asks"):
            read_request(CHAT, json.dumps(chat).encode(), GUIDED)
        return
    seen = inputs(read_request(CHAT, json.dumps(chat).encode(), GUIDED))
    assert seen["guided_decoding_guide_type"] == ("BYTES", (1, 1), text(kind))
    if guide is None:
        assert "guided_decoding_guide" not in seen
    else:
        said = seen["guided_decoding_guide"][2][4:].decode()
        assert said == guide if isinstance(guide, str) else json.loads(said) == guide


@pytest.mark.parametrize(
    ("tools", "choice"),
    [
        (TOOLS, {"type": "function", "function": {"name": "time"}}),
        (TOOLS, {"type": "function"}),
        (TOOLS, "always"),
        ([], "required"),
        ([*TOOLS, {"type": "function", "function": {"name": "time"}}], "required"),
        (None, {"type": "function", "function": {"name": "weather"}}),
    ],
)
def test_a_choice_of_tools_that_cannot_be_made(tools: Any, choice: Any) -> None:
    read(Flavour.VLLM, CHAT, messages=[], tools=tools, tool_choice="auto")
    with pytest.raises(RefusedError) as refused:
        read(Flavour.VLLM, CHAT, messages=[], tools=tools, tool_choice=choice)
    assert refused.value.field == "tool_choice"


@pytest.mark.parametrize(
    ("path", "fields", "logprobs"),
    [
        (TEXT, {"logprobs": 3}, 3),
        (TEXT, {"logprobs": 0}, 0),
        (CHAT, {"logprobs": True}, 0),
        (CHAT, {"logprobs": True, "top_logprobs": 20}, 20),
    ],
)
def test_logprobs_are_asked_for(path: str, fields: dict[str, Any], logprobs: int) -> None:
    seen = inputs(read(Flavour.VLLM, path, messages=[], **fields))
    assert seen["return_logprobs"][2] == b"\x01"
    assert json.loads(seen["sampling_parameters"][2][4:])["logprobs"] == logprobs


@pytest.mark.parametrize(
    ("path", "fields", "field"),
    [
        (TEXT, {"logprobs": 21}, "logprobs"),
        (TEXT, {"logprobs": 1, "echo": True}, "echo"),
        (TEXT, {"logprobs": True}, "logprobs"),
        (CHAT, {"logprobs": 1}, "logprobs"),
        (CHAT, {"top_logprobs": 1}, "top_logprobs"),
        (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ],
)
def test_logprobs_that_cannot_be_had(path: str, fields: dict[str, Any], field: str) -> None:
    with pytest.raises(RefusedError) as refused:
        read(Flavour.VLLM, path, messages=[], **fields)
    assert refused.value.field == field
