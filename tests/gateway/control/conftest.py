"""Doubles for the control process: an engine on a real socket, and a worker's load cells."""

import asyncio
import ctypes
import json
import mmap
import re
import time
from urllib.parse import unquote

import pytest

from gateway._shared import Area, Shared
from router import Table

MAX_SLOTS = 1024


class EngineDouble:
    """Health, model list and metrics as told, over real HTTP. Use inside a loop."""

    def __init__(self):
        self.health = 200
        self.models = ["m"]
        self.models_status = 200
        self.models_body = None
        """Instead of a list of `models`."""
        self.metrics = ""
        self.recorded = None
        """Instead of all that: path -> (status, body); others answer 404."""
        self.hang = set()
        """Paths that never answer."""
        self.held = {}
        """Path -> event that its answer waits for."""
        self.asked = []
        """(path, head and body) of every request."""
        self.port = 0
        self._server = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    async def start(self, ssl=None):
        self._server = await asyncio.start_server(
            self._answer, "127.0.0.1", self.port, ssl=ssl, reuse_address=True
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self):
        self._server.close()
        await asyncio.sleep(0)

    async def _answer(self, reader, writer):
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            path = head.split(" ")[1]
            length = re.search(r"(?i)\r\ncontent-length: (\d+)", head)
            if length:
                head += (await reader.readexactly(int(length[1]))).decode()
            self.asked.append((path, head))
            if path in self.hang:
                await reader.read()
                return
            if path in self.held:
                await self.held[path].wait()
            status, body = self._page(path)
            writer.write(
                f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
            )
            await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    def _page(self, path):
        if self.recorded is not None:
            return self.recorded.get(path, (404, ""))
        if path == "/health":
            return self.health, ""
        if path == "/v1/models":
            if self.models_body is not None:
                return 200, self.models_body
            data = [{"id": name, "object": "model"} for name in self.models]
            return self.models_status, json.dumps({"object": "list", "data": data})
        return (200, self.metrics) if path == "/metrics" else (404, "")

    def count(self, path):
        return sum(asked == path for asked, _ in self.asked)


class TritonDouble(EngineDouble):
    """A Triton's repository."""

    def __init__(self):
        super().__init__()
        self.states = {"m": "READY"}
        """Of all its models; '' was never loaded."""
        self.config = 200, {}
        """Status, and what stands in every model's configuration beside its name."""
        self.refusal = None
        """(status, error) of all orders."""
        self.unloaded = "UNAVAILABLE"
        """The state of what was to be unloaded."""
        self.index_refusal = None

    def _page(self, path):
        if path == "/v2/health/live":
            return 200, ""
        if path == "/v2/repository/index":
            return self._index('"ready":true' in self.asked[-1][1])
        _, _, kind, *words = path.split("/")
        if kind == "models":
            status, fields = self.config
            return status, json.dumps({"name": unquote(words[0]), **fields})
        if kind != "repository":
            return 404, ""
        return self._order(unquote(words[1]), words[2])

    def _index(self, only_ready):
        if self.index_refusal:
            return self.index_refusal[0], json.dumps({"error": self.index_refusal[1]})
        listed = [
            {"name": name, "version": "1", "state": state} if state else {"name": name}
            for name, state in self.states.items()
            if state == "READY" or not only_ready
        ]
        return 200, json.dumps(listed)

    def _order(self, model, verb):
        if self.refusal is None and verb == "load" and model not in self.states:
            return 500, json.dumps({"error": f"failed to load '{model}'"})
        if self.refusal:
            return self.refusal[0], json.dumps({"error": self.refusal[1]})
        if model in self.states:
            self.states[model] = "READY" if verb == "load" else self.unloaded
        return 200, ""

    def orders(self):
        """(model, verb, body) of each."""
        found = []
        for path, request in self.asked:
            if path.startswith("/v2/repository/models/"):
                model, verb = path.split("/")[-2:]
                found.append((unquote(model), verb, request.partition("\r\n\r\n")[2]))
        return found


class Cell(ctypes.Structure):
    """The beginning of `Load` of router/_table.pxd."""

    _fields_ = [
        ("in_flight", ctypes.c_int32),
        ("producing", ctypes.c_int32),
        ("failures_in_row", ctypes.c_int32),
        ("dials_in_row", ctypes.c_int32),
        ("last_event_s", ctypes.c_double),
        ("begun", ctypes.c_int64),
        ("successes", ctypes.c_int64),
    ]


class Pen:
    """Writes what workers write: counters and load cells."""

    def __init__(self, shared):
        n = shared.n_workers
        memory = mmap.mmap(shared.fd, Shared.size(n))
        column, words = 8 * int(Area.COLUMN), ctypes.c_int64 * int(Area.COLUMN)
        self.words = [words.from_buffer(memory, column * w) for w in range(n)]
        columns = Table.size(2) - Table.size(1)
        cells, cell = column * n + Table.size(1) - columns, columns // MAX_SLOTS
        self.cells = [
            [Cell.from_buffer(memory, cells + columns * w + cell * s) for s in range(MAX_SLOTS)]
            for w in range(n)
        ]


async def until(condition, within_s=5.0):
    """Wait for a condition; how long it took."""
    start_s = time.monotonic()
    while not condition():
        assert time.monotonic() - start_s < within_s, "it did not come to pass"
        await asyncio.sleep(0.005)
    return time.monotonic() - start_s


@pytest.fixture(name="until")
def until_fixture():
    return until


@pytest.fixture
def engine_double():
    return EngineDouble


@pytest.fixture
def triton_double():
    return TritonDouble


@pytest.fixture
def pen():
    return Pen
