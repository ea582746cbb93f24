"""The address of the bus between gateways: only whether it is one."""

from urllib.parse import urlsplit

__all__ = ["check_bus_url"]

EXPECTED = (
    "expected redis[s]://[[user]:password@]host[:port][/db], with %XX for special characters in "
    "the password (the URL is not shown: it may hold one)"
)


def check_bus_url(text: str) -> None:
    """ValueError if it cannot be used. Never quotes it."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:  # its text may quote a piece of the password
        raise ValueError(EXPECTED) from None
    db = parts.path.removeprefix("/")
    if (
        not text.isascii()
        or any(c <= " " or c == "\x7f" for c in text)
        or parts.scheme not in ("redis", "rediss")
        or not parts.hostname
        or port == 0
        or (db and not db.isdigit())
        or parts.query
        or parts.fragment
    ):
        raise ValueError(EXPECTED)
