"""What a client of OpenAI's or Anthropic's own library sees does not depend on the gateway."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from tests.vllm.server import EMBEDDING_MODEL, MODEL, Server

pytestmark = pytest.mark.engines

TIMEOUT_S = 60.0
MESSAGES: list[Any] = [{"role": "user", "content": "Tell me a story about the river."}]
GREEDY: dict[str, Any] = {"model": MODEL, "temperature": 0}
CITY_AND_SUN = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        # Not a number: a random model writes digits to the end.
        "sun": {"type": "boolean"},
    },
    "required": ["city", "sun"],
    "additionalProperties": False,
}
WEATHER: list[Any] = [
    {
        "type": "function",
        # Without `strict` this engine lets a model write any JSON for the arguments.
        "function": {"name": "get_weather", "strict": True, "parameters": CITY_AND_SUN},
    }
]
GET_WEATHER: Any = {"type": "function", "function": {"name": "get_weather"}}


def openai_client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT_S)


def async_openai_client(url: str) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(
        base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT_S
    )


@pytest.fixture
def client(base_url: str) -> Iterator[openai.OpenAI]:
    with openai_client(base_url) as client:
        yield client


@pytest.fixture
def claude(base_url: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(
        base_url=base_url, api_key="none", max_retries=0, timeout=TIMEOUT_S
    ) as client:
        yield client


def chat_text(client: openai.OpenAI, tokens: int) -> str:
    answer = client.chat.completions.create(messages=MESSAGES, max_tokens=tokens, **GREEDY)
    return answer.choices[0].message.content or ""


def joined(chunks: list[ChatCompletionChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


def check_weather(arguments: str) -> None:
    found = json.loads(arguments)
    assert set(found) == {"city", "sun"}
    assert isinstance(found["sun"], bool)


def test_models(client: openai.OpenAI) -> None:
    assert MODEL in [model.id for model in client.models.list()]


def test_one_model(through_gateway: None, client: openai.OpenAI) -> None:
    # The gateway's own route: this engine has none.
    assert client.models.retrieve(MODEL).id == MODEL


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(messages=MESSAGES, max_tokens=12, **GREEDY)
    assert answer.model == MODEL
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12


def test_chat_async_many_at_once(base_url: str, client: openai.OpenAI) -> None:
    async def ask() -> list[str | None]:
        async with async_openai_client(base_url) as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(messages=MESSAGES, max_tokens=12, **GREEDY)
                    for _ in range(16)
                )
            )
        return [answer.choices[0].message.content for answer in answers]

    assert set(asyncio.run(ask())) == {chat_text(client, 12)}


def test_request_id_reaches_the_engine(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        messages=MESSAGES, max_tokens=1, extra_headers={"x-request-id": "lane-1"}, **GREEDY
    )
    assert answer.id == "chatcmpl-lane-1"


def test_stop_word(client: openai.OpenAI) -> None:
    text = chat_text(client, 12)
    word = text[len(text) // 2 :][:3]
    answer = client.chat.completions.create(messages=MESSAGES, max_tokens=12, stop=word, **GREEDY)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == text[: text.index(word)]


def test_completions_with_two_prompts(client: openai.OpenAI) -> None:
    prompts = ["Once upon a time", "Please count from one"]
    both = client.completions.create(prompt=prompts, max_tokens=8, **GREEDY)
    each = [client.completions.create(prompt=p, max_tokens=8, **GREEDY) for p in prompts]
    assert [choice.text for choice in both.choices] == [one.choices[0].text for one in each]


def test_completions_stream(client: openai.OpenAI) -> None:
    prompt = "Once upon a time"
    whole = client.completions.create(prompt=prompt, max_tokens=20, **GREEDY)
    with client.completions.create(prompt=prompt, max_tokens=20, stream=True, **GREEDY) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert chunks[-1].choices[0].finish_reason == "length"


def test_chat_stream_without_usage(client: openai.OpenAI) -> None:
    with client.chat.completions.create(
        messages=MESSAGES, max_tokens=40, stream=True, **GREEDY
    ) as stream:
        chunks = list(stream)
    assert joined(chunks) == chat_text(client, 40)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "length"
    # Counting tokens is the gateway's business and must not show.
    assert [chunk.usage for chunk in chunks] == [None] * len(chunks)


def test_chat_stream_with_usage(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=MESSAGES, max_tokens=40, **GREEDY)
    with client.chat.completions.create(
        messages=MESSAGES,
        max_tokens=40,
        stream=True,
        stream_options={"include_usage": True},
        **GREEDY,
    ) as stream:
        chunks = list(stream)
    assert joined(chunks) == whole.choices[0].message.content
    assert not chunks[-1].choices
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert [chunk.usage for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)


def test_chat_stream_async_many_at_once(base_url: str, client: openai.OpenAI) -> None:
    async def one(client: openai.AsyncOpenAI) -> str:
        async with await client.chat.completions.create(
            messages=MESSAGES, max_tokens=60, stream=True, **GREEDY
        ) as stream:
            return joined([chunk async for chunk in stream])

    async def ask() -> list[str]:
        async with async_openai_client(base_url) as client:
            return await asyncio.gather(*(one(client) for _ in range(12)))

    assert set(asyncio.run(ask())) == {chat_text(client, 60)}


def test_several_choices(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=6, n=3, temperature=1, seed=7
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in answer.choices}) > 1
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 18


def test_several_choices_stream(client: openai.OpenAI) -> None:
    texts = {0: "", 1: "", 2: ""}
    finished = []
    with client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=6, n=3, temperature=1, seed=7, stream=True
    ) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                finished += [choice.index] if choice.finish_reason else []
    assert all(texts.values())
    assert sorted(finished) == [0, 1, 2]


def test_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        messages=MESSAGES, max_tokens=4, logprobs=True, top_logprobs=3, **GREEDY
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 4
    for token in logprobs.content:
        assert len(token.top_logprobs) == 3
        # Greedy: the chosen token is the likeliest.
        assert token.logprob == max(other.logprob for other in token.top_logprobs) <= 0


def test_completions_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        prompt="Once upon a time", max_tokens=4, logprobs=2, **GREEDY
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert "".join(logprobs.tokens) == answer.choices[0].text


def test_tool_call(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        messages=MESSAGES,
        max_tokens=120,
        tools=WEATHER,
        tool_choice=GET_WEATHER,
        **GREEDY,
    )
    calls = answer.choices[0].message.tool_calls
    assert calls is not None
    assert calls[0].type == "function"
    assert calls[0].function.name == "get_weather"
    check_weather(calls[0].function.arguments)


def test_tool_call_stream(client: openai.OpenAI) -> None:
    name = arguments = ""
    with client.chat.completions.create(
        messages=MESSAGES,
        max_tokens=120,
        stream=True,
        tools=WEATHER,
        tool_choice=GET_WEATHER,
        **GREEDY,
    ) as stream:
        for chunk in stream:
            for call in chunk.choices[0].delta.tool_calls or []:
                assert call.function is not None
                name += call.function.name or ""
                arguments += call.function.arguments or ""
    assert name == "get_weather"
    check_weather(arguments)


def test_json_schema(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        messages=MESSAGES,
        max_tokens=120,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "weather", "strict": True, "schema": CITY_AND_SUN},
        },
        **GREEDY,
    )
    assert answer.choices[0].finish_reason == "stop"
    check_weather(answer.choices[0].message.content or "")


def test_responses(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input="Hello there!", max_output_tokens=16)
    assert answer.status == "incomplete"
    assert answer.output_text
    assert answer.usage is not None
    assert answer.usage.output_tokens == 16


def test_messages(claude: anthropic.Anthropic) -> None:
    answer = claude.messages.create(model=MODEL, max_tokens=10, messages=MESSAGES)
    assert answer.stop_reason == "max_tokens"
    assert answer.content[0].type == "text"
    assert answer.usage.output_tokens == 10


def test_messages_async(base_url: str) -> None:
    async def ask() -> anthropic.types.Message:
        async with anthropic.AsyncAnthropic(
            base_url=base_url, api_key="none", max_retries=0, timeout=TIMEOUT_S
        ) as client:
            return await client.messages.create(model=MODEL, max_tokens=10, messages=MESSAGES)

    assert asyncio.run(ask()).usage.output_tokens == 10


def test_messages_stream(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(model=MODEL, max_tokens=10, messages=MESSAGES) as stream:
        text = "".join(stream.text_stream)
        last = stream.get_final_message()
    assert last.content[0].type == "text"
    assert last.content[0].text == text != ""
    assert last.usage.output_tokens == 10


def test_messages_unknown_model(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError) as caught:
        claude.messages.create(model="unheard-of", max_tokens=10, messages=MESSAGES)
    body = caught.value.body
    assert isinstance(body, dict)
    assert body["type"] == "error"
    assert set(body["error"]) >= {"type", "message"}


# Faults only the engine can find: its own answer must come through, byte for byte.
ENGINE_FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "temperature": ("chat/completions", {"messages": MESSAGES, "temperature": -1}),
    "max_tokens": ("chat/completions", {"messages": MESSAGES, "max_tokens": 0}),
    "too_many_tokens": ("chat/completions", {"messages": MESSAGES, "max_tokens": 99999}),
    "stream_options": (
        "chat/completions",
        {"messages": MESSAGES, "stream_options": {"include_usage": True}},
    ),
    "no_messages": ("chat/completions", {"messages": []}),
    "messages_missing": ("chat/completions", {}),
    "wrong_type": ("chat/completions", {"messages": "text"}),
    "prompt_too_long": ("completions", {"prompt": "one two " * 9000}),
    "stream_of_a_prompt_too_long": ("completions", {"prompt": "one two " * 9000, "stream": True}),
    "messages_route": ("messages", {"messages": MESSAGES, "max_tokens": 0}),
    "embeddings_not_served": ("embeddings", {"input": "text"}),
}


@pytest.mark.parametrize(("path", "body"), ENGINE_FAULTS.values(), ids=list(ENGINE_FAULTS))
def test_engine_error_is_intact(
    base_url: str, pair: list[Server], path: str, body: dict[str, Any]
) -> None:
    request = {"model": MODEL, **body}
    with httpx.Client(timeout=TIMEOUT_S) as client:
        answer = client.post(f"{base_url}/v1/{path}", json=request)
        own = client.post(f"{pair[0].url}/v1/{path}", json=request)
    assert own.status_code in (400, 404)
    assert answer.status_code == own.status_code
    assert answer.content == own.content
    assert answer.headers["content-type"] == own.headers["content-type"]


def test_error_as_the_library_shows_it(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=-1)
    assert caught.value.param == "temperature"
    assert caught.value.type == "BadRequestError"


def test_unknown_model(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="unheard-of", messages=MESSAGES)
    body = caught.value.body
    assert isinstance(body, dict)
    assert set(body) >= {"message", "type", "param", "code"}
    assert "unheard-of" in body["message"]


@pytest.mark.parametrize(
    "body", [b'{"model": "tiny"', b"[]", b""], ids=["cut_off", "list", "empty"]
)
def test_not_a_json_object(base_url: str, body: bytes) -> None:
    # Whoever refuses it: the status and the shape are the same.
    with httpx.Client(timeout=TIMEOUT_S) as client:
        answer = client.post(
            f"{base_url}/v1/chat/completions",
            content=body,
            headers={"content-type": "application/json"},
        )
    assert answer.status_code == 400
    assert set(answer.json()["error"]) >= {"message", "type", "param", "code"}


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings(embedding_url: str, encoding: Any) -> None:
    with openai_client(embedding_url) as client:
        answer = client.embeddings.create(
            model=EMBEDDING_MODEL, input=["the river", "the sea"], encoding_format=encoding
        )
    assert [one.index for one in answer.data] == [0, 1]
    assert answer.usage.prompt_tokens > 0
    vectors = [one.embedding for one in answer.data]
    assert vectors[0] != vectors[1]
    if encoding == "float":
        assert math.isclose(sum(x * x for x in vectors[0]), 1.0, rel_tol=1e-3)


def test_two_kinds_of_engine(through_gateway: None, embedding_url: str) -> None:
    with openai_client(embedding_url) as client:
        assert {model.id for model in client.models.list()} == {MODEL, EMBEDDING_MODEL}
        for _ in range(4):
            assert chat_text(client, 4)
            answer = client.embeddings.create(model=EMBEDDING_MODEL, input="the river")
            assert len(answer.data) == 1
