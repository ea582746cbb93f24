"""Questions to an engine and its answers."""

from __future__ import annotations

import json
from array import array
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.tokens.ask import (
    Question,
    read_render,
    read_tokenize,
    render_question,
    tokenize_question,
)
from engines.tokens.probes import PROBES
from engines.tokens.prompt import PromptTokens
from tests.engines.tokens.requests import CHATS, COMPLETIONS, UNKNOWN, USER

CHAT = "/v1/chat/completions"


def asked(body: Any, path: str = CHAT) -> Any:
    question = tokenize_question(path, json.dumps(body).encode())
    assert question is not None
    assert question.path == "/tokenize"
    return json.loads(question.body)


def test_a_chat() -> None:
    body = {
        "model": "m",
        "messages": [USER, {"role": "assistant", "reasoning_content": "r"}],
        "max_tokens": 3,
        "documents": [{"title": "t"}],
        "reasoning_effort": "low",
        "chat_template_kwargs": {"x": 1},
    }
    assert asked(body) == {
        "model": "m",
        "messages": [
            USER,
            {"role": "assistant", "reasoning_content": "r", "reasoning": "r"},
        ],
        "chat_template_kwargs": {
            "x": 1,
            "documents": [{"title": "t"}],
            "reasoning_effort": "low",
            "enable_thinking": True,
        },
    }


def test_a_text() -> None:
    body = {"prompt": "a", "add_special_tokens": False, "max_tokens": 1}
    assert asked(body, "/v1/completions") == {"prompt": "a", "add_special_tokens": False}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": [1]}),
        ("/v1/completions", {"prompt": "a", "suffix": "b"}),
        ("/v1/completions", {"prompt": "a", "truncate_prompt_tokens": 1}),
        ("/v1/messages", {"messages": [USER]}),
        (CHAT, {"messages": 3}),
        (CHAT, []),
    ],
)
def test_what_tokenize_cannot_answer(path: str, body: Any) -> None:
    assert tokenize_question(path, json.dumps(body).encode()) is None


def test_nothing_but_json_is_asked() -> None:
    assert tokenize_question(CHAT, b"{") is None


def test_render() -> None:
    assert render_question(CHAT, b"{}") == Question(f"{CHAT}/render", b"{}")
    assert render_question("/v1/messages", b"x") == Question("/v1/messages/render", b"x")
    assert render_question("/v1/embeddings", b"{}") is None


@pytest.mark.parametrize(
    ("status", "body", "ids"),
    [
        (200, b'{"count":2,"tokens":[1,4294967295],"token_strs":null}', [1, 4294967295]),
        (400, b'{"tokens":[1]}', None),
        (200, b'{"tokens":[]}', None),
        (200, b'{"tokens":[-1]}', None),
        (200, b'{"tokens":[1.5]}', None),
        (200, b'{"tokens":[4294967296]}', None),
        (200, b'{"error":{}}', None),
        (200, b"[1]", None),
        (200, b"\xff", None),
    ],
)  # fmt: skip
def test_answers_of_tokenize(status: int, body: bytes, ids: list[int] | None) -> None:
    assert read_tokenize(status, body) == (None if ids is None else array("I", ids))


@pytest.mark.parametrize(
    ("status", "body", "ids"),
    [
        (200, b'{"token_ids":[1,2],"features":null}', [1, 2]),
        (200, b'[{"token_ids":[1,2]}]', [1, 2]),
        (200, b'[{"token_ids":[1]},{"token_ids":[2]}]', None),
        (200, b'{"token_ids":[1,2],"features":{"mm_hashes":{}}}', None),
        (200, b'{"token_ids":null}', None),
        (403, b'{"token_ids":[1]}', None),
    ],
)
def test_answers_of_the_renderer(status: int, body: bytes, ids: list[int] | None) -> None:
    assert read_render(status, body) == (None if ids is None else array("I", ids))


@given(st.binary(max_size=50), st.sampled_from(["/v1/completions", CHAT, "/x"]))
def test_anything_is_read(body: bytes, path: str) -> None:
    read_tokenize(200, body)
    read_render(200, body)
    tokenize_question(path, body)


@pytest.mark.parametrize("index", range(len(PROBES)))
def test_probes_are_known(prompts: dict[str, PromptTokens], index: int) -> None:
    path, body = PROBES[index]
    for kind in prompts:
        assert prompts[kind].ids(path, body) is not None
    assert tokenize_question(path, body) is not None


def test_every_request_of_the_tables_can_be_asked() -> None:
    for body in CHATS.values():
        assert asked(body)
    assert sum(isinstance(body["prompt"], str) for body in COMPLETIONS.values()) > 3
    assert UNKNOWN
