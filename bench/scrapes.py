"""What it costs the control process to scrape many engines, each once a second.

    python -m bench.scrapes [--engines 1000] [--seconds 15] [--rounds 3] [--aiohttp]

One process plays all engines: it listens on one port of the loopback and answers each of them with
a vLLM's metrics page. The gateway runs twice per round: with engines that have metrics, and with
engines that have none; both are asked for nothing else meanwhile. The difference in the CPU time of
its control process is what the scrapes cost. With --aiohttp the same number of pages is fetched and
read by aiohttp, in a process of its own, for comparison.
"""

import argparse
import asyncio
import contextlib
import json
import resource
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import uvloop

from bench import processes
from bench.gwbench import free_ports
from bench.machine import describe
from bench.metrics_page import vllm_page
from bench.proxies import environment

__all__ = ["main"]

SETTLE_S = 8.0
"""After the last engine is ready: start-up garbage and the first idle probes are over."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: measure, print."""
    processes.exit_on_sigterm()
    parser = argparse.ArgumentParser(prog="python -m bench.scrapes", description=__doc__)
    parser.add_argument("--engines", type=int, default=1000, help="at most 1000")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--aiohttp", action="store_true", help="measure it instead")
    parser.add_argument("--play", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--fetch", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.play:
        uvloop.run(_play(given.play))
    elif given.fetch:
        uvloop.run(_fetch_forever(given.fetch, given.engines))
    else:
        _print(given)
    return 0


def _print(given: argparse.Namespace) -> None:
    machine = describe()
    print(f"{machine.cpu}, {machine.cores} cores; page of {len(vllm_page())} bytes")
    for _ in range(given.rounds):
        if given.aiohttp:
            _tell("aiohttp", *_measure(given, None))
            continue
        bare = _measure(given, "openai")
        scraped = _measure(given, "vllm")
        _tell("without", *bare)
        _tell("with", *scraped)
        _tell("scrapes", scraped[0] - bare[0], scraped[1])


def _tell(what: str, busy: float, per_s: float) -> None:
    each = f", {busy / per_s * 1e6:.0f} us each" if per_s else ""
    print(f"{what:8} {100 * busy:6.2f} % of a core, {per_s:.0f} pages/s{each}", flush=True)


def _measure(given: argparse.Namespace, kind: str | None) -> tuple[float, float]:
    """(Share of a core, pages per second) of a control process, or of aiohttp."""
    with _playing() as port:
        running = _gateway(port, kind, given.engines) if kind else _aiohttp(port, given.engines)
        with running as pid:
            time.sleep(SETTLE_S)
            before_s, pages, began_s = processes.cpu_s([pid]), _pages(port), time.monotonic()
            time.sleep(given.seconds)
            took_s = time.monotonic() - began_s
            return (
                (processes.cpu_s([pid]) - before_s) / took_s,
                (_pages(port) - pages) / took_s,
            )


@contextlib.contextmanager
def _process(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
        start_new_session=True,
    )
    try:
        yield process
    finally:
        processes.end_all([process])


@contextlib.contextmanager
def _playing() -> Iterator[int]:
    (port,) = free_ports(1)
    with _process("bench.scrapes", "--play", str(port)):
        _wait(lambda: _pages(port) >= 0)
        yield port


@contextlib.contextmanager
def _aiohttp(port: int, n: int) -> Iterator[int]:
    with _process("bench.scrapes", "--fetch", str(port), "--engines", str(n)) as process:
        yield process.pid


@contextlib.contextmanager
def _gateway(port: int, kind: str, n: int) -> Iterator[int]:
    listen_port, admin_port = free_ports(2)
    config = {
        "listen": {"port": listen_port},
        "admin": {"port": admin_port},
        "log": {"level": "warning"},
        # Probes are another matter: each once, at the start.
        "health": {
            "interval_s": 3600,
            "models_interval_s": 3600,
            "timeout_s": 30,
            "scrape_s": 1,
            "scrape_idle_s": 1,
        },
        "engines": [
            {"name": f"e{index}", "url": f"http://127.0.0.1:{port}", "kind": kind}
            for index in range(n)
        ],
    }
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path = Path(folder) / "headgate.yaml"
        path.write_text(json.dumps(config))
        with _process("headgate", "serve", "--config", str(path)) as process:
            _wait(lambda: _all_ready(admin_port, n))
            yield process.pid


def _all_ready(admin_port: int, n: int) -> bool:
    text = _get(admin_port, "/metrics")
    return sum('state="ready"' in line for line in text.splitlines()) == n


def _pages(port: int) -> int:
    return int(_get(port, "/count"))


def _get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as response:
        return str(response.read().decode())


def _wait(is_so: Any, within_s: float = 120.0) -> None:
    deadline_s = time.monotonic() + within_s
    while True:
        with contextlib.suppress(OSError):
            if is_so():
                return
        if time.monotonic() > deadline_s:
            raise RuntimeError("it does not come up")
        time.sleep(0.1)


class _Engines(asyncio.Protocol):
    """A connection to one of the engines."""

    count = 0
    answers: ClassVar[dict[bytes, bytes]] = {}

    def connection_made(self, transport: Any) -> None:  # uvloop's is no asyncio.Transport
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        path = data.split(b" ", 2)[1]
        if path == b"/metrics":
            _Engines.count += 1
        elif path == b"/count":
            self._transport.write(_response(b"%d" % _Engines.count))
            return
        self._transport.write(self.answers.get(path, self.answers[b""]))


def _response(body: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(body), body)


async def _play(port: int) -> None:
    _raise_limit()
    models = {"object": "list", "data": [{"id": "tiny", "object": "model", "owned_by": "vllm"}]}
    _Engines.answers = {
        b"/health": _response(b""),
        b"/v1/models": _response(json.dumps(models).encode()),
        b"/metrics": _response(vllm_page(running=3)),
        b"": _response(b"", b"404 Not Found"),
    }
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Engines, "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


async def _fetch_forever(port: int, n: int) -> None:
    import aiohttp

    from engines.kind import KINDS
    from engines.load import LoadReader

    _raise_limit()
    reader = LoadReader(KINDS["vllm"].metrics)

    async def fetch(session: aiohttp.ClientSession, index: int) -> None:
        await asyncio.sleep(index / n)
        while True:
            began_s = time.monotonic()
            async with session.get(
                f"http://127.0.0.1:{port}/metrics", timeout=aiohttp.ClientTimeout(total=2)
            ) as response:
                reader.read(await response.read())
            await asyncio.sleep(max(0.0, 1.0 - (time.monotonic() - began_s)))

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        await asyncio.gather(*(fetch(session, index) for index in range(n)))


def _raise_limit() -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
