"""Writes the access log lines that the workers send. Bounded, and never waits for a slow disk."""

import logging
import os
import sys
import threading
import time
from collections import deque

from gateway.messages import Access

__all__ = ["AccessLog"]

log = logging.getLogger("headgate.access")

MAX_LINES = 100_000
"""Held for a slow disk, about 40 MB; what comes beyond is dropped and counted."""

COMPLAINT_S = 60.0
"""Between two log lines about a disk that takes nothing."""


class AccessLog:
    """Lines go to `path` ('-': standard output) from a thread of its own.

    OSError if the file cannot be opened at first; later errors are logged and cost the lines.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        # Each has one writer: the loop's thread, and ours.
        self._refused = self._unwritten = 0
        self._complained_s = -COMPLAINT_S
        self._lines: deque[bytes] = deque()
        self._wake = threading.Event()
        self._reopen = threading.Event()
        self._closing = False
        self._fd = self._open()
        self._thread = threading.Thread(target=self._write_forever, name="access-log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Lines that are in no file: too many at once, or the disk would not have them."""
        return self._refused + self._unwritten

    def take(self, message: Access) -> None:
        """Queue a worker's lines; never blocks."""
        room = MAX_LINES - len(self._lines)
        self._lines.extend(message.lines[:room])
        self._refused += max(0, len(message.lines) - room)
        self._wake.set()

    def reopen(self) -> None:
        """The file was moved away (logrotate): go on in a new one of the same name."""
        self._reopen.set()
        self._wake.set()

    def close(self) -> None:
        """Write what is queued and close; waits 2 s at most."""
        self._closing = True
        self._wake.set()
        self._thread.join(2.0)

    def _open(self) -> int:
        if self.path == "-":
            return os.dup(sys.stdout.fileno())
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)

    def _write_forever(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            closing = self._closing
            try:
                self._write_queued()
                if self._reopen.is_set():
                    self._reopen.clear()
                    fresh = self._open()
                    os.close(self._fd)
                    self._fd = fresh
            except OSError as error:
                self._complain(error)
            if closing:
                os.close(self._fd)
                return

    def _write_queued(self) -> None:
        while self._lines:
            batch = [self._lines.popleft() for _ in range(min(1000, len(self._lines)))]
            data = memoryview(b"\n".join(batch) + b"\n")
            try:
                while data:
                    data = data[os.write(self._fd, data) :]
            except OSError:
                self._unwritten += data.tobytes().count(b"\n")
                raise

    def _complain(self, error: OSError) -> None:
        if time.monotonic() - self._complained_s < COMPLAINT_S:
            return
        self._complained_s = time.monotonic()
        log.error(
            "the access log %s cannot be written: %s (%d lines lost so far)",
            self.path,
            error.strerror,
            self.dropped,
        )
