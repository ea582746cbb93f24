"""Builds and runs gwbench.c: the mock engine, and the load generator with typed results."""

import hashlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

__all__ = ["Load", "NoCompiler", "Percentiles", "Run", "build", "free_ports", "start_engine"]

SOURCE = Path(__file__).with_name("gwbench.c")
KEY = "sk-test"
"""What the load generator sends as bearer token unless told otherwise."""
END_EVENTS = 2
"""A stream of N chunks has N + 2 events: the role before them, the end mark behind them."""
GRACE_S = 30
"""What gwbench gives requests under way once its time is over."""


class NoCompiler(Exception):
    """There is no C compiler, or it refused; the text says what to do."""


class Percentiles(msgspec.Struct, frozen=True):
    """In milliseconds; those gwbench does not print are 0."""

    p50: float
    p99: float
    p90: float = 0.0
    p999: float = 0.0


class Run(msgspec.Struct, frozen=True, rename={"seconds": "secs"}):
    """What one run of the load generator counted."""

    ok: int
    non200: int
    errors: int
    """Connections that broke in mid-request, or could not be made."""
    short: int
    """Streams that ended with too few events."""
    late: int
    """Requests of an open loop that found every connection in use, and were not sent."""
    seconds: float
    """Until the last answer, which may be behind the asked time."""
    rps: float
    events_per_s: float
    ttfb_ms: Percentiles
    total_ms: Percentiles
    gap_ms: Percentiles
    """Between two reads of the same response."""
    load_cpu_s: float

    @property
    def bad(self) -> int:
        """Requests that did not end as they should."""
        return self.non200 + self.errors + self.short


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """One run to do against http://host:port."""

    host: str = "127.0.0.1"
    port: int
    body: Path
    """File that is posted as it is."""
    connections: int = 64
    seconds: float = 3.0
    rate_per_s: float = 0.0
    """0: closed loop."""
    path: str = "/v1/chat/completions"
    headers: Sequence[str] = ()
    want_events: int = 0
    """Fewest events of a whole stream; 0: not looked at."""
    key: str = KEY

    def run(self) -> Run:
        """Drive it; blocks for `seconds` and for the requests under way, 30 s of them at most.

        RuntimeError with gwbench's own words if it cannot run.
        """
        done = subprocess.run(
            self.argv(),
            capture_output=True,
            text=True,
            env={**os.environ, "WANT_EVENTS": str(self.want_events), "GWBENCH_KEY": self.key},
            timeout=self.seconds + GRACE_S + 30,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip() or f"gwbench ended with {done.returncode}")
        return msgspec.json.decode(done.stdout, type=Run)

    def argv(self) -> list[str]:
        """The command line; builds gwbench if there is none yet."""
        where = [self.host, str(self.port), str(self.body)]
        how = [str(self.connections), f"{self.seconds:g}", f"{self.rate_per_s:g}"]
        return [str(build()), "load", *where, *how, self.path, *self.headers]


def build(cache: Path | None = None, compiler: str | None = None) -> Path:
    """The gwbench binary of this source, from the cache or made now.

    `cache` defaults to headgate-bench in the user's cache folder, `compiler` to $CC or cc. The
    file's name holds the source's hash, so that no old one is ever run. NoCompiler.
    """
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    cache = cache or default_cache()
    binary = cache / f"gwbench-{digest}"
    if binary.exists():
        return binary
    compiler = compiler or os.environ.get("CC") or "cc"
    if shutil.which(compiler) is None:
        raise NoCompiler(f"gwbench needs a C compiler, and there is no '{compiler}': install gcc")
    cache.mkdir(parents=True, exist_ok=True)
    # Made beside and renamed: two runs at once shall not see half a binary.
    fresh = cache / f".gwbench-{digest}-{os.getpid()}"
    command = [compiler, "-O2", "-Wall", "-o", str(fresh), str(SOURCE), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise NoCompiler(f"'{compiler}' cannot build gwbench:\n{done.stderr.strip()}")
    fresh.rename(binary)
    return binary


def default_cache() -> Path:
    """Where built and installed things are kept between runs."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "headgate-bench"


def start_engine(
    port: int, *, n_chunks: int = 32, gap_us: int = 0, first_us: int = 0
) -> subprocess.Popen[bytes]:
    """Start a mock engine on 127.0.0.1 and wait until it listens; the caller ends it."""
    numbers = [str(number) for number in (port, n_chunks, gap_us, first_us)]
    process = subprocess.Popen([str(build()), "engine", *numbers], start_new_session=True)
    deadline_s = time.monotonic() + 5
    while time.monotonic() < deadline_s and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process
        time.sleep(0.02)
    process.kill()
    raise RuntimeError(f"the mock engine does not listen on port {port}")


def free_ports(n: int) -> list[int]:
    """So many TCP ports of 127.0.0.1 that nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(n)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()
