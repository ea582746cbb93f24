"""One vLLM server process on loopback, and the processes it starts for itself.

A server runs an API process, an EngineCore child and a worker below that. They are found by their
place in the process tree and ended by pid, each checked against its start time first, because a
server that died leaves its children to init and its numbers to others.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

MODEL = "tiny"
EMBEDDING_MODEL = "tiny-embed"
MAX_MODEL_TOKENS = 8192
# Twenty CPU seconds on an idle machine, and five times that where others share the cores.
START_S = 300.0

GENERATE_ARGS = [
    "--enable-auto-tool-choice",
    "--tool-call-parser=hermes",
    # Without it a random model may spend all its tokens on white space between two JSON tokens.
    '--structured-outputs-config={"backend":"xgrammar","disable_any_whitespace":true}',
]
ADAPTERS = ("adapter-0", "adapter-1")
CACHING_BLOCKS = 512
BLOCK_TOKENS = 32
# Tells what its cache holds, and of each request what of it was used. So small that it evicts.
CACHING_ARGS = [
    "--max-model-len=2048",
    f"--num-gpu-blocks-override={CACHING_BLOCKS}",
    "--enable-prompt-tokens-details",
    # On VLLM_HOST_IP, at ports of its own choice; GET /kv_event_sources tells which.
    '--kv-events-config={"enable_kv_cache_events":true,"publisher":"zmq",'
    '"endpoint":"tcp://*:0","replay_endpoint":"tcp://*:0","topic":"kv@tiny"}',
    "--enable-lora",
    f"--max-loras={len(ADAPTERS)}",
    "--max-lora-rank=8",
]
EMBED_ARGS = ["--runner=pooling", "--convert=embed"]
RENDER_ARGS = [
    "--host=127.0.0.1",
    "--enable-auto-tool-choice",
    "--tool-call-parser=hermes",
    "--uvicorn-log-level=warning",
    f"--max-model-len={MAX_MODEL_TOKENS}",
    f"--served-model-name={MODEL}",
]
COMMON_ARGS = [
    "--host=127.0.0.1",
    "--dtype=float32",
    "--seed=0",
    "--enforce-eager",
    "--max-num-seqs=32",
    "--uvicorn-log-level=warning",
    f"--max-model-len={MAX_MODEL_TOKENS}",
    # The CPU attention takes multiples of 32 only. 2048 such blocks are 32 MB for this model, and
    # hold eight answers of full length at once.
    f"--block-size={BLOCK_TOKENS}",
    "--num-gpu-blocks-override=2048",
]
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOOPBACK_IP": "127.0.0.1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # A thread team on cores that others use too waits for its slowest member: one thread is faster.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Else the first request with logprobs calls a C++ compiler and waits for it.
    "TORCH_COMPILE_DISABLE": "1",
    "PYTHONWARNINGS": "ignore",
    # For /reset_prefix_cache.
    "VLLM_SERVER_DEV_MODE": "1",
}


class ServerError(Exception):
    """A server did not start or is not what a test needs; the text ends with its log."""


@dataclass(frozen=True)
class Process:
    """A process as this machine will not know another: its number and when it started."""

    pid: int
    start: str

    def alive(self) -> bool:
        stat = read_stat(self.pid)
        return stat is not None and stat.start == self.start and stat.state != "Z"

    def kill(self, number: int) -> None:
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class Server:
    """`start`, `wait_ready`, then `url`; `stop` is safe at any time and may be called twice."""

    def __init__(self, python: Path, model: Path, name: str, args: list[str], served: str) -> None:
        self.name = name
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start_s = 0.0
        # Nothing may be asked of it any more, though it may go on answering for a while.
        self.leaving = False
        self._command = [str(python.with_name("vllm")), "serve", str(model), *COMMON_ARGS]
        # The last of two equal options wins.
        self._command += [*args, f"--served-model-name={served}", f"--port={self.port}"]
        self._process: subprocess.Popen[bytes] | None = None
        self._family: set[Process] = set()
        self._log = Path(tempfile.gettempdir()) / f"headgate-vllm-{os.getpid()}-{name}.log"
        self._since_s = 0.0

    def start(self) -> None:
        self._since_s = time.monotonic()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **ENVIRONMENT},
            )

    def wait_ready(self) -> None:
        while not self.healthy():
            if not self.running():
                raise ServerError(f"{self.name} ended while it started\n{self.log_tail()}")
            if time.monotonic() - self._since_s > START_S:
                raise ServerError(f"{self.name} is not up after {START_S} s\n{self.log_tail()}")
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
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False

    def core(self) -> Process:
        """The EngineCore child: the process that schedules and (through a worker) computes."""
        for process in descendants(self.pid):
            if "EngineCore" in command_line(process.pid):
                return process
        raise ServerError(f"{self.name} has no EngineCore process\n{self.log_tail()}")

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
            # A core that a test stopped must run to be able to end.
            self._signal_family(signal.SIGCONT)
            self._process.terminate()
            # In-flight requests keep a server alive for ever after SIGTERM.
            self.wait_exit(5.0)
        self._signal_family(signal.SIGKILL)
        if self.running():
            self._process.kill()
        self._process.wait()
        self._log.unlink(missing_ok=True)
        self._process = None

    def metric(self, name: str) -> float:
        """The sum over the series of one metric, its name as on the page of metrics."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        values = re.findall(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$", text, re.MULTILINE)
        if not values:
            raise ServerError(f"{self.name} has no metric {name}")
        return sum(float(value) for value in values)

    def running_requests(self) -> int:
        return int(self.metric("vllm:num_requests_running"))

    def generated_tokens(self) -> int:
        return int(self.metric("vllm:generation_tokens_total"))

    def log_tail(self) -> str:
        try:
            lines = self._log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            lines = []
        # Each start lists some forty routes.
        lines = [line for line in lines if " Route: " not in line]
        return "\n".join([f"--- log of {self.name}", *lines[-40:]])

    def _remember_family(self) -> None:
        if self.running():
            self._family |= set(descendants(self.pid))

    def _signal_family(self, number: int) -> None:
        for process in self._family:
            process.kill(number)


class Renderer(Server):
    """vLLM's front without an engine: makes prompts of requests, and has a third of the memory."""

    def __init__(self, python: Path, model: Path, name: str) -> None:
        super().__init__(python, model, name, [], MODEL)
        vllm = str(python.with_name("vllm"))
        self._command = [vllm, "launch", "render", str(model), *RENDER_ARGS, f"--port={self.port}"]


@dataclass(frozen=True)
class Stat:
    state: str
    parent: int
    start: str


def read_stat(pid: int) -> Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name stands in parentheses and may hold both spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    return Stat(state=fields[0], parent=int(fields[1]), start=fields[19])


def descendants(pid: int) -> list[Process]:
    children: dict[int, list[Process]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := read_stat(int(entry))):
            children.setdefault(stat.parent, []).append(Process(int(entry), stat.start))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += [process.pid for process in below]
    return found


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
