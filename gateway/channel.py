"""Messages between the control process and a data worker, framed over a Unix stream socket.

A frame is a 4-byte little-endian length and that many bytes of MessagePack (see `messages`).
Both ends use this file: `Channel.to_worker` in the control process, `Channel.to_control` in a
worker. One task reads a channel; `send` may be called from anywhere in the loop's thread.
"""

import asyncio
import socket
from typing import Generic, TypeVar

import msgspec

from gateway.messages import FromWorker, ToWorker

__all__ = ["MAX_FRAME_BYTES", "Channel", "ChannelError"]

# A fleet of 1,024 endpoints with 1,000 keys is below 1 MiB: whatever is larger is not ours.
MAX_FRAME_BYTES = 64 << 20

Sent = TypeVar("Sent")
Received = TypeVar("Received")


class ChannelError(Exception):
    """The peer sent what is no message; the channel is of no more use."""


class Channel(Generic[Sent, Received]):
    """One end of a socket pair that sends `Sent` and iterates over `Received`."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        decoder: "msgspec.msgpack.Decoder[Received]",
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = decoder
        self._encoder = msgspec.msgpack.Encoder()

    @staticmethod
    async def to_worker(sock: socket.socket) -> "Channel[ToWorker, FromWorker]":
        """The control process's end. Takes the socket over."""
        return Channel(*await _streams(sock), msgspec.msgpack.Decoder(FromWorker))

    @staticmethod
    async def to_control(sock: socket.socket) -> "Channel[FromWorker, ToWorker]":
        """The worker's end. Takes the socket over."""
        return Channel(*await _streams(sock), msgspec.msgpack.Decoder(ToWorker))

    @property
    def backlog_bytes(self) -> int:
        """What `send` was given and the peer has not taken yet; the caller bounds it."""
        return self._writer.transport.get_write_buffer_size()

    def send(self, message: Sent) -> None:
        """Queue a message; never blocks, never raises. Lost if the peer is gone."""
        if self._writer.is_closing():
            return
        body = self._encoder.encode(message)
        self._writer.write(len(body).to_bytes(4, "little") + body)

    def __aiter__(self) -> "Channel[Sent, Received]":
        return self

    async def __anext__(self) -> Received:
        """The next message. Ends when the peer is gone; ChannelError if it sent no message."""
        try:
            size = int.from_bytes(await self._reader.readexactly(4), "little")
            if size > MAX_FRAME_BYTES:
                raise ChannelError(f"a frame of {size} bytes; at most {MAX_FRAME_BYTES} are sent")
            body = await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, OSError):
            raise StopAsyncIteration from None
        try:
            return self._decoder.decode(body)
        except msgspec.DecodeError as error:
            raise ChannelError(f"a frame that is no message: {error}") from error

    async def flush(self) -> None:
        """Wait until the peer has taken nearly all (the transport's low-water mark)."""
        try:
            await self._writer.drain()
        except OSError:
            return

    async def close(self) -> None:
        """Send what is queued, then close. Safe to call twice."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:
            return


async def _streams(sock: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    sock.setblocking(False)
    return await asyncio.open_unix_connection(sock=sock)
