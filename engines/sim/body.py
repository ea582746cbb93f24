"""Request bodies: parsing and checks in vLLM's order and words, down to prompts and limits."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from json import JSONDecodeError, loads
from typing import Any

from engines.sim.chat import render_chat
from engines.sim.errors import ApiError, Detail, bad_value, field_missing, invalid
from engines.sim.text import tokenize

__all__ = ["Fields", "Sampling", "parse_body", "prompts_of", "sampling_of"]

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a generation asks for, checked."""

    max_tokens: int | None
    min_tokens: int
    n: int
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    continuous_usage: bool
    ignore_eos: bool
    salt: str


def parse_body(content_type: str, body: bytes) -> Fields:
    """The body as a JSON object. Raises ApiError in the shapes FastAPI and vLLM answer with."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise ApiError(
            400,
            "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed",
            "Bad Request",
        )
    if not body:
        raise invalid("missing", "body", "Field required", "None")
    try:
        fields = loads(body)
    except JSONDecodeError as broken:
        ctx = f", 'ctx': {{'error': {broken.msg!r}}}"
        where = f"body.{broken.pos}"
        raise invalid(
            "json_invalid", where, "JSON decode error", "<dict of 0 items>", ctx
        ) from None
    except (UnicodeDecodeError, RecursionError):
        raise Detail(400, "There was an error parsing the body") from None
    if not isinstance(fields, dict):
        kind = type(fields).__name__
        size = f" of {len(fields)} items" if isinstance(fields, list) else ""
        message = "Input should be a valid dictionary or object to extract fields from"
        raise invalid("model_attributes_type", "body", message, f"<{kind}{size}>")
    return fields


def sampling_of(fields: Fields, limits: tuple[str, ...] = ("max_tokens",)) -> Sampling:
    """The checked sampling parameters; `limits` names the fields that bound the answer, best first.

    Raises ApiError 400. Fields that the simulation has no use for are not looked at, as vLLM
    ignores fields it does not know.
    """
    options = fields.get("stream_options")
    stream = bool(fields.get("stream"))
    if options is not None and not stream:
        message = "Stream options can only be defined when `stream=True`."
        raise ApiError(400, f"{message} (parameter=stream_options)", param="stream_options")
    options = options if isinstance(options, dict) else {}
    temperature = fields.get("temperature")
    if isinstance(temperature, int | float) and temperature < 0:
        got = float(temperature)
        raise bad_value("temperature", got, f"temperature must be non-negative, got {got}.")
    n = _whole(fields, "n") or 1
    if not 1 <= n <= 128:
        raise bad_value("n", n, f"n must be between 1 and 128, got {n}.")
    limit = next((v for v in (_whole(fields, name) for name in limits) if v is not None), None)
    if limit is not None and limit < 1:
        raise bad_value("max_tokens", limit, f"max_tokens must be at least 1, got {limit}.")
    return Sampling(
        max_tokens=limit,
        min_tokens=_whole(fields, "min_tokens") or 0,
        n=n,
        stop=_stop_strings(fields.get("stop")),
        stream=stream,
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("continuous_usage_stats")),
        ignore_eos=bool(fields.get("ignore_eos")),
        salt=str(fields.get("cache_salt") or ""),
    )


def prompts_of(fields: Fields, key: str, flat: Callable[[Any], str] = str) -> list[array[int]]:
    """Token ids of a field that may be a string, token ids, or a list of either.

    `flat` turns an item that is neither into text (multi-part inputs).
    """
    if key not in fields:
        raise field_missing(key, len(fields))
    value = fields[key]
    if _is_tokens(value):
        return [_token_array(value, key)]
    items = value if isinstance(value, list) else [value]
    return [
        _token_array(item, key)
        if _is_tokens(item)
        else tokenize(item if isinstance(item, str) else flat(item))
        for item in items
    ]


def chat_prompt(fields: Fields, key: str = "messages") -> array[int]:
    """Token ids of a conversation under the chat template. Raises ApiError 400."""
    if key not in fields:
        raise field_missing(key, len(fields))
    messages = fields[key]
    if not isinstance(messages, list):
        message = "Input should be a valid list"
        raise invalid("list_type", f"body.{key}", message, str(messages)[:40])
    if not messages:
        raise ApiError(
            400,
            "Cannot apply chat template to an empty conversation. Provide at least one message.",
        )
    for at, message in enumerate(messages):
        if not isinstance(message, dict) or "role" not in message:
            loc = f"body.{key}.{at}.role"
            raise invalid("missing", loc, "Field required", "<dict of 1 items>")
    return tokenize(render_chat(messages, fields.get("tools"), fields.get("system")))


def _whole(fields: Fields, name: str) -> int | None:
    value = fields.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str) and value.lstrip("-").isdigit():
        return int(value)  # pydantic is lenient about digits in a string
    message = "Input should be a valid integer"
    kind = "int_type"
    if isinstance(value, str):
        message += ", unable to parse string as an integer"
        kind = "int_parsing"
    raise invalid(kind, f"body.{name}", message, str(value)[:40])


def _stop_strings(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,) if value else ()
    if isinstance(value, list):
        return tuple(item for item in value if isinstance(item, str) and item)
    return ()


def _is_tokens(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], int)


def _token_array(value: list[Any], key: str) -> array[int]:
    try:
        return array("I", value)
    except (TypeError, OverflowError):
        message = "Input should be a valid integer"
        raise invalid("int_type", f"body.{key}", message, "<list>") from None
