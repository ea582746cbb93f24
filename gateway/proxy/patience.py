"""How long to wait for the kernel to connect, told apart from how late this process itself is."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

__all__ = ["patience"]

SECOND_LOOK_S = 0.05


@contextlib.asynccontextmanager
async def patience(limit_s: float) -> AsyncIterator[None]:
    """TimeoutError after `limit_s`, as asyncio.timeout; but what has happened by then counts.

    A process that did not run for longer than that, on a machine that stood still, finds its timer
    due before it looks at its sockets, and would take its own absence for the other side's.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as timeout:
        timer = loop.call_later(limit_s, lambda: timeout.reschedule(loop.time() + SECOND_LOOK_S))
        try:
            yield
        finally:
            timer.cancel()
