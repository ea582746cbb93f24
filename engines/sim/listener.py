"""The listening socket: opened and closed at once, with its port kept in between."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

__all__ = ["Listener"]

_BACKLOG = 2048


class Listener:
    """One address. While closed, connecting to it is refused, and nobody else can be given its
    port: a second socket stays bound to it without listening."""

    def __init__(self, host: str, port: int, factory: Callable[[], asyncio.Protocol]) -> None:
        """Binds at once. OSError if the address is taken."""
        self._factory = factory
        self._holder = _bound(host, port)
        self.host, self.port = self._holder.getsockname()[:2]
        self._server: asyncio.Server | None = None
        self._opening: asyncio.Task[None] | None = None
        self._wanted = False

    def open(self) -> None:
        """Connecting works when this returns; what connects is served from the next turn of the
        loop on."""
        if self._wanted:
            return
        self._wanted = True
        sock = _bound(self.host, self.port)
        sock.listen(_BACKLOG)
        sock.setblocking(False)
        self._opening = asyncio.get_running_loop().create_task(self._serve(sock, self._opening))

    def close(self) -> None:
        """Connecting is refused when this returns, or at the latest a turn of the loop later."""
        self._wanted = False
        if self._server is not None:
            self._server.close()
            self._server = None

    async def ready(self) -> None:
        """Wait until an `open` has taken effect."""
        if self._opening is not None:
            await self._opening

    def release(self) -> None:
        """Close, and give up the port."""
        self.close()
        self._holder.close()

    async def _serve(self, sock: socket.socket, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await before
        server = await asyncio.get_running_loop().create_server(self._factory, sock=sock)
        if self._wanted:
            self._server = server
        else:
            server.close()


def _bound(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    return sock
