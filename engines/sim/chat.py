"""The chat template: a conversation as one text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from json import dumps
from typing import Any

__all__ = ["content_text", "render_chat"]


def render_chat(messages: Sequence[Mapping[str, Any]], tools: object, system: object) -> str:
    """The conversation as the model sees it, ending where the assistant is to speak.

    `system` is Anthropic's separate system prompt; None or empty for none. A longer conversation
    begins with the text of a shorter one, which is what prefix caches live from.
    """
    turns: list[tuple[str, str]] = []
    if tools:
        turns.append(("tools", dumps(tools, sort_keys=True)))
    if system:
        turns.append(("system", content_text(system)))
    for message in messages:
        text = content_text(message.get("content"))
        calls = message.get("tool_calls")
        turns.append((str(message["role"]), text + (dumps(calls) if calls else "")))
    said = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns)
    return f"{said}<|im_start|>assistant\n"


def content_text(content: object) -> str:
    """A message's content as text: strings as they are, parts joined by line breaks."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(map(_part_text, content))
    return dumps(content, sort_keys=True)


def _part_text(part: object) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        return str(part)
    text = part.get("text")
    if isinstance(text, str):
        return text
    if "content" in part:
        return content_text(part["content"])
    # An image, sound or video: a fixed number of placeholder tokens that stand for its contents.
    digest = blake2b(dumps(part, sort_keys=True).encode(), digest_size=16).hexdigest()
    return f"<|media|>{digest * 8}"
