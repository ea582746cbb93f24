"""`headgate serve` as a user starts it: a subprocess with a configuration file, on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.real.process import free_port

START_S = 30.0
STOP_S = 15.0
ADMIN_TOKEN = "only-for-this-test"
# Quick to notice, because that is what the failure tests wait for; but a machine with more engines
# than cores may well leave a healthy one without a turn for a second.
CONFIG: dict[str, Any] = {
    "admin": {"token": ADMIN_TOKEN},
    "health": {
        "interval_s": 0.5,
        "stall_s": 2.0,
        "backoff_s": 0.5,
        "backoff_max_s": 2.0,
        "slow_start_s": 1.0,
    },
    "drain": {"pre_stop_s": 0.0, "grace_s": 5.0},
}


class GatewayError(Exception):
    """The gateway did not start or did not end; the text ends with its log."""


class Gateway:
    """`url` takes the clients' requests, `admin_url` has readiness, metrics and the endpoints."""

    def __init__(self, engines: Sequence[str], folder: Path, config: dict[str, Any]) -> None:
        self.engines = list(engines)
        port, admin_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.admin_url = f"http://127.0.0.1:{admin_port}"
        self._log = folder / f"headgate-{port}.log"
        file = folder / f"headgate-{port}.yaml"
        # JSON is YAML.
        file.write_text(json.dumps({**CONFIG, **config}))
        self._command = [str(Path(sys.executable).with_name("headgate")), "serve"]
        for engine in engines:
            self._command += ["--engine", engine]
        self._command += ["--host", "127.0.0.1", "--port", str(port)]
        self._command += ["--admin-port", str(admin_port), "--config", str(file)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once the gateway is ready and has seen every one of its engines up."""
        # Settings of whoever runs the tests are not ours, and would win over the file.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HEADGATE_")}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
            )
        limit = time.monotonic() + START_S
        while not (self.ready() and self.usable() == len(self.engines)):
            if self._process.poll() is not None:
                raise GatewayError(f"headgate ended while it started\n{self.log_tail()}")
            if time.monotonic() > limit:
                raise GatewayError(
                    f"headgate does not have its engines after {START_S} s\n{self.log_tail()}"
                )
            time.sleep(0.05)

    def stop(self) -> None:
        """As an operator does it; an end of another kind is a finding of its own."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            raise GatewayError(f"headgate did not end on SIGTERM\n{self.log_tail()}") from None
        if code != 0:
            raise GatewayError(f"headgate ended with {code}\n{self.log_tail()}")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.admin_url}/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def endpoints(self) -> list[dict[str, Any]]:
        request = urllib.request.Request(
            f"{self.admin_url}/admin/endpoints", headers={"authorization": f"Bearer {ADMIN_TOKEN}"}
        )
        with urllib.request.urlopen(request, timeout=5) as answer:
            return list(json.load(answer)["data"])

    def usable(self) -> int:
        return sum(endpoint["state"] == "ready" for endpoint in self.endpoints())

    def in_flight(self) -> int:
        return sum(int(endpoint["load"]["in_flight"]) for endpoint in self.endpoints())

    def log_tail(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()
        return "\n".join(["--- log of headgate", *lines[-60:]])


_running: list[Gateway] = []


def logs() -> list[str]:
    """Of the gateways that run, for the report of a failed test."""
    return [gateway.log_tail() for gateway in _running]


@contextlib.contextmanager
def running(engines: Sequence[str], **config: Any) -> Iterator[Gateway]:
    """With these sections of its configuration besides those of every test."""
    with tempfile.TemporaryDirectory(prefix="headgate-lane-") as folder:
        gateway = Gateway(engines, Path(folder), config)
        _running.append(gateway)
        try:
            gateway.start()
            yield gateway
            gateway.stop()
        except BaseException:
            print(gateway.log_tail())
            raise
        finally:
            gateway.kill()
            _running.remove(gateway)
