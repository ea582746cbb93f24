"""What models in Triton say, as OpenAI says it."""

import json
import struct
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from engines.triton.model import Flavour, TritonModel
from engines.triton.request import read_request
from gateway.proxy._window import triton_answer


def model(flavour=Flavour.TENSORRT_LLM, is_cumulative=False):
    inputs = {"text_input": "BYTES", "max_tokens": "INT32"}
    return TritonModel(
        "m", flavour, inputs, batched=False, streams=True,
        is_cumulative=is_cumulative, cancels=True,
    )  # fmt: skip


def generation(of=None, chat=False, **fields):
    body = {"model": "m", "prompt": "p", "messages": [], "stream": True, **fields}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    return read_request(path, json.dumps(body).encode(), of or model())


def message(text=b"", final=False, finish=None, n_out=None, logprobs=None):
    """A ModelStreamInferResponse as Triton writes it."""
    response = service_pb2.ModelStreamInferResponse()
    infer = response.infer_response
    infer.model_name = "m"
    if final:
        infer.parameters["triton_final_response"].bool_param = True
    for name, datatype, raw in (
        ("text_output", "BYTES", struct.pack("<I", len(text)) + text),
        ("finish_reason", "BYTES", finish and struct.pack("<I", len(finish)) + finish),
        ("logprobs", "BYTES", logprobs and struct.pack("<I", len(logprobs)) + logprobs),
        ("num_output_tokens", "UINT32", n_out is not None and struct.pack("<I", n_out)),
    ):
        if raw:
            infer.outputs.add(name=name, datatype=datatype, shape=[1])
            infer.raw_output_contents.append(raw)
    return response.SerializeToString()


def events(answer):
    lines = answer.decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def told(answer, index=0):
    """(text, finish reason) of a choice."""
    text, finish = "", None
    for event in events(answer):
        for choice in event["choices"]:
            if choice["index"] == index:
                text += choice.get("text") or choice.get("delta", {}).get("content") or ""
                assert finish is None
                finish = choice["finish_reason"]
    return text, finish


def cut(data, places):
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


PLACES = st.lists(st.integers(0, 200), max_size=8)


@given(st.text(max_size=40), PLACES, st.booleans())
def test_a_text_comes_whole_however_it_is_cut(text, places, chat):
    pieces = cut(text.encode("utf-8", "replace"), places)
    answer = triton_answer(
        generation(chat=chat, max_tokens=1000),
        ["p"],
        [*((0, message(piece)) for piece in pieces), (0, message(final=True))],
    )

    assert told(answer) == (text.encode("utf-8", "replace").decode(), "stop")


@given(
    st.text("abcß", max_size=30),
    PLACES,
    st.lists(st.text("abcß", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_a_text_ends_before_its_first_stop(text, places, stops):
    ends = [text.find(stop) for stop in stops if stop in text]
    pieces = cut(text.encode(), places)
    answer = triton_answer(
        generation(stop=stops, max_tokens=1000),
        ["p"],
        [*((0, message(piece)) for piece in pieces), (0, message(final=True))],
    )

    said, finish = told(answer)
    assert finish == "stop"
    # Of stops that overlap the one that is whole first counts, wherever it begins.
    if not ends:
        assert said == text
    else:
        assert text.startswith(said)
        assert not any(stop in said for stop in stops)
        assert any(text.startswith(stop, len(said)) for stop in stops)


@given(st.text("aü😀", max_size=12), PLACES)
def test_texts_so_far_are_told_by_what_is_new(text, places):
    data = text.encode()
    sizes = sorted(place % (len(data) + 1) for place in places)
    so_far = [data[:size].decode("utf-8", "replace").encode() for size in sizes]
    answer = triton_answer(
        generation(model(Flavour.LLMAPI, is_cumulative=True), max_tokens=1000),
        ["p"],
        [*((0, message(one)) for one in [*so_far, data]), (0, message(final=True))],
    )

    assert told(answer)[0] == text


@pytest.mark.parametrize(
    ("messages", "max_tokens", "finish"),
    [
        ([message(b"a"), message(b"b", final=True)], 2, "length"),
        ([message(b"a"), message(b"b", final=True)], 3, "stop"),
        ([message(b"ab", n_out=3), message(final=True)], 3, "length"),
        ([message(b"a", finish=b"None"), message(b"b", finish=b"abort", final=True)], 2, "abort"),
        ([message(final=True)], 2, "stop"),
    ],
)
def test_why_it_ended(messages, max_tokens, finish):
    answer = triton_answer(generation(max_tokens=max_tokens), ["p"], [(0, one) for one in messages])

    assert told(answer)[1] == finish


def test_choices_are_told_apart_and_what_is_not_known_is_marked():
    answer = triton_answer(
        generation(n=2, echo=True, stream_options={"include_usage": True}),
        ["four words are here"],
        [
            (1, message(b"x")),
            (0, message(b'a\n"\\\x01')),
            (1, message(b"y", final=True)),
            (0, message(final=True)),
        ],
    )

    assert told(answer, 0) == ('four words are herea\n"\\\x01', "stop")
    assert told(answer, 1) == ("four words are herexy", "stop")
    usage = events(answer)[-1]["usage"]
    assert usage["completion_tokens"] == 3
    assert usage["estimated"] is True


def test_a_whole_answer_is_one_object():
    answer = json.loads(
        triton_answer(
            generation(chat=True, stream=False, max_tokens=2),
            ["p"],
            [(0, message("ü".encode())), (0, message(b"!", final=True))],
        )
    )

    (choice,) = answer["choices"]
    assert choice["message"] == {"role": "assistant", "content": "ü!"}
    assert choice["finish_reason"] == "length"
    assert answer["object"] == "chat.completion"


WEATHER = {"name": "weather", "parameters": {"type": "object"}}
TOOL = {
    "tools": [{"type": "function", "function": WEATHER}],
    "tool_choice": {"type": "function", "function": {"name": "weather"}},
}


def guided():
    names = ("return_finish_reason", "return_logprobs")
    inputs = {"text_input": "BYTES", "sampling_parameters": "BYTES", **dict.fromkeys(names, "BOOL")}
    return msgspec.structs.replace(model(Flavour.VLLM), inputs=inputs)


@pytest.mark.parametrize(
    ("choice", "finish"), [(TOOL["tool_choice"], "stop"), ("required", "tool_calls")]
)
def test_a_forced_tool_is_called_with_the_text(choice, finish):
    asked = {**TOOL, "tool_choice": choice}
    arguments = b'{"city": "Paris"}'
    said = [(0, message(arguments[:5])), (0, message(arguments[5:], finish=b"stop", final=True))]

    streamed = events(triton_answer(generation(guided(), chat=True, **asked), ["p"], said))
    deltas = [choice["delta"] for event in streamed for choice in event["choices"]]
    calls = [call for delta in deltas for call in delta.get("tool_calls", ())]
    assert [call["index"] for call in calls] == [0, 0, 0]
    assert calls[0]["type"] == "function"
    assert calls[0]["id"].startswith("call_")
    assert calls[0]["function"]["name"] == "weather"
    assert "".join(call["function"]["arguments"] for call in calls).encode() == arguments
    assert streamed[-1]["choices"][0]["finish_reason"] == finish

    whole = generation(guided(), chat=True, **asked, stream=False)
    (answer,) = json.loads(triton_answer(whole, ["p"], said))["choices"]
    (call,) = answer["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": arguments.decode()}
    assert answer["message"]["content"] is None
    assert answer["finish_reason"] == finish


def logprobs(*tokens):
    """As the vLLM backend writes them: the chosen token first, then others."""
    return json.dumps(
        [
            {
                str(rank): {"logprob": -0.5 * rank, "rank": rank, "decoded_token": token}
                for rank, token in ((2, chosen), (1, "likelier"))
            }
            for chosen in tokens
        ]
    ).encode()


def choices_of(answer, stream):
    """Of all events, or of the one answer."""
    told = events(answer) if stream else [json.loads(answer)]
    return [choice for one in told for choice in one["choices"]]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_a_chat(stream):
    # Half a letter is said later, its logprobs with it or after.
    said = [
        (0, message(b"a", logprobs=logprobs("a"))),
        (0, message("ß".encode()[:1], logprobs=logprobs("\ufffd"))),
        (0, message("ß".encode()[1:], logprobs=logprobs("\ufffd"))),
        (0, message(final=True, finish=b"stop", logprobs=b"null")),
    ]
    asked = generation(guided(), chat=True, logprobs=True, top_logprobs=1, stream=stream)
    answer = triton_answer(asked, ["p"], said)
    choices = choices_of(answer, stream)
    told = [one for c in choices for one in (c["logprobs"] or {"content": []})["content"]]
    assert [one["token"] for one in told] == ["a", "\ufffd", "\ufffd"]
    assert [one["logprob"] for one in told] == [-1.0] * 3
    assert [[other["token"] for other in one["top_logprobs"]] for one in told] == [["likelier"]] * 3
    assert told[0]["bytes"] == [97]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_of_a_completion(stream):
    said = [
        (0, message(b"one two", logprobs=logprobs("one", " two"))),
        (0, message(b" 3", final=True, finish=b"length", logprobs=logprobs(" 3"))),
    ]
    answer = triton_answer(generation(guided(), logprobs=2, stream=stream), ["p"], said)
    choices = choices_of(answer, stream)
    told = [c["logprobs"] for c in choices if c["logprobs"]]
    assert [t for one in told for t in one["tokens"]] == ["one", " two", " 3"]
    assert [t for one in told for t in one["text_offset"]] == [0, 3, 7]
    assert [t for one in told for t in one["token_logprobs"]] == [-1.0] * 3
    assert told[0]["top_logprobs"][0] == {"one": -1.0, "likelier": -0.5}


@pytest.mark.parametrize("bad", [b"[1]", b"{", b"7"])
def test_logprobs_that_cannot_be_read(bad):
    with pytest.raises(ValueError, match="logprobs"):
        triton_answer(generation(guided(), logprobs=2), ["p"], [(0, message(b"x", logprobs=bad))])
