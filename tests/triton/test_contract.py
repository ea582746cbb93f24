"""The suite that a vLLM must pass through the gateway, asked of models in Triton: those parts of it
that a flavour can do. What none can do is refused, in the words of the field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.engines.tokens.models import write_folder
from tests.real import headgate_process
from tests.real.headgate_process import Gateway
from tests.triton.server import Triton
from tests.vllm import test_contract as suite
from tests.vllm.test_contract import (  # noqa: F401 - collected here
    CITY_AND_SUN,
    GET_WEATHER,
    MESSAGES,
    TIMEOUT_S,
    WEATHER,
    client,
    test_chat,
    test_chat_async_many_at_once,
    test_chat_stream_async_many_at_once,
    test_chat_stream_with_usage,
    test_chat_stream_without_usage,
    test_completions_stream,
    test_completions_with_two_prompts,
    test_json_schema,
    test_models,
    test_not_a_json_object,
    test_one_model,
    test_several_choices,
    test_several_choices_stream,
    test_stop_word,
    test_tool_call,
    test_tool_call_stream,
    test_unknown_model,
)

pytestmark = pytest.mark.engines

# Which run the suite; what each model has of its own is asked of all.
MAIN = ("vllm_model", "ensemble")
FLAVOURS = (*MAIN, "vllm_early", "ensemble_early", "tensorrt_llm_bls", "llmapi")
# What of the suite no flavour can do is not imported: embeddings, Anthropic's messages and OpenAI's
# responses; they have their lines in `test_other_paths`. Logprobs are the vLLM backend's alone.
every_flavour = pytest.mark.parametrize("flavour", FLAVOURS, indirect=True, scope="module")


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer and the chat template of all models."""
    return write_folder(tmp_path_factory.mktemp("tokenizer") / "model", "chatml")


@pytest.fixture(scope="module", params=MAIN)
def flavour(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def gateway(triton: Triton, tokenizer: Path) -> Iterator[Gateway]:
    rules = {flavour: {"tokenizer": str(tokenizer)} for flavour in FLAVOURS}
    with headgate_process.running([f"triton={triton.url}"], models=rules) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def base_url(gateway: Gateway) -> str:
    return gateway.url


@pytest.fixture(autouse=True)
def ask_the_flavour(flavour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite names its model in these two."""
    monkeypatch.setattr(suite, "MODEL", flavour)
    monkeypatch.setitem(suite.GREEDY, "model", flavour)


REFUSALS: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "temperature": ("chat/completions", {"messages": MESSAGES, "temperature": -1}, "temperature"),
    "max_tokens": ("chat/completions", {"messages": MESSAGES, "max_tokens": 0}, "max_tokens"),
    "tool": (
        "chat/completions",
        {"messages": MESSAGES, "tools": WEATHER, "tool_choice": {"type": "function"}},
        "tool_choice",
    ),
    "format": (
        "chat/completions",
        {"messages": MESSAGES, "response_format": {"type": "yaml"}},
        "response_format",
    ),
    "token_ids": ("completions", {"prompt": [1, 2, 3]}, "prompt"),
    "wrong_type": ("chat/completions", {"messages": "text"}, "messages"),
}


@pytest.mark.parametrize(("path", "body", "field"), REFUSALS.values(), ids=list(REFUSALS))
def test_refused(
    base_url: str, flavour: str, path: str, body: dict[str, Any], field: str | None
) -> None:
    body = {"model": flavour, **body}
    answer = httpx.post(f"{base_url}/v1/{path}", json=body, timeout=TIMEOUT_S)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == field
    assert error["message"]


# What only some flavours do; all others refuse it.
LOGPROBS = {"messages": MESSAGES, "logprobs": True}
SCHEMA = {
    "messages": MESSAGES,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "weather", "schema": CITY_AND_SUN},
    },
}
FORCED = {"messages": MESSAGES, "tools": WEATHER, "tool_choice": GET_WEATHER}
ABLE = {
    "logprobs": (LOGPROBS, ("vllm_model",)),
    "response_format": (SCHEMA, ("vllm_model", "ensemble", "tensorrt_llm_bls")),
    "tool_choice": (FORCED, ("vllm_model", "ensemble", "tensorrt_llm_bls")),
}


@every_flavour
@pytest.mark.parametrize("field", ABLE)
def test_some_flavours_can(base_url: str, flavour: str, field: str) -> None:
    body, able = ABLE[field]
    url = f"{base_url}/v1/chat/completions"
    answer = httpx.post(url, json={"model": flavour, **body}, timeout=TIMEOUT_S)
    if flavour in able:
        assert answer.status_code == 200, answer.text
    else:
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == field


@pytest.mark.parametrize("flavour", ["vllm_model"], indirect=True, scope="module")
def test_logprobs(base_url: str) -> None:
    with suite.openai_client(base_url) as asking:
        suite.test_logprobs(asking)
        suite.test_completions_logprobs(asking)


@pytest.mark.parametrize("flavour", ["vllm_model"], indirect=True, scope="module")
def test_logprobs_of_a_stream(base_url: str) -> None:
    """Those of every token, each with the event that has its text or with a later one."""
    text, told = "", []
    with suite.openai_client(base_url) as asking:
        stream = asking.chat.completions.create(
            messages=MESSAGES, max_tokens=9, stream=True, logprobs=True, **suite.GREEDY
        )
        for choice in (choice for chunk in stream for choice in chunk.choices):
            text += choice.delta.content or ""
            told += (choice.logprobs and choice.logprobs.content) or []
    assert len(told) == 9
    assert "".join(one.token for one in told) == text


@pytest.mark.parametrize("path", ["messages", "responses", "embeddings"])
def test_other_paths(base_url: str, flavour: str, path: str) -> None:
    body = {"model": flavour, "messages": MESSAGES, "max_tokens": 4, "input": "Hi"}
    answer = httpx.post(f"{base_url}/v1/{path}", json=body, timeout=TIMEOUT_S)
    assert answer.status_code == 404
    assert "/v1/chat/completions" in json.dumps(answer.json()["error"])


COUNTING = "<made-up text=count>"
LETTERS = "Grüße aus Zürich"


def say(base_url: str, prompt: str, tokens: int, **more: Any) -> str:
    """The text of a stream."""
    with suite.openai_client(base_url) as asking:
        stream = asking.completions.create(
            prompt=prompt, max_tokens=tokens, stream=True, **suite.GREEDY, **more
        )
        return "".join(choice.text for chunk in stream for choice in chunk.choices)


@every_flavour
def test_each_token_is_told_once(base_url: str) -> None:
    wanted = "".join(f" {number}" for number in range(60))
    for prompt in (COUNTING, "<made-up text=count per_response=7>"):
        assert say(base_url, prompt, 60) == wanted


@every_flavour
def test_stop_across_tokens(base_url: str) -> None:
    """Never told, wherever the model's tokens divide it."""
    assert say(base_url, COUNTING, 60, stop="9 1") == " 0 1 2 3 4 5 6 7 8 "
    assert say(base_url, COUNTING, 60, stop=["1 12", " 30"]) == " 0 1 2 3 4 5 6 7 8 9 10 1"


@every_flavour
def test_letters_of_several_tokens(base_url: str, flavour: str) -> None:
    """What an ensemble has lost is lost; everywhere else each letter comes once and whole."""
    text = say(base_url, "<made-up text=letters>", len(LETTERS.encode()))
    if flavour.startswith("ensemble"):
        assert text == "".join("\ufffd" * len(c.encode()) if c > "~" else c for c in LETTERS)
    else:
        assert text == LETTERS


@every_flavour
def test_failure_in_a_stream(base_url: str, flavour: str) -> None:
    if flavour == "tensorrt_llm_bls":
        pytest.skip("Triton does not tell it that a step failed")
    with pytest.raises(openai.APIError, match="the made-up engine failed at token 3"):
        say(base_url, "<made-up text=count fail_at=3 delay_s=0.02>", 10)
