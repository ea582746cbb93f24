"""A real engine's server process on loopback, and the processes it starts for itself.

Those are found by their place in the process tree and ended by pid, each checked against its start
time first, because a server that died leaves its children to init and its numbers to others.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.real.process import Process, descendants


class ServerError(Exception):
    """A server did not start or is not what a test needs; the text ends with its log."""


class EngineServer:
    """`start`, `wait_ready`, then `url`; `stop` is safe at any time and may be called twice.

    A kind of engine says what its `command` is, and what is told to `environment`.
    """

    HEALTH_PATH = "/health"
    # From start to healthy, and from SIGTERM to the end. The second is for servers that wait for
    # requests in flight: what still runs then is killed.
    START_LIMIT_S = 300.0
    STOP_LIMIT_S = 5.0
    # Lines of a log that say nothing: a pattern found in them.
    NOISE = r"\Z\A."

    def __init__(self, kind: str, name: str, port: int) -> None:
        self.name = name
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.metrics_url = f"{self.url}/metrics"
        self.start_s = 0.0
        # Nothing may be asked of it any more, though it may go on answering for a while.
        self.leaving = False
        self.command: list[str] = []
        self.environment: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._family: set[Process] = set()
        self._log = Path(tempfile.gettempdir()) / f"headgate-{kind}-{os.getpid()}-{name}.log"
        self._since_s = 0.0

    def start(self) -> None:
        self._since_s = time.monotonic()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
            )

    def wait_ready(self) -> None:
        while not self.healthy():
            if not self.running():
                raise ServerError(f"{self.name} ended while it started\n{self.log_tail()}")
            if time.monotonic() - self._since_s > self.START_LIMIT_S:
                raise ServerError(
                    f"{self.name} is not up after {self.START_LIMIT_S} s\n{self.log_tail()}"
                )
            # A server that fails half-way leaves its children behind.
            self._remember_family()
            time.sleep(0.3)
        self.start_s = time.monotonic() - self._since_s
        self._remember_family()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def started(self) -> bool:
        return self._process is not None

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def healthy(self) -> bool:
        return self.answers(self.HEALTH_PATH)

    def answers(self, path: str) -> bool:
        """Whether a GET there gets 200."""
        try:
            with urllib.request.urlopen(f"{self.url}{path}", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def terminate(self) -> None:
        self.leaving = True
        self._remember_family()
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        """All its processes at once, as a machine dies; `start` makes it anew."""
        assert self._process is not None
        self._remember_family()
        self._process.kill()
        self._signal_family(signal.SIGKILL)
        self._process.wait()
        self._family.clear()

    def wait_exit(self, timeout_s: float) -> bool:
        assert self._process is not None
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self) -> None:
        if self._process is None:
            return
        self._remember_family()
        if self.running():
            # What a test stopped must run to be able to end.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGCONT)
            self._signal_family(signal.SIGCONT)
            self._process.terminate()
            self.wait_exit(self.STOP_LIMIT_S)
        self._signal_family(signal.SIGKILL)
        if self.running():
            self._process.kill()
        self._process.wait()
        self._log.unlink(missing_ok=True)
        self._process = None

    def metrics(self) -> str:
        with urllib.request.urlopen(self.metrics_url, timeout=10) as answer:
            return str(answer.read().decode())

    def metric(self, name: str, label: str = "") -> float:
        """The sum over the series of one metric, its name as on the page of metrics; with `label`
        (`key="value"`) of those that have it."""
        pattern = rf"^{re.escape(name)}(?:\{{(?=.*{re.escape(label)}).*\}})? (\S+)$"
        values = re.findall(pattern, self.metrics(), re.MULTILINE)
        if not values:
            raise ServerError(f"{self.name} has no metric {name} {label}")
        return sum(float(value) for value in values)

    def log_tail(self) -> str:
        try:
            lines = self._log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        lines = [line for line in lines if not re.search(self.NOISE, line)]
        code = self._process.returncode if self._process else None
        ended = f" (ended with {code})" if code is not None else ""
        return "\n".join([f"--- log of {self.name}{ended}", *lines[-40:]])

    def _remember_family(self) -> None:
        if self.running():
            self._family |= set(descendants(self.pid))

    def _signal_family(self, number: int) -> None:
        for process in self._family:
            process.kill(number)
