"""The server's side of HTTP/2 for tests, written frame by frame, so that it can also be wrong.

What its client does against the protocol (RFC 9113) it tells as faults.
"""

import asyncio
import struct
from enum import IntEnum
from typing import Any

from hpack import Decoder, Encoder

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_BYTES = 16384
WINDOW = 65535
LAST_ID = 2**31 - 1


class Kind(IntEnum):
    """Of a frame."""

    DATA = 0
    HEADERS = 1
    PRIORITY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PUSH_PROMISE = 5
    PING = 6
    GOAWAY = 7
    WINDOW_UPDATE = 8
    CONTINUATION = 9


# Flags; of SETTINGS and PING the first is ACK.
END, ACK, END_HEAD, PADDED, HAS_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20
# Why a call is reset.
NO_ERROR, INTERNAL, REFUSED, CANCEL = 0, 2, 7, 8
# Settings.
MOST_CALLS, CALL_WINDOW, MOST_FRAME = 3, 4, 5


def frame(kind: int, flags: int = 0, id: int = 0, body: bytes = b"") -> bytes:
    head = len(body).to_bytes(3, "big") + bytes([kind, flags]) + id.to_bytes(4, "big")
    return head + body


def number(value: int) -> bytes:
    return value.to_bytes(4, "big")


def padded(body: bytes, n: int) -> bytes:
    """The body of a frame with n bytes of padding; it has the flag PADDED."""
    return bytes([n]) + body + bytes(n)


def settings(values: dict[int, int]) -> bytes:
    body = b"".join(struct.pack(">HI", name, value) for name, value in values.items())
    return frame(Kind.SETTINGS, body=body)


def goaway(last_id: int = LAST_ID, code: int = NO_ERROR) -> bytes:
    return frame(Kind.GOAWAY, body=number(last_id) + number(code) + b"bye")


class Call:
    """A stream, from its HEADERS on."""

    def __init__(self, link: "Link", id: int, fields: dict[str, str]) -> None:
        self.link, self.id, self.fields = link, id, fields
        self.body = bytearray()
        self.allowed = link.call_window  # what the client may still send of it
        self.room = link.room_of_calls  # what the client still takes of it
        self.asked = asyncio.Event()  # the client has sent all of it
        self.answered = False
        self.reset: int | None = None  # by the client
        self.refused = False
        self.over = asyncio.Event()  # the client has reset it, or the connection is gone

    @property
    def is_open(self) -> bool:
        whole = self.asked.is_set() and self.answered
        return not (whole or self.refused or self.reset is not None)

    def send(self, kind: int, flags: int = 0, body: bytes = b"") -> None:
        self.link.send(frame(kind, flags, self.id, body))

    def block(self, *fields: tuple[str, str]) -> bytes:
        """A header block; later ones refer to it, so it has to be sent."""
        encoded: bytes = self.link.encoder.encode(list(fields))
        return encoded

    def head_block(self) -> bytes:
        return self.block((":status", "200"), ("content-type", "application/grpc"))

    def end_block(self, status: int = 0, text: str = "") -> bytes:
        return self.block(("grpc-status", str(status)), ("grpc-message", text))

    def head(self) -> None:
        self.send(Kind.HEADERS, END_HEAD, self.head_block())

    def say(self, *pieces: bytes) -> None:
        """A DATA frame each."""
        for piece in pieces:
            self.send(Kind.DATA, 0, piece)
            self.room -= len(piece)
            self.link.room -= len(piece)

    def end(self, status: int = 0, text: str = "") -> None:
        self.answered = True
        self.send(Kind.HEADERS, END_HEAD | END, self.end_block(status, text))

    def refuse(self, code: int) -> None:
        self.refused = True
        self.send(Kind.RST_STREAM, 0, number(code))

    async def pour(self, data: bytes) -> None:
        """As much at a time as the client takes, until it has ended the call."""
        at = 0
        while at < len(data) and not self.over.is_set():
            n = min(len(data) - at, FRAME_BYTES, self.room, self.link.room)
            if n > 0:
                self.say(data[at : at + n])
                at += n
                await self.link.writer.drain()
            else:
                await self.link.changed()


class Link:
    """A connection. `server`: has `begin(call)`, `faults` and `gives`."""

    def __init__(self, server: Any, writer: asyncio.StreamWriter) -> None:
        self.server, self.writer = server, writer
        self.encoder, self.decoder = Encoder(), Decoder()
        self.calls: dict[int, Call] = {}
        self.widened: list[tuple[int, int]] = []  # by the client: id, bytes
        self.pongs: list[bytes] = []
        self.n_sent = 0
        self.closed = asyncio.Event()
        self.allowed = self.call_window = WINDOW
        self.room = self.room_of_calls = WINDOW
        self.most_calls, self.most_frame = LAST_ID, FRAME_BYTES
        self.unacknowledged: list[dict[int, int]] = []
        self.n_hasty = 0  # frames that only settings allow which were not acknowledged before
        self.has_settings = False
        self.takes_calls = True
        self._change = asyncio.Event()

    def send(self, data: bytes) -> None:
        self.n_sent += len(data)
        self.writer.write(data)

    def settings(self, values: dict[int, int]) -> None:
        self.unacknowledged.append(values)
        self.send(settings(values))

    def widen(self, id: int, n: int) -> None:
        if id:
            self.calls[id].allowed += n
        else:
            self.allowed += n
        self.send(frame(Kind.WINDOW_UPDATE, 0, id, number(n)))

    def go_away(self, last_id: int = LAST_ID) -> None:
        """Once the client has answered the PING behind it, it may begin no call."""
        self.send(goaway(last_id) + frame(Kind.PING, body=b"goodbye!"))

    def close(self) -> None:
        self.writer.close()

    async def settle(self) -> None:
        """The client knows all that it was told, and has sent what it may by now."""
        n = len(self.pongs)
        self.send(frame(Kind.PING, body=b"settled?"))
        while len(self.pongs) == n:  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def changed(self) -> None:
        """The client has widened a window, or ended a call."""
        self._change.clear()
        await self._change.wait()

    async def read(self, reader: asyncio.StreamReader) -> None:
        """Until the client closes it: IncompleteReadError."""
        if await reader.readexactly(len(PREFACE)) != PREFACE:
            self.fault("no preface")
        while True:
            head = await reader.readexactly(9)
            body = await reader.readexactly(int.from_bytes(head[:3], "big"))
            self._check_size(len(body))
            if not self.has_settings and head[3] != Kind.SETTINGS:
                self.fault("it does not begin with SETTINGS")
            self._take(head[3], head[4], int.from_bytes(head[5:], "big"), body)

    def lost(self) -> None:
        self.closed.set()
        for call in self.calls.values():
            self._end(call)

    def fault(self, text: str) -> None:
        self.server.faults.append(text)

    def _check_size(self, n: int) -> None:
        sizes = [values.get(MOST_FRAME, 0) for values in self.unacknowledged]
        if n > max(self.most_frame, *sizes, 0):
            self.fault(f"a frame of {n} bytes")
        elif n > self.most_frame:
            self.n_hasty += 1

    def _take(self, kind: int, flags: int, id: int, body: bytes) -> None:
        if kind == Kind.HEADERS:
            self._begin(flags, id, body)
        elif kind == Kind.SETTINGS:
            self._on_settings(flags, body)
        elif kind == Kind.PING and flags & ACK:
            self.pongs.append(body)
            self.takes_calls = self.takes_calls and body != b"goodbye!"
        elif kind == Kind.WINDOW_UPDATE and id == 0:
            self._on_widened(self, id, body)
        elif id in self.calls:
            self._on_call(self.calls[id], kind, flags, body)
        else:
            self.fault(f"a frame of kind {kind} on {id}")

    def _begin(self, flags: int, id: int, block: bytes) -> None:
        fields = dict(self.decoder.decode(block))
        if id % 2 == 0 or id <= max(self.calls, default=0) or flags != END_HEAD:
            self.fault(f"HEADERS with {flags} on {id}")
        if not self.takes_calls:
            self.fault("a call after GOAWAY")
        call = self.calls[id] = Call(self, id, fields)
        if sum(one.is_open for one in self.calls.values()) > self.most_calls:
            self.fault(f"more than {self.most_calls} calls at once")
        self.server.begin(call)

    def _on_settings(self, flags: int, body: bytes) -> None:
        self.has_settings = True
        if not flags & ACK:
            self.room_of_calls = dict(struct.iter_unpack(">HI", body)).get(CALL_WINDOW, WINDOW)
            self.send(frame(Kind.SETTINGS, ACK))
        elif self.unacknowledged:
            self._apply(self.unacknowledged.pop(0))
        else:
            self.fault("an ACK of no SETTINGS")

    def _apply(self, values: dict[int, int]) -> None:
        """The client knows them: all that it has sent before was by the old ones."""
        self.most_calls = values.get(MOST_CALLS, self.most_calls)
        self.most_frame = values.get(MOST_FRAME, self.most_frame)
        grown = values.get(CALL_WINDOW, self.call_window) - self.call_window
        self.call_window += grown
        for call in self.calls.values():
            call.allowed += grown

    def _coming(self) -> int:
        """What settings that are not acknowledged yet may add to each call's window."""
        windows = [values[CALL_WINDOW] for values in self.unacknowledged if CALL_WINDOW in values]
        return max(windows, default=self.call_window) - min(self.call_window, *windows, LAST_ID)

    def _on_widened(self, whose: "Link | Call", id: int, body: bytes) -> None:
        self.widened.append((id, int.from_bytes(body, "big")))
        whose.room += self.widened[-1][1]
        self._change.set()

    def _on_call(self, call: Call, kind: int, flags: int, body: bytes) -> None:
        if call.reset is not None or (kind == Kind.DATA and call.asked.is_set()):
            self.fault(f"a frame of kind {kind} on a call that its client has ended")
        if kind == Kind.DATA:
            self._on_data(call, flags, body)
        elif kind == Kind.RST_STREAM:
            call.reset = int.from_bytes(body, "big")
            self._end(call)
        elif kind == Kind.WINDOW_UPDATE:
            self._on_widened(call, call.id, body)
        else:
            self.fault(f"a frame of kind {kind} in a call")

    def _on_data(self, call: Call, flags: int, body: bytes) -> None:
        call.body += body
        call.allowed -= len(body)
        self.allowed -= len(body)
        if body and (self.allowed < 0 or call.allowed + self._coming() < 0):
            self.fault(f"more than its windows: {call.allowed}, {self.allowed}")
        elif body and call.allowed < 0:
            self.n_hasty += 1
        if self.server.gives and body:
            self.widen(0, len(body))
            self.widen(call.id, len(body))
        if flags & END:
            call.asked.set()

    def _end(self, call: Call) -> None:
        call.over.set()
        self._change.set()
