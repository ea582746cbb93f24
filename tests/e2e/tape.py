"""A client's connection in memory: the session is real, and each piece comes when told."""

import asyncio
import re
from typing import Any

from gateway.proxy._session import Session

__all__ = ["Tape", "turn"]

STATUS_LINE = re.compile(rb"HTTP/1\.1 (\d{3}) ")


async def turn(times: int = 6) -> None:
    """Let the loop turn: enough for whatever a session does by itself."""
    for _ in range(times):
        await asyncio.sleep(0)


class Tape:
    """The transport of one session: keeps what it writes. What it does to the session, it does as
    uvloop's would: in a later turn of the loop."""

    def __init__(self, plane: Any) -> None:
        self.output = b""
        self.half_closed = self.closing = self.lost = self.reads_paused = False
        self._loop = asyncio.get_running_loop()
        self.session = Session(plane)
        self.session.connection_made(self)

    # the client's side

    def feed(self, data: bytes) -> None:
        """The client's bytes are here."""
        if not self.closing:
            self.session.data_received(data)

    def end(self) -> None:
        """The client's FIN is here."""
        if not self.closing and not self.session.eof_received():
            self.close()

    def drop(self) -> None:
        """The client has gone."""
        self.abort()

    @property
    def statuses(self) -> list[int]:
        """Of the answers so far."""
        return [int(status) for status in STATUS_LINE.findall(self.output)]

    # the session's side

    def write(self, data: bytes) -> None:
        assert not self.half_closed, "bytes behind a FIN"
        if not self.closing:
            self.output += data

    def writelines(self, pieces: Any) -> None:
        self.write(b"".join(pieces))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.half_closed = True

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self._loop.call_soon(self._lose)

    abort = close

    def _lose(self) -> None:
        self.lost = True
        self.session.connection_lost(None)

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self.reads_paused = True

    def resume_reading(self) -> None:
        self.reads_paused = False

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As over TLS: what there is to send must come here."""
        return self if name == "ssl_object" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0
