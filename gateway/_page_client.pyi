"""GET after GET over one kept HTTP/1.1 connection, without a task: the client of scrapes.

A protocol for the event loop. All calls and callbacks are of the loop's thread; nothing raises on
what the server says.
"""

import asyncio
from collections.abc import Callable

class PageClient(asyncio.Protocol):
    def __init__(
        self,
        on_page: Callable[[int, bytes, int, bool], None],
        on_lost: Callable[[str, bool], None],
        max_bytes: int,
    ) -> None:
        """`on_page(status, data, start, kept)`: the answer to what was asked, `data` from `start`
        on; not kept: the connection is over. `on_lost(why, heard)`: no answer comes any more, once;
        `heard`: something had come since the request."""

    def ask(self, request: bytes) -> None:
        """Write a request, once connected and with none under way."""

    def close(self) -> None:
        """End it, at any time; no callback comes any more."""
