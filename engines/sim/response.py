"""Writing one response, and breaking it where a fault says so."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterable
from email.utils import formatdate
from http import HTTPStatus
from time import time
from typing import Protocol

from engines.sim.fault import Active, Fault

__all__ = ["Response", "Wire"]

# A reset discards what the sender still holds; this long before it, the bytes are on their way.
_RESET_AFTER_S = 0.005

Headers = Iterable[tuple[str, str]]


class Wire(Protocol):
    """The connection a response writes to."""

    transport: asyncio.Transport
    writable: bool

    def write(self, data: bytes) -> None:
        """Send bytes."""

    def finished(self, response: Response, keep_alive: bool) -> None:
        """The response is complete."""


class _Clock:
    """The `date` header, rendered once a second."""

    second = -1
    text = b""

    @classmethod
    def date(cls) -> bytes:
        now = int(time())
        if now != cls.second:
            cls.second, cls.text = now, formatdate(now, usegmt=True).encode()
        return cls.text


class Response:
    """One response: `send` for a whole one; `start`, `event`..., `end` for a stream.

    Contract: call from the loop's thread. After `closed` becomes True every call is a no-op, so a
    caller need not ask. `on_gone` is called at most once, if the client leaves, or a fault breaks
    the connection, before the response is complete.
    """

    def __init__(self, wire: Wire, method: str, keep_alive: bool) -> None:
        self.closed = False
        self.broken = False
        """Ended by a fault, not by its client."""
        self.streaming = False
        self.headers: list[tuple[str, str]] = []
        """Further headers for whatever head is sent."""
        self.body_fault: Active | None = None
        self.on_gone: Callable[[], None] | None = None
        self.on_writable: Callable[[], None] | None = None
        self._wire = wire
        self._head_only = method == "HEAD"
        self._keep_alive = keep_alive
        self._events = 0
        self._drip: Active | None = None
        self._drip_queue = bytearray()
        # For a second response: it goes out with the end of the first, as one piece.
        self._kept = b""
        self._spare = b""
        self._timer: asyncio.TimerHandle | None = None
        self._ending = False

    @property
    def writable(self) -> bool:
        """False while the client does not take what was written."""
        return self._wire.writable

    # what the engine calls

    def send(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        """A whole response."""
        if self.closed:
            return
        fault = self._fault
        if fault is None or fault in (Fault.CL_TE, Fault.TWO_RESPONSES):
            self._write(self._head(status, content_type, len(body), body=body))
            self.end()
        else:
            self._send_broken(status, body, content_type, fault)

    def start(self, status: int, content_type: str) -> None:
        """The head of a stream; the events follow in chunks."""
        if self.closed or self.streaming:
            return
        self.streaming = True
        if self.body_fault is not None and self.body_fault.after_events < 0:
            self._break_off(b"")
        else:
            self._write(self._head(status, content_type, None))

    def event(self, data: bytes) -> None:
        """One event of a stream: one chunk."""
        if self.closed or self._head_only:
            return
        fault = self.body_fault
        if fault is not None and self._events >= fault.after_events and self._fault is not None:
            self._break_off(b"%x\r\n%b\r\n" % (len(data), data))
        if self.closed:
            return
        self._events += 1
        self._write(b"%x\r\n%b\r\n" % (len(data), data))

    def end(self) -> None:
        """Nothing more follows."""
        if self.closed:
            return
        self._ending = True
        rest = self._kept
        if self.streaming and not self._head_only:
            rest += b"0\r\n\r\n"
        if self._fault is Fault.TWO_RESPONSES:
            self._spare = self._head(200, "application/json", 2, body=b"{}")
        if self._drip is None:
            self._wire.write(rest + self._spare)
            self._finish()
            return
        self._drip_queue += rest
        if self._timer is None:
            self._next_drop(self._drip)

    def drip(self, fault: Active) -> None:
        """Write everything from here on in small pieces."""
        self._drip = fault

    def strike(self, fault: Active) -> None:
        """Answer as an ANSWER fault has it, for those that are not a mere error."""
        if fault.kind is Fault.BAD_STATUS:
            self._write(b"TTP/1.1 2OO OK\r\n\r\n")
            self._close_broken()
        elif fault.kind is Fault.ENDLESS_HEAD:
            self._write(b"HTTP/1.1 200 OK\r\ndate: %b\r\nserver: uvicorn\r\n" % _Clock.date())
            self._filler(fault, 0)

    def fail(self) -> None:
        """The engine is gone: close the connection with no further byte."""
        self._close_broken()

    # what the connection calls

    def gone(self) -> None:
        """The client has left."""
        self._retire()
        if self.on_gone is not None:
            self.on_gone()

    def resumed(self) -> None:
        """The client takes bytes again."""
        if self.on_writable is not None and not self.closed:
            self.on_writable()

    # heads

    @property
    def _fault(self) -> Fault | None:
        return None if self.body_fault is None else self.body_fault.kind

    def _head(self, status: int, content_type: str, length: int | None, body: bytes = b"") -> bytes:
        lines = [
            b"HTTP/1.1 %d %b" % (status, HTTPStatus(status).phrase.encode()),
            b"date: " + _Clock.date(),
            b"server: uvicorn",
        ]
        if length is not None:
            lines.append(b"content-length: %d" % length)
        if content_type:
            lines.append(b"content-type: " + content_type.encode())
        lines += [f"{name}: {value}".encode("latin-1") for name, value in self.headers]
        lines.append(b"vary: Origin")
        if self._fault is Fault.CL_TE:
            lines.append(b"content-length: 5" if length is None else b"transfer-encoding: chunked")
        if length is None:
            lines.append(b"transfer-encoding: chunked")
        if not self._keep_alive:
            lines.append(b"connection: close")
        return b"\r\n".join(lines) + b"\r\n\r\n" + (b"" if self._head_only else body)

    # faults

    def _send_broken(self, status: int, body: bytes, content_type: str, fault: Fault) -> None:
        assert self.body_fault is not None
        if self.body_fault.after_events < 0:
            self._break_off(b"")
        elif fault is Fault.BAD_CHUNK:
            self._write(self._head(status, content_type, None))
            self._break_off(body)
        else:
            self._write(self._head(status, content_type, len(body)))
            self._break_off(body)

    def _break_off(self, frame: bytes) -> None:
        """Do what the fault has for the frame it strikes."""
        fault = self._fault
        if fault in (Fault.CL_TE, Fault.TWO_RESPONSES):
            return
        if fault is Fault.BAD_CHUNK:
            self._write(b"xyz\r\n" + frame)
            self._close_broken()
            return
        if fault is not Fault.CLEAN_CLOSE and fault is not Fault.STALL:
            self._write(frame[: len(frame) // 2])
        if fault is Fault.STALL:
            self._mute()
        elif fault is Fault.RESET:
            self._reset()
        else:
            self._close_broken()

    def _mute(self) -> None:
        """No further byte, but the connection stays and its client may leave."""
        self.closed = self.broken = True
        if self.on_gone is not None:
            self.on_gone()
            self.on_gone = None

    def _reset(self) -> None:
        self._mute()
        linger = struct.pack("ii", 1, 0)
        transport = self._wire.transport
        sock = transport.get_extra_info("socket")
        if sock is not None and not transport.is_closing():
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        asyncio.get_running_loop().call_later(_RESET_AFTER_S, transport.abort)

    def _close_broken(self) -> None:
        if self.closed:
            return
        self._mute()
        self._wire.transport.close()

    def _filler(self, fault: Active, count: int) -> None:
        if self.closed:
            return
        self._write(b"x-filler-%d: %b\r\n" % (count, b"x" * 1000))
        pause_s = 0.005 if fault.seconds is None else fault.seconds
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(pause_s, self._filler, fault, count + 1)

    # writing

    def _write(self, data: bytes) -> None:
        if self._fault is Fault.TWO_RESPONSES and not self.streaming:
            self._kept += data
        elif self._drip is None:
            self._wire.write(data)
        else:
            self._drip_queue += data
            if self._timer is None:
                self._next_drop(self._drip)

    def _next_drop(self, drip: Active) -> None:
        self._timer = None
        if self.closed:
            return
        piece = bytes(self._drip_queue[: drip.bytes])
        del self._drip_queue[: drip.bytes]
        if self._ending and not self._drip_queue:
            piece += self._spare  # at once, however slow the rest was
        self._wire.write(piece)
        if self._drip_queue:
            pause_s = 0.01 if drip.seconds is None else drip.seconds
            self._timer = asyncio.get_running_loop().call_later(pause_s, self._next_drop, drip)
        elif self._ending:
            self._finish()

    def _finish(self) -> None:
        self._retire()
        self._wire.finished(self, self._keep_alive)

    def _retire(self) -> None:
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
