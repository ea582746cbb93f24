"""A ZeroMQ socket on an event loop: what it receives goes to a function, without a task.

ZeroMQ signals edges: the descriptor becomes readable once, and is silent then until everything has
been taken. pyzmq's own asyncio sockets make a future per message, which costs more than a batch.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress

import zmq

__all__ = ["ZmqReader"]

log = logging.getLogger("headgate.kv")

MAX_IN_ROW = 64
"""Messages taken before others get their turn."""


class ZmqReader:
    """Owns `socket` from now on. `on_message` gets the frames and may close the reader."""

    def __init__(
        self, socket: "zmq.Socket[bytes]", on_message: Callable[[list[bytes]], None]
    ) -> None:
        self._socket = socket
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._fd = int(socket.getsockopt(zmq.FD))
        self._again: asyncio.Handle | None = None
        self._loop.add_reader(self._fd, self.drain)
        self._drain_soon()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return bool(self._socket.closed)

    def send(self, frames: Sequence[bytes]) -> None:
        """Send without waiting; without a peer it is kept until there is one."""
        with suppress(zmq.Again):
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        self._drain_soon()  # sending may take the signal of what has come meanwhile

    def drain(self) -> None:
        """Hand on what is there, some of it now and the rest soon."""
        for _ in range(MAX_IN_ROW):
            if self.closed:
                return
            try:
                frames = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                self._on_message(frames)
            except Exception:  # a bug must not leave the rest unread for good
                log.exception("a message over ZeroMQ was not taken")
        self._drain_soon()

    def close(self) -> None:
        """Close the socket. Again: no effect."""
        if self.closed:
            return
        if self._again is not None:
            self._again.cancel()
        self._loop.remove_reader(self._fd)
        self._socket.close(linger=0)

    def _drain_soon(self) -> None:
        if self._again is None and not self.closed:
            self._again = self._loop.call_soon(self._drain_now)

    def _drain_now(self) -> None:
        self._again = None
        self.drain()
