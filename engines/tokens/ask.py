"""Ask an engine for a prompt's ids: requests to make and answers to read, the I/O left to others.

vLLM has two ways. `POST /tokenize` is old and takes chats and text prompts, but not all fields of a
chat request, so it is asked a translated question. `POST <path>/render` takes the request as it is,
also on the paths whose prompts are not rebuilt here; `vllm launch render` serves it without an
engine, `vllm serve` only with `--enable-scale-out` (else 403).
"""

from __future__ import annotations  # array is no generic before Python 3.12

from array import array
from dataclasses import dataclass
from typing import Any

import msgspec

__all__ = ["Question", "read_render", "read_tokenize", "render_question", "tokenize_question"]

RENDERED = frozenset(("/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/responses"))
# Members of a chat request that /tokenize has under the same name.
_CHAT = (
    "model",
    "messages",
    "tools",
    "add_generation_prompt",
    "continue_final_message",
    "add_special_tokens",
    "chat_template",
    "chat_template_kwargs",
)
_TEXT = ("model", "prompt", "add_special_tokens")
MAX_ID = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Question:
    """A POST with a JSON body."""

    path: str
    body: bytes


def tokenize_question(path: str, body: bytes) -> Question | None:
    """What to ask /tokenize about a request to `path`; None: it cannot answer that."""
    request = _object(body)
    if request is None or request.get("truncate_prompt_tokens") is not None:
        return None
    if path == "/v1/completions":
        if not isinstance(request.get("prompt"), str) or request.get("suffix") is not None:
            return None
        return _question({name: request[name] for name in _TEXT if name in request})
    if path != "/v1/chat/completions" or not isinstance(request.get("messages"), list):
        return None
    asked = {name: request[name] for name in _CHAT if name in request}
    asked["messages"] = [_with_reasoning(one) for one in request["messages"]]
    variables = dict(request.get("chat_template_kwargs") or {})
    # Chat requests hand these to the template; /tokenize knows them as variables only.
    if request.get("documents") is not None:
        variables["documents"] = request["documents"]
    effort = request.get("reasoning_effort")
    if effort is not None:
        variables.setdefault("enable_thinking", effort != "none")
        variables["reasoning_effort"] = effort
    if variables:
        asked["chat_template_kwargs"] = variables
    return _question(asked)


def render_question(path: str, body: bytes) -> Question | None:
    """What to ask the renderer about a request to `path`; None: there is none for that path."""
    return Question(f"{path}/render", body) if path in RENDERED else None


def read_tokenize(status: int, body: bytes) -> array[int] | None:
    """The ids in an answer of /tokenize; None: it has none."""
    answer = _object(body) if status == 200 else None
    return None if answer is None else _ids(answer.get("tokens"))


def read_render(status: int, body: bytes) -> array[int] | None:
    """The ids in a renderer's answer; None: none, several prompts, or images between the text."""
    if status != 200:
        return None
    answer = _decode(body)
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if not isinstance(answer, dict) or answer.get("features") is not None:
        return None
    return _ids(answer.get("token_ids"))


def _with_reasoning(message: Any) -> Any:
    """Only the chat path reads the older name."""
    if not isinstance(message, dict) or message.get("reasoning_content") is None:
        return message
    if message.get("reasoning") is not None:
        return message
    return {**message, "reasoning": message["reasoning_content"]}


def _question(asked: dict[str, Any]) -> Question:
    return Question("/tokenize", msgspec.json.encode(asked))


def _ids(value: Any) -> array[int] | None:
    if not isinstance(value, list) or not value:
        return None
    if not all(type(id) is int and 0 <= id <= MAX_ID for id in value):
        return None
    return array("I", value)


def _object(body: bytes) -> dict[str, Any] | None:
    value = _decode(body)
    return value if isinstance(value, dict) else None


def _decode(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
