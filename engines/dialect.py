"""The client-facing dialects by path: how a refusal looks, how a stream fails, how it ends.

One table (`ROUTES`) says what each path of the data port is; everything that differs between
OpenAI's chat, its responses API and Anthropic's messages stands here and nowhere else.
"""

import json
from dataclasses import dataclass
from enum import IntEnum

__all__ = ["ROUTES", "Body", "Dialect", "Route", "find_route", "refusal_body", "stream_error"]


class Dialect(IntEnum):
    """Whose error shapes and end marks a path uses. The numbers are `EndMark`s of the scanner."""

    PLAIN = 0
    """OpenAI's error shape; answers are not streams of events, or end without a mark."""
    OPENAI = 1
    """Chat and text completions: `data: {"error":..}`, ended by `data: [DONE]`."""
    MESSAGES = 2
    """Anthropic: `event: error`, ended by `message_stop`."""
    RESPONSES = 3
    """OpenAI responses: typed events, ended by `response.completed` and its siblings."""
    TRITON = 4
    """KServe's v2 protocol: `{"error": "..."}`; streams end without a mark."""


class Body(IntEnum):
    """Where a request names its model."""

    NONE = 0
    JSON = 1
    MULTIPART = 2
    """A form part named `model` (audio uploads)."""


@dataclass(frozen=True, slots=True)
class Route:
    """A path of the data port. `path` ends in `/` when it stands for everything below it."""

    path: str
    dialect: Dialect = Dialect.PLAIN
    body: Body = Body.JSON
    methods: tuple[str, ...] = ("POST",)


ROUTES: tuple[Route, ...] = (
    Route("/v1/chat/completions", Dialect.OPENAI),
    Route("/v1/completions", Dialect.OPENAI),
    Route("/v1/embeddings"),
    Route("/v1/responses", Dialect.RESPONSES),
    Route("/v1/responses/", Dialect.RESPONSES, Body.NONE, ("GET", "POST", "DELETE")),
    Route("/v1/messages", Dialect.MESSAGES),
    Route("/v1/messages/count_tokens", Dialect.MESSAGES),
    Route("/v1/rerank"),
    Route("/v1/score"),
    Route("/v1/audio/", Dialect.PLAIN, Body.MULTIPART),
    Route("/v1/audio/speech"),
    Route("/tokenize"),
    Route("/detokenize"),
)

# Anthropic's names for what went wrong, by status (its API reference, "Errors").
_MESSAGES_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    529: "overloaded_error",
}


def find_route(path: str, extra: tuple[Route, ...] = ()) -> Route | None:
    """The route of a path: an exact one first, else the longest that ends in `/` above it."""
    below: Route | None = None
    for route in (*extra, *ROUTES):
        if route.path == path:
            return route
        if (
            route.path.endswith("/")
            and path.startswith(route.path)
            and (below is None or len(route.path) > len(below.path))
        ):
            below = route
    return below


def refusal_body(
    dialect: int,
    status: int,
    kind: str,
    message: str,
    code: str | None = None,
    field: str | None = None,
) -> bytes:
    """The JSON body of an error answer. `kind`, `code` and `field` are OpenAI's `type`, `code` and
    `param`."""
    return _encode(_error(dialect, status, kind, message, code, field))


def stream_error(
    dialect: int, status: int, kind: str, message: str, code: str | None = None
) -> bytes:
    """Events that end a stream which has begun; whole events, no HTTP framing."""
    if dialect == Dialect.MESSAGES:
        return b"event: error\ndata: " + refusal_body(dialect, status, kind, message) + b"\n\n"
    if dialect == Dialect.RESPONSES:
        error = {
            "type": "error",
            "code": code or kind,
            "message": message,
            "param": None,
            "sequence_number": 0,
        }
        return b"event: error\ndata: " + _encode(error) + b"\n\n"
    return b"data: " + refusal_body(dialect, status, kind, message, code) + b"\n\ndata: [DONE]\n\n"


def _error(
    dialect: int,
    status: int,
    kind: str,
    message: str,
    code: str | None,
    field: str | None = None,
) -> dict[str, object]:
    if dialect == Dialect.MESSAGES:
        name = _MESSAGES_TYPES.get(status, "api_error")
        return {"type": "error", "error": {"type": name, "message": message}}
    error = {"message": message, "type": kind, "param": field, "code": code or status}
    return {"error": error}


def _encode(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
