"""A chat request's messages and tools, in the form in which vLLM hands them to a template.

vLLM rebuilds every message: text in one of two forms, tool calls with their arguments as objects,
members in the order in which its types declare them (which shows where a template writes a whole
object as JSON). Whatever it would refuse, or would pass on in a form not rebuilt here, is unknown.
"""

import json
from typing import Any

from engines.tokens.content_format import ContentFormat
from engines.tokens.why import UnknownError, Why

__all__ = ["read_documents", "read_messages", "read_tools", "system_for_developer"]

MAX_MESSAGES = 2000
"""And parts of one message. Each costs a template some 5 us, with the interpreter's lock held."""

# Where the text of a part stands, by the part's type.
_TEXT_OF = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
# Members of parts that vLLM's types declare: they do not reach a template, any others do.
_DECLARED = frozenset(
    ("type", "text", "refusal", "thinking", "name", "closed", "prompt_cache_breakpoint")
)
_MEDIA = frozenset(
    (
        "audio_embeds",
        "audio_url",
        "data",
        "file",
        "image_embeds",
        "image_pil",
        "image_url",
        "input_audio",
        "input_image",
        "prompt_embeds",
        "uuid",
        "video_embeds",
        "video_url",
    )
)
# A line that one client puts before its system prompt, with a number that is new each time; vLLM
# drops it for the sake of its prefix cache.
_PLAIN_ROLES = ("user", "system", "assistant")  # those of which nothing else is read
_BILLING = "x-anthropic-billing-header"


def read_messages(messages: Any, form: ContentFormat) -> list[dict[str, Any]]:
    """The conversation as a template gets it; all of it new but for the innermost values."""
    if not isinstance(messages, list) or not messages:
        raise UnknownError(Why.BODY)
    if len(messages) > MAX_MESSAGES:
        raise UnknownError(Why.SIZE)
    return [_message(one, form) for one in messages]


def read_tools(tools: Any) -> list[dict[str, Any]] | None:
    """Declared members only, in the declared order; those that were left out are null."""
    if tools is None:
        return None
    if not isinstance(tools, list) or not tools:
        raise UnknownError(Why.BODY)
    return [_tool(one) for one in tools]


def read_documents(documents: Any) -> list[dict[str, Any]] | None:
    """Documents are objects of texts."""
    if documents is None:
        return None
    if not isinstance(documents, list):
        raise UnknownError(Why.BODY)
    for one in documents:
        if not isinstance(one, dict) or not all(isinstance(text, str) for text in one.values()):
            raise UnknownError(Why.BODY)
    return documents


def system_for_developer(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For a template that knows no developers: they speak as the system, in one first message."""
    if all(one["role"] != "developer" for one in messages):
        return messages
    for one in messages:
        if one["role"] == "developer":
            one["role"] = "system"
            one.pop("tools", None)
    places = [at for at, one in enumerate(messages) if one["role"] == "system"]
    if places == [0]:
        return messages
    texts = [_joined(messages[at]["content"]) for at in places]
    merged = {"role": "system", "content": "\n\n".join(text for text in texts if text)}
    return [merged, *(one for one in messages if one["role"] != "system")]


def _message(message: Any, form: ContentFormat) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise UnknownError(Why.BODY)
    role = message["role"]
    if len(message) == 2 and "content" in message and role in _PLAIN_ROLES:
        return {"role": role, "content": _content(message.get("content"), role, form)}
    found: dict[str, Any] = {"role": role, "content": _content(message.get("content"), role, form)}
    if role == "assistant":
        calls = message.get("tool_calls")
        if calls is not None and not isinstance(calls, list):
            raise UnknownError(Why.BODY)
        if calls:
            found["tool_calls"] = [_tool_call(one) for one in calls]
        reasoning = message.get("reasoning")
        if reasoning is None:
            reasoning = message.get("reasoning_content")
        if reasoning is not None:
            found["reasoning"] = found["reasoning_content"] = _text(reasoning)
    elif role == "tool":
        if "tool_call_id" in message:
            found["tool_call_id"] = message["tool_call_id"]
        found["content"] = _joined(found["content"])
    for name in ("name", "task"):
        if isinstance(message.get(name), str):
            found[name] = message[name]
    if role == "developer":
        if message.get("tools") is not None:
            raise UnknownError(Why.OPTION)
        found["tools"] = None
    return found


def _content(content: Any, role: str, form: ContentFormat) -> str | list[dict[str, Any]]:
    if isinstance(content, str):
        if form is ContentFormat.TEXT and not content.startswith(_BILLING):
            return content
        content = [content]
    elif content is None:
        content = []
    elif not isinstance(content, list):
        raise UnknownError(Why.BODY)
    if len(content) > MAX_MESSAGES:
        raise UnknownError(Why.SIZE)
    parts = [_part(one) for one in content]
    if role == "system":
        parts = [one for one in map(_without_billing, parts) if one is not None]
    if form is ContentFormat.PARTS:
        return parts
    return "\n".join([one["text"] for one in parts])


def _part(part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict) or not _MEDIA.isdisjoint(part):
        raise UnknownError(Why.MEDIA)
    where = _TEXT_OF.get(part.get("type", ""))
    if where is None:
        raise UnknownError(Why.MEDIA)
    found: dict[str, Any] = {"type": "text", "text": _text(part.get(where))}
    if len(part) > 2:
        if part["type"] != "text" and part["type"] != "thinking":
            raise UnknownError(Why.OPTION)
        found |= {name: value for name, value in part.items() if name not in _DECLARED}
    return found


def _without_billing(part: dict[str, Any]) -> dict[str, Any] | None:
    if not part["text"].startswith(_BILLING):
        return part
    rest = part["text"].partition("\n")[2]
    return {**part, "text": rest} if rest else None


def _tool_call(call: Any) -> dict[str, Any]:
    if not isinstance(call, dict) or call.get("type") != "function":
        raise UnknownError(Why.BODY)
    function = call.get("function")
    if not isinstance(function, dict):
        raise UnknownError(Why.BODY)
    return {
        "id": _text(call.get("id")),
        "function": {
            "arguments": _arguments(_text(function.get("arguments"))),
            "name": _text(function.get("name")),
            **_others(function, "arguments", "name"),
        },
        "type": "function",
        **_others(call, "id", "function", "type"),
    }


def _arguments(text: str) -> dict[str, Any]:
    """As an object; what is none counts as an empty one, for it stands in the past."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _tool(tool: Any) -> dict[str, Any]:
    function = tool.get("function") if isinstance(tool, dict) else None
    if not isinstance(function, dict) or tool.get("type", "function") != "function":
        raise UnknownError(Why.BODY)
    found: dict[str, Any] = {
        "name": _text(function.get("name")),
        "description": function.get("description"),
        "parameters": function.get("parameters"),
    }
    if not isinstance(found["description"], str | None):
        raise UnknownError(Why.BODY)
    if not isinstance(found["parameters"], dict | None):
        raise UnknownError(Why.BODY)
    deferred = tool.get("defer_loading")
    own = function.get("defer_loading")
    for name, value in (
        ("strict", function.get("strict")),
        ("defer_loading", deferred if own is None else own),
    ):
        if value is not None:
            found[name] = _flag(value)
    result: dict[str, Any] = {"type": "function", "function": found}
    if deferred is not None:
        result["defer_loading"] = _flag(deferred)
    return result


def _joined(content: str | list[dict[str, Any]]) -> str:
    return content if isinstance(content, str) else "\n".join([one["text"] for one in content])


def _others(value: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: one for name, one in value.items() if name not in names}


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise UnknownError(Why.BODY)
    return value


def _flag(value: Any) -> bool:
    # vLLM also takes "yes" and 1; nobody sends them.
    if not isinstance(value, bool):
        raise UnknownError(Why.BODY)
    return value
