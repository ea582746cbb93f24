"""A TCP forwarder in front of an engine that keeps what the engine sent, for exact comparison."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

READ_BYTES = 65536


@dataclass(frozen=True)
class Answer:
    """One HTTP response as the engine wrote it, its chunks joined."""

    head: bytes
    body: bytes


class Tap:
    """Forwards each connection with two threads; the record grows by whole reads."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._records: list[bytearray] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        # Closing alone does not wake a thread that waits in accept.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def answer(self, marker: bytes) -> Answer:
        """The response that holds the marker, which must be complete."""
        for record in self._records:
            received = bytes(record)
            at = received.find(marker)
            if at >= 0:
                return parse(received[received.rindex(b"HTTP/1.1 ", 0, at) :])
        raise LookupError(f"no answer with {marker!r}")

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                engine = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                client.close()
                continue
            record = bytearray()
            self._records.append(record)
            for args in ((client, engine, bytearray()), (engine, client, record)):
                threading.Thread(target=forward, args=args, daemon=True).start()


def forward(source: socket.socket, sink: socket.socket, record: bytearray) -> None:
    try:
        while data := source.recv(READ_BYTES):
            record += data
            sink.sendall(data)
    except OSError:
        pass
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
    # Only its own: the other direction may still be reading the sink.
    source.close()


def parse(received: bytes) -> Answer:
    head, _, rest = received.partition(b"\r\n\r\n")
    if b"\r\ntransfer-encoding: chunked" in head.lower():
        return Answer(head, b"".join(chunks(rest)))
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return Answer(head, rest[: int(line.partition(b":")[2])])
    raise ValueError(f"no framing in {head!r}")


def chunks(rest: bytes) -> Iterator[bytes]:
    while True:
        size_line, _, rest = rest.partition(b"\r\n")
        size = int(size_line, 16)
        if size == 0:
            return
        yield rest[:size]
        rest = rest[size + 2 :]
