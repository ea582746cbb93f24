"""HTTP/1.1 as uvicorn serves it, on a bare transport: heads, chunks, keep-alive, pipelining.

Raw because faults need the transport. One connection serves its requests one after the other.
Nothing here knows what a request means: a complete one goes to `Host.handle` with the response to
write. All calls happen on the event loop's thread; nothing blocks and nothing is a coroutine.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Protocol, cast
from urllib.parse import parse_qs, unquote

import httptools

from engines.sim.response import Response

__all__ = ["Connection", "Host", "Request", "Traffic"]

_UNVERSIONED = ("/tokenize", "/detokenize", "/rerank", "/v2/rerank", "/score")


@dataclass(slots=True)
class Traffic:
    """Connections and bytes, exact at any time. opened = closed + open."""

    opened: int = 0
    closed: int = 0
    bytes_in: int = 0
    bytes_out: int = 0


@dataclass(slots=True)
class Request:
    """One request, whole. Header names are lower case."""

    method: str = ""
    path: str = ""
    query: dict[str, list[str]] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    keep_alive: bool = True
    response: Response | None = None

    @property
    def is_inference(self) -> bool:
        """Whether faults that strike requests may strike it, and accounts count it."""
        path = self.path
        if self.method != "POST":
            return False
        return path.startswith("/v1/") or path in _UNVERSIONED


class Host(Protocol):
    """Who answers. Contract: called on the loop's thread, must not block, must not raise."""

    traffic: Traffic
    connections: set[Connection]
    keep_alive_s: float

    def reads(self, request: Request) -> bool:
        """A head has come. False: do not read this connection any further."""

    def handle(self, request: Request, response: Response) -> None:
        """A request is whole. The response is written now or later; `response.on_gone` says
        that its client has left."""


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # connection_made
        self.current: Response | None = None
        self.writable = True
        self._loop = asyncio.get_running_loop()
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self._parser: Any = httptools.HttpRequestParser(self)
        self._next: Request = Request()
        self._body: list[bytes] = []
        self._queue: deque[Request] = deque()
        self._idle: asyncio.TimerHandle | None = None
        self._url = b""
        self._deaf = False

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.host.traffic.opened += 1
        self.host.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.host.traffic.closed += 1
        self.host.connections.discard(self)
        self._stop_idling()
        self._queue.clear()
        response, self.current = self.current, None
        if response is not None:
            response.gone()
        self.lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        self.host.traffic.bytes_in += len(data)
        if self._deaf:
            return
        self._stop_idling()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # uvicorn goes on in HTTP/1.1 when it has no other protocol to offer
        except httptools.HttpParserError:
            self._refuse_bytes()

    def eof_received(self) -> bool:
        return False  # a half-closed client counts as gone, as uvicorn has it

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        if self.current is not None:
            self.current.resumed()

    # httptools callbacks

    def on_message_begin(self) -> None:
        self._next = Request()
        self._body = []
        self._url = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._next.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        request = self._next
        request.method = self._parser.get_method().decode()
        request.keep_alive = self._parser.should_keep_alive()
        url = httptools.parse_url(self._url)
        request.path = unquote((url.path or b"/").decode("latin-1"))
        request.query = parse_qs((url.query or b"").decode("latin-1"))
        if not self.host.reads(request):
            self._deaf = True
            self.transport.pause_reading()
        elif request.headers.get("expect", "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._deaf:
            return
        self._next.body = b"".join(self._body)
        self._queue.append(self._next)
        self._serve()

    # for Response

    def write(self, data: bytes) -> None:
        """Send bytes; what a lost connection is given is dropped."""
        if not self.transport.is_closing():
            self.host.traffic.bytes_out += len(data)
            self.transport.write(data)

    def finished(self, response: Response, keep_alive: bool) -> None:
        """The response is complete: go on with the next request, idle, or close."""
        if self.current is not response:
            return
        self.current = None
        if not keep_alive:
            self.transport.close()
        elif self._queue:
            self._loop.call_soon(self._serve)
        else:
            self._idle = self._loop.call_later(self.host.keep_alive_s, self.transport.close)

    # for the engine

    @property
    def idle(self) -> bool:
        """No request is being served or has begun to arrive."""
        return self.current is None and not self._queue and not self._deaf

    def listen_again(self) -> None:
        """End of `stop_reading`. What was not read is lost: the connection closes."""
        if self._deaf:
            self.transport.close()

    def _serve(self) -> None:
        if self.current is not None or not self._queue or self.transport.is_closing():
            return
        request = self._queue.popleft()
        self.current = request.response = Response(self, request.method, request.keep_alive)
        self.host.handle(request, self.current)

    def _stop_idling(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _refuse_bytes(self) -> None:
        self._deaf = True
        body = b"Invalid HTTP request received."
        self.write(
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body)
        )
        self.transport.close()
