"""What a chaos run is about: the gateway as its users run it, over simulated engines."""

import asyncio
import contextlib
import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["ENGINES", "Admin", "Engines", "Gateway", "Metrics", "fetch"]

N_ENGINES = 4
ENGINES = tuple(f"sim-{at}" for at in range(N_ENGINES))
KEEPER = f"sim-{N_ENGINES}"
"""One engine more, unknown to the gateway and never struck: the others are reached through it,
also while their own listeners are closed."""
TOKEN = "chaos"
START_S = 60.0
STOP_S = 30.0

Metrics = dict[str, float]


async def fetch(port: int, method: str, target: str, body: bytes = b"") -> bytes:
    """One request on a connection of its own. OSError: no answer, or not 200."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(
            f"{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            f"Authorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        async with asyncio.timeout(20):
            data = await reader.read()
    finally:
        writer.close()
    head, _, content = data.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200 "):
        raise OSError(f"{target}: {head[:60]!r}")
    return content


class Admin:
    """The gateway's admin port."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def metrics(self) -> Metrics:
        """Every sample, by its name and labels as they stand there."""
        found = {}
        for line in (await fetch(self.port, "GET", "/metrics")).decode().splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                found[name] = float(value)
        return found


class _Process:
    """A child process in a session of its own, and the lines it writes."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.code: int | None = None
        self.process: asyncio.subprocess.Process | None = None

    async def _start(self, *arguments: str, stream: str) -> asyncio.StreamReader:
        # Settings of whoever runs this would win over ours.
        env = {k: v for k, v in os.environ.items() if not k.startswith("HEADGATE_")}
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "headgate", *arguments),
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE if stream == "stdout" else None,
            stderr=asyncio.subprocess.PIPE if stream == "stderr" else None,
            start_new_session=True,
        )
        pipe = getattr(self.process, stream)
        assert isinstance(pipe, asyncio.StreamReader)
        return pipe

    async def _lines_until(self, pipe: asyncio.StreamReader, pattern: str, count: int) -> list[str]:
        found: list[str] = []
        async with asyncio.timeout(START_S):
            while len(found) < count:
                line = (await pipe.readline()).decode()
                if not line:
                    raise RuntimeError("it ended while it started:\n" + "".join(self.log))
                self.log.append(line)
                found += re.findall(pattern, line)
        self._reader = asyncio.create_task(self._read(pipe))
        return found

    async def _read(self, pipe: asyncio.StreamReader) -> None:
        async for line in pipe:
            self.log.append(line.decode(errors="replace"))

    async def stop(self, number: int = signal.SIGTERM) -> None:
        """End it, if it runs; its exit code stands in `code`."""
        if self.code is not None or self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        try:
            async with asyncio.timeout(STOP_S):
                self.code = await self.process.wait()
        except TimeoutError:
            self.process.kill()
            self.code = await self.process.wait()
        await self._reader


class Engines(_Process):
    """`headgate sim`: all engines in one process."""

    def __init__(self) -> None:
        super().__init__()
        self.ports: dict[str, int] = {}

    async def start(self, time_scale: float) -> None:
        """Start and wait until they listen."""
        pipe = await self._start(
            *("sim", "--port", "0", "--replicas", str(N_ENGINES + 1)),
            *("--time-scale", str(time_scale)),
            stream="stdout",
        )
        pattern = r"^(\S+ ready on http://\S+)"
        for line in await self._lines_until(pipe, pattern, N_ENGINES + 1):
            name, _, url = line.partition(" ready on ")
            self.ports[name] = int(url.rpartition(":")[2])

    async def command(self, verb: str, engine: str, **options: Any) -> dict[str, Any]:
        """`fault` or `heal` an engine; its state."""
        body = json.dumps({"engine": engine, **options}).encode()
        answer = await fetch(self.ports[KEEPER], "POST", f"/sim/{verb}", body)
        state: dict[str, Any] = json.loads(answer)
        return state

    async def states(self) -> dict[str, dict[str, Any]]:
        """Every engine's own counts."""
        port = self.ports[KEEPER]
        return {
            name: json.loads(await fetch(port, "GET", f"/sim/state?engine={name}"))
            for name in ENGINES
        }

    async def states_at_rest(self, patience_s: float) -> dict[str, dict[str, Any]]:
        """The counts once no engine has a connection; the last ones if that does not come."""
        until_s = time.monotonic() + patience_s
        while True:
            states = await self.states()
            busy = any(state["connections_open"] for state in states.values())
            if not busy or time.monotonic() > until_s:
                return states
            await asyncio.sleep(0.1)


class Gateway(_Process):
    """`headgate serve`, with little patience, so that every timeout gets its turn."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.access_log = folder / "access.log"
        self._config = folder / "headgate.yaml"
        self.port = 0
        self.admin = Admin(0)

    async def start(self, ports: dict[str, int], workers: int) -> None:
        """Start and wait until it listens."""
        engines = [
            {
                "url": f"http://127.0.0.1:{ports[name]}",
                "name": name,
                "keep_alive_s": 1.0,
                "max_in_flight": 10,
            }
            for name in ENGINES
        ]
        config = {
            "listen": {"port": 0},
            "admin": {"port": 0, "token": TOKEN},
            "workers": workers,
            "engines": engines,
            "access_log": str(self.access_log),
            "timeouts": {
                "head_s": 1.0,
                "body_idle_s": 1.0,
                "connect_s": 1.0,
                "first_byte_s": 2.0,
                "event_s": 1.0,
                "client_stall_s": 2.0,
                "client_keep_alive_s": 600.0,
                "dead_silence_s": 0.4,
            },
            "health": {
                "interval_s": 0.25,
                "timeout_s": 0.5,
                "models_interval_s": 2.0,
                "backoff_s": 0.1,
                "backoff_max_s": 0.5,
                "slow_start_s": 0,
                "stall_s": 0.7,
                "stuck_s": 3.0,
            },
            "hold": {"requests": 32, "time_s": 1.5, "no_engine_s": 0.5},
            "retry": {"floor": 20, "window_s": 5.0},
            "drain": {"pre_stop_s": 0, "grace_s": 5.0},
        }
        self._config.write_text(json.dumps(config))
        pipe = await self._start("serve", "--config", str(self._config), stream="stderr")
        pattern = r"((?:listening|admin) on http://\S+)"
        for line in await self._lines_until(pipe, pattern, 2):
            port = int(line.rpartition(":")[2])
            if line.startswith("admin"):
                self.admin = Admin(port)
            else:
                self.port = port
