"""The clients of a chaos run: raw HTTP/1.1 on asyncio streams. Each request ends in one way."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from bench.chaos.plan import Ask, Leave, Visit

__all__ = ["Entry", "Ledger", "stay"]

PATIENCE_S = 30.0
"""Longer than all the gateway's patience with an engine, its retries included."""
SLOW_READ_BYTES = 2048
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
"""No part of an answer."""
GATEWAY_SAYS = (b"The engine ", b"The gateway ")
END_MARKS = (b"data: [DONE]", b"message_stop", b"response.completed", b"response.incomplete")


@dataclass(slots=True)
class Entry:
    """How a request ended, as its client saw it."""

    id: str
    kind: str
    end: str = ""
    """whole, error_event, error_status, broken, gave_up, cut_off (behind one that ended the
    connection), or what must not be: hung, malformed, foreign, unended, unreachable."""
    status: int = 0
    reason: str = ""
    """`x-headgate-reason`."""
    by_gateway: bool = False
    """The error event in the stream is the gateway's own."""
    has_id: bool = True
    head_sent: bool = False
    received: int = 0
    """Bytes of its answer; where it was left among pipelined ones, those that are surely its."""
    body_bytes: int = 0
    whole_body_sent: bool = False
    detail: str = ""


@dataclass
class Ledger:
    """All requests, each once."""

    entries: list[Entry] = field(default_factory=list)
    dialled: int = 0
    """Connections that came about."""
    sent_bytes: int = 0
    """Handed to the kernel; the gateway may have read less where a connection was cut."""
    received_bytes: int = 0
    now_open: int = 0


class _Left(Exception):
    """The client has disconnected, as planned."""


class _Ended(Exception):
    """The gateway has ended the connection."""


class _Malformed(Exception):
    """What came is not HTTP."""


@dataclass(slots=True)
class _Answer:
    status: int
    headers: dict[str, str]
    body: bytes = b""


class _Wire:
    """A connection."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ledger: Ledger
    ) -> None:
        self.reader, self.writer, self.ledger = reader, writer, ledger
        self.data = b""
        self.ask: Ask | None = None
        self.got = 0
        """Bytes of the answer now being read, consumed or not."""
        self.leave_at_s = 0.0

    def write(self, data: bytes) -> None:
        if self.writer.transport.is_closing():
            return  # the gateway has ended the connection; an answer may be here all the same
        self.ledger.sent_bytes += len(data)
        self.writer.write(data)

    async def flush(self) -> None:
        with contextlib.suppress(ConnectionError):  # an answer may be here all the same
            await self.writer.drain()
        await asyncio.sleep(0)

    async def more(self) -> None:
        """Read on. _Left where that is the plan, _Ended at the connection's end."""
        ask = self.ask
        assert ask is not None
        if ask.slow_s:
            await asyncio.sleep(ask.slow_s)
        loop = asyncio.get_running_loop()
        patience_s = PATIENCE_S
        if self.leave_at_s:
            patience_s = max(0.0, self.leave_at_s - loop.time())
        limit = SLOW_READ_BYTES if ask.slow_s and not ask.kind.startswith("long") else 1 << 16
        try:
            data = await asyncio.wait_for(self.reader.read(limit), patience_s)
        except TimeoutError:
            if self.leave_at_s:
                raise _Left from None
            raise
        except ConnectionError:
            raise _Ended("reset") from None
        if not data:
            raise _Ended("closed")
        self.ledger.received_bytes += len(data)
        self.data += data
        leave = ask.leave
        if leave is not None and leave.where == "answer" and len(self.data) + self.got >= leave.at:
            raise _Left

    async def take(self, size: int) -> bytes:
        while len(self.data) < size:
            await self.more()
        taken, self.data = self.data[:size], self.data[size:]
        self.got += size
        return taken

    async def line(self, end: bytes) -> bytes:
        while (at := self.data.find(end)) < 0:
            if len(self.data) > 1 << 20:
                raise _Malformed("an endless line")
            await self.more()
        return (await self.take(at + len(end)))[:at]

    def close(self, reset: bool) -> None:
        if reset:
            sock = self.writer.get_extra_info("socket")  # None: the gateway has closed it
            with contextlib.suppress(OSError, AttributeError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.writer.transport.abort()
        else:
            self.writer.close()


async def _answer(wire: _Wire) -> _Answer:
    while True:
        wire.got = 0
        first, *lines = (await wire.line(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        words = first.split(" ", 2)
        if words[0] != "HTTP/1.1" or len(words) < 3 or not words[1].isdigit():
            raise _Malformed(f"status line {first!r}")
        pairs = [line.partition(":")[::2] for line in lines]
        headers = {name.lower(): value.strip() for name, value in pairs}
        if len(headers) != len(pairs):
            raise _Malformed(f"a header twice: {lines}")
        answer = _Answer(int(words[1]), headers)
        if answer.status >= 200:
            break
    if "transfer-encoding" in headers:
        if headers["transfer-encoding"] != "chunked" or "content-length" in headers:
            raise _Malformed(f"framing {headers}")
        answer.body = b"".join([piece async for piece in _chunks(wire)])
    elif "content-length" in headers:
        answer.body = await wire.take(int(headers["content-length"]))
    elif answer.status != 204:
        raise _Malformed("no framing")
    return answer


async def _chunks(wire: _Wire) -> AsyncIterator[bytes]:
    while True:
        digits = await wire.line(b"\r\n")
        try:
            size = int(digits, 16)
        except ValueError:
            raise _Malformed(f"chunk size {digits!r}") from None
        data = await wire.take(size + 2)
        if not data.endswith(b"\r\n"):
            raise _Malformed("a chunk without its end")
        if not size:
            return
        yield data[:-2]


async def stay(visit: Visit, port: int, ledger: Ledger) -> None:
    """Make all requests of a visit, on as few connections as they allow."""
    todo = list(visit.asks)
    while todo:
        batch = todo if visit.pipelined else todo[:1]
        wire = await _dial(port, any(ask.slow_s for ask in todo), ledger)
        if wire is None:
            ledger.entries += [_entry(ask, "unreachable") for ask in todo]
            return
        ledger.now_open += 1
        reset = False
        try:
            while todo and not reset:
                batch = todo if visit.pipelined else todo[:1]
                goes_on, reset = await _serve(wire, batch, ledger)
                todo = todo[len(batch) :]
                if not goes_on:
                    break
        finally:
            wire.close(reset)
            ledger.now_open -= 1


async def _dial(port: int, slow: bool, ledger: Ledger) -> _Wire | None:
    sock = socket.socket()
    sock.setblocking(False)
    if slow:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    try:
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=2048 if slow else 1 << 16)
    except OSError:
        sock.close()
        return None
    ledger.dialled += 1
    return _Wire(reader, writer, ledger)


async def _serve(wire: _Wire, batch: list[Ask], ledger: Ledger) -> tuple[bool, bool]:
    """Send these and read their answers. (the connection goes on, it is to be reset)."""
    entries = [_entry(ask, "") for ask in batch]
    ledger.entries += entries
    for ask, entry in zip(batch, entries, strict=True):
        if not await _send(wire, ask, entry):
            _settle_rest(entries, "gave_up")
            return False, bool(ask.leave and ask.leave.reset)
    for ask, entry in zip(batch, entries, strict=True):
        wire.ask = ask
        wire.got = 0
        wire.leave_at_s = 0.0
        leave = ask.leave
        if leave is not None and leave.where == "wait":
            wire.leave_at_s = asyncio.get_running_loop().time() + leave.at
        closes = await _read(wire, ask, entry, pipelined=len(batch) > 1)
        if closes:
            _settle_rest(entries, "gave_up" if entry.end == "gave_up" else "cut_off")
            return False, entry.end == "gave_up" and bool(leave and leave.reset)
    return True, False


async def _send(wire: _Wire, ask: Ask, entry: Entry) -> bool:
    """False: the client left on the way, as planned."""
    pieces = [ask.head, *ask.body]
    stop_at = ask.size + 1
    leave: Leave | None = ask.leave
    if leave is not None and leave.where == "head":
        stop_at = int(len(ask.head) * leave.at)
    elif leave is not None and leave.where == "upload":
        stop_at = len(ask.head) + int((ask.size - len(ask.head)) * leave.at)
    sent = 0
    for piece in pieces:
        piece = piece[: max(0, stop_at - sent)]
        sent += len(piece)
        entry.head_sent = sent >= len(ask.head)
        if piece:
            wire.write(piece)
            await wire.flush()
        if sent >= stop_at:
            return False
        if ask.pause_s:
            await asyncio.sleep(ask.pause_s)
    entry.whole_body_sent = True
    return True


async def _read(wire: _Wire, ask: Ask, entry: Entry, *, pipelined: bool) -> bool:
    """Read an answer into its entry. True: the connection is of no more use."""
    try:
        answer = await _answer(wire)
    except _Left:
        entry.end = "gave_up"
    except _Ended as error:
        entry.end, entry.detail = "broken", str(error)
    except _Malformed as error:
        entry.end, entry.detail = "malformed", str(error)
    except TimeoutError:
        entry.end = "hung"
    else:
        entry.received = wire.got
        _judge(ask, answer, entry)
        return answer.headers.get("connection") == "close"
    unread = wire.data
    if not wire.got:
        unread = unread.removeprefix(CONTINUE)
    entry.received = wire.got if pipelined else wire.got + len(unread)
    return True


def _judge(ask: Ask, answer: _Answer, entry: Entry) -> None:
    """An answer that is whole by its framing: what is it?"""
    body = answer.body
    entry.status = answer.status
    entry.reason = answer.headers.get("x-headgate-reason", "")
    if ask.has_id and answer.headers.get("x-request-id") != ask.id:
        entry.end, entry.detail = "foreign", f"x-request-id of {answer.headers}"
    elif answer.status != 200:
        entry.end = "error_status"
    elif b"event: error" in body or b'data: {"error":' in body:
        entry.end = "error_event"
        entry.by_gateway = any(b'"message":"' + words in body for words in GATEWAY_SAYS)
    elif ask.echoes and ask.id.encode() not in body:
        entry.end, entry.detail = "foreign", repr(body[:300])
    elif ask.is_stream and not any(mark in body for mark in END_MARKS):
        entry.end, entry.detail = "unended", repr(body[-300:])
    else:
        entry.end = "whole"


def _entry(ask: Ask, end: str) -> Entry:
    return Entry(ask.id, ask.kind, end, has_id=ask.has_id, body_bytes=ask.body_bytes)


def _settle_rest(entries: list[Entry], end: str) -> None:
    for entry in entries:
        entry.end = entry.end or end
