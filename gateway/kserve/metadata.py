"""A call's metadata: read as a request's head would be, and passed on as far as it goes on."""

from collections.abc import Iterable

from gateway.messages import Endpoint

__all__ = ["Metadata", "forwarded", "head_of"]

Metadata = Iterable[tuple[str, "str | bytes"]]

# Between two neighbours, or about HTTP's framing: none of the next one's business.
_HOP = frozenset(
    (
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "expect",
        "host",
        "keep-alive",
        "origin",
        "proxy-authenticate",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    )
)
_CREDENTIALS = ("authorization", "x-api-key")
# Between a client and us, or ours to tell an engine.
_OURS = ("x-headgate-", "x-data-parallel-rank", "x-vllm-priority", "x-request-id")


def _goes_on(name: str) -> bool:
    return name not in _HOP and not name.startswith((":", "grpc-"))


def head_of(method: str, path: str, metadata: Metadata) -> bytes:
    """What the call would be in HTTP/1.1: a head that the data path's own readers read. They refuse
    one with values that gRPC's clients do not send: a line's end would be one elsewhere too."""
    lines = [f"{method} {path} HTTP/1.1", "host: grpc"]
    for name, value in metadata:
        if isinstance(value, str) and _goes_on(name) and not name.endswith("-bin"):
            line = f"{name}: {value}"
            lines.append(line if line.isascii() and line.isprintable() else "\0")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def forwarded(
    metadata: Metadata, endpoint: Endpoint, request_id: bytes, has_keys: bool
) -> tuple[tuple[str, str | bytes], ...]:
    """Metadata for the engine. Credentials go on only where they are neither ours to judge nor
    replaced by the engine's own."""
    drops = has_keys or bool(endpoint.api_key)
    kept = [
        (name, value)
        for name, value in metadata
        if _goes_on(name) and not name.startswith(_OURS) and not (drops and name in _CREDENTIALS)
    ]
    kept.append(("x-request-id", request_id.decode("latin-1")))
    if endpoint.api_key:
        kept.append(("authorization", f"Bearer {endpoint.api_key}"))
    return tuple(kept)
