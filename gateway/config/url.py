"""The address of an engine, taken apart."""

from typing import NamedTuple
from urllib.parse import urlsplit

__all__ = ["EngineUrl", "parse_engine_url"]


class EngineUrl(NamedTuple):
    """Where an engine listens."""

    tls: bool
    host: str
    """Name or address, an IPv6 address without brackets."""
    port: int
    prefix: str
    """Put before every path; empty, or begins with '/' and does not end with it."""

    @property
    def authority(self) -> str:
        """host[:port] as in a Host header: the scheme's own port is left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"

    @property
    def base(self) -> str:
        """The URL without a slash at its end."""
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.prefix}"


def parse_engine_url(text: str) -> EngineUrl:
    """Parse http[s]://host[:port][/prefix]; a final /v1 is taken off. ValueError says why not.

    Clients' base URLs end in /v1, and it comes with every request's own path.
    """
    expected = f"expected http[s]://host[:port][/prefix], got {text!r}"
    if not text.isascii() or any(c <= " " or c == "\x7f" for c in text):
        raise ValueError(f"{expected} with characters that no URL has")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{expected}: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(expected)
    if parts.username is not None or parts.query or parts.fragment or port == 0:
        raise ValueError(f"{expected}: no user, query, fragment or port 0 (give `api_key` instead)")
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    tls = parts.scheme == "https"
    return EngineUrl(tls, parts.hostname, port or (443 if tls else 80), prefix)
