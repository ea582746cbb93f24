"""With usage only observed, an answer through the gateway is the engine's own answer.

Two views. A request sent to the engine and the same one sent through the gateway give two answers:
what differs between any two answers of the engine (the id, the time, the headers of a hop) is made
equal first. And one answer seen on both sides of the gateway: nothing may differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.real import headgate_process
from tests.vllm.server import MODEL, Server
from tests.vllm.tap import Tap

pytestmark = [pytest.mark.engines, pytest.mark.usefixtures("through_gateway")]

TIMEOUT_S = 60.0
# A server that falls behind puts two tokens in one event, as it often does where others use the
# machine: such a pair of answers cannot be compared, and the next one can.
ATTEMPTS = 8
MESSAGES = [{"role": "user", "content": "Tell me a story about the river."}]
CHAT = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 16}
TEXT = {"model": MODEL, "prompt": "Once upon a time", "temperature": 0, "max_tokens": 16}
STREAM = {"stream": True}
STREAM_USAGE = {"stream": True, "stream_options": {"include_usage": True}}
EVERY_USAGE = {
    "stream": True,
    "stream_options": {"include_usage": True, "continuous_usage_stats": True},
}
# This engine refuses several choices of a greedy answer.
CHOICES = {"n": 4, "temperature": 1}
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("chat/completions", CHAT),
    "chat_stream": ("chat/completions", CHAT | STREAM),
    "chat_stream_usage": ("chat/completions", CHAT | STREAM_USAGE),
    "chat_stream_usage_on_every_event": ("chat/completions", CHAT | EVERY_USAGE),
    "completions": ("completions", TEXT),
    "completions_stream": ("completions", TEXT | STREAM),
    "completions_stream_usage": ("completions", TEXT | STREAM_USAGE),
    "messages": ("messages", CHAT),
    "messages_stream": ("messages", CHAT | STREAM),
}
# Answers of many kilobytes, and the forms whose events the engine does not write twice alike.
LONG_REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "long_stream": ("completions", TEXT | STREAM | {"max_tokens": 1500}),
    "long_whole": ("completions", TEXT | CHOICES | {"max_tokens": 1000, "logprobs": 3}),
    "choices_stream": ("chat/completions", CHAT | STREAM_USAGE | CHOICES | {"max_tokens": 100}),
    "logprobs_stream": (
        "chat/completions",
        CHAT | STREAM | {"logprobs": True, "top_logprobs": 5, "max_tokens": 200},
    ),
    "messages_stream": ("messages", CHAT | STREAM | {"max_tokens": 300}),
}
HOP_HEADERS = {"connection", "keep-alive", "transfer-encoding", "date"}
# What the gateway adds to an answer under its own name, or because it made the request's id.
OWN_HEADERS = re.compile(r"x-headgate-.*|x-request-id")


def without_time(body: bytes) -> bytes:
    return re.sub(rb'"created":\d+', b'"created":0', body)


def comparable(body: bytes) -> bytes:
    return re.sub(rb'"id":"(chatcmpl|cmpl)-[^"]*"', b'"id":""', without_time(body))


def end_to_end(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return sorted(
        (name, value)
        for name, value in headers
        if name not in HOP_HEADERS and not OWN_HEADERS.fullmatch(name)
    )


def ask_both(
    own_url: str, url: str, path: str, body: dict[str, Any], name: str
) -> tuple[httpx.Response, httpx.Response]:
    """Until the two answers are equal, or as often as it may take."""
    with httpx.Client(timeout=TIMEOUT_S) as client:
        for attempt in range(ATTEMPTS):
            headers = {"x-request-id": f"{name}-{attempt}"} if name else {}
            own = client.post(f"{own_url}/v1/{path}", json=body, headers=headers)
            answer = client.post(f"{url}/v1/{path}", json=body, headers=headers)
            if comparable(answer.content) == comparable(own.content):
                break
    assert own.status_code == 200
    return own, answer


@pytest.mark.parametrize(("path", "body"), REQUESTS.values(), ids=list(REQUESTS))
def test_answer_equals_the_engines(
    base_url: str,
    pair: list[Server],
    path: str,
    body: dict[str, Any],
    request: pytest.FixtureRequest,
) -> None:
    # With a name for the request, the engine's id is the same too, and so is the length.
    name = f"equal-{request.node.callspec.id}"
    own, answer = ask_both(pair[0].url, base_url, path, body, name)
    assert without_time(answer.content) == without_time(own.content)
    assert answer.status_code == own.status_code
    assert end_to_end(answer.headers.multi_items()) == end_to_end(own.headers.multi_items())


@pytest.mark.parametrize("name", ["chat", "chat_stream", "chat_stream_usage"])
def test_answer_to_a_request_without_a_name(base_url: str, pair: list[Server], name: str) -> None:
    own, answer = ask_both(pair[0].url, base_url, *REQUESTS[name], "")
    assert comparable(answer.content) == comparable(own.content)


@pytest.fixture(scope="module")
def tap(pair: list[Server]) -> Iterator[Tap]:
    tap = Tap(pair[0].port)
    yield tap
    tap.close()


@pytest.fixture(scope="module")
def tapped_url(tap: Tap) -> Iterator[str]:
    with headgate_process.running([tap.url]) as gateway:
        yield gateway.url


@pytest.mark.parametrize(("path", "body"), LONG_REQUESTS.values(), ids=list(LONG_REQUESTS))
def test_same_bytes_on_both_sides(
    tapped_url: str, tap: Tap, path: str, body: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    marker = f"same-{request.node.callspec.id}"
    with httpx.Client(timeout=TIMEOUT_S, headers={"x-request-id": marker}) as client:
        answer = client.post(f"{tapped_url}/v1/{path}", json=body)
    assert answer.status_code == 200
    # The engine makes its own id of the request's, which so shows that it was passed on.
    sent = tap.answer(f'-{marker}"'.encode())
    assert answer.content == sent.body
    own = httpx.Headers(
        [(name, value.strip()) for name, _, value in map(split, sent.head.split(b"\r\n")[1:])]
    )
    assert end_to_end(answer.headers.multi_items()) == end_to_end(own.multi_items())


def split(line: bytes) -> tuple[str, str, str]:
    return line.decode("latin-1").partition(":")
