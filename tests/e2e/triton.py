"""A scripted Triton: HTTP for probes, and beside it a gRPC port that does as a test says.

async def script(call):
    await call.asked.wait()
    answer(call, "Hello")

engine = Triton(script)
"""

import asyncio
import contextlib
import json
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

from tritonclient.grpc import service_pb2

from engines.triton.model import read_model
from router import State
from tests.e2e.conftest import Asked, Script, request
from tests.e2e.http2 import Call, Link

CONFIG: dict[str, Any] = {
    "name": "sim",
    "max_batch_size": 0,
    "input": [
        {"name": "text_input", "data_type": "TYPE_STRING"},
        {"name": "max_tokens", "data_type": "TYPE_INT32"},
        {"name": "stop_words", "data_type": "TYPE_STRING"},
    ],
    "output": [{"name": "text_output", "data_type": "TYPE_STRING"}],
    "model_transaction_policy": {"decoupled": True},
}
ENSEMBLE = CONFIG | {"platform": "ensemble"}
METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"

CallScript = Callable[[Call], Awaitable[None]]


def prefixed(message: bytes, compressed: int = 0) -> bytes:
    """As gRPC sends it."""
    return bytes([compressed]) + len(message).to_bytes(4, "big") + message


def response(text: str | None = None, final: bool = False, error: str = "") -> bytes:
    """A ModelStreamInferResponse."""
    told = service_pb2.ModelStreamInferResponse(error_message=error)
    told.infer_response.model_name = "sim"
    if final:
        told.infer_response.parameters["triton_final_response"].bool_param = True
    if text is not None:
        told.infer_response.outputs.add(name="text_output", datatype="BYTES", shape=[1])
        data = text.encode()
        told.infer_response.raw_output_contents.append(struct.pack("<I", len(data)) + data)
    return prefixed(told.SerializeToString())


def responses(*texts: str) -> list[bytes]:
    """One for each text, and the one that says that it is over."""
    return [*(response(text) for text in texts), response(final=True)]


def prompt_of(call: Call) -> str:
    request = service_pb2.ModelInferRequest.FromString(bytes(call.body[5:]))
    at = [tensor.name for tensor in request.inputs].index("text_input")
    return request.raw_input_contents[at][4:].decode()


def answer(call: Call, *texts: str) -> None:
    call.head()
    call.say(*responses(*texts))
    call.end()


async def greet(call: Call) -> None:
    """The script of a good server."""
    await call.asked.wait()
    answer(call, "Hello", " world")


class Triton:
    """`script(call)` runs from a call's HEADERS on; `opening(link)` before the server reads.

    `settings`: its first ones; `gives`: it widens its windows by what came.
    """

    kind = "triton"

    def __init__(
        self,
        script: CallScript = greet,
        *,
        opening: Callable[[Link], Any] | None = None,
        settings: dict[int, int] | None = None,
        config: dict[str, Any] = CONFIG,
        gives: bool = True,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.script = script
        self.opening = opening or (lambda link: link.settings(settings or {}))
        self.config = config
        self.gives = gives
        self.links: list[Link] = []
        self.calls: list[Call] = []
        self.faults: list[str] = []
        """What the client did against the protocol, and scripts that failed."""
        self.port = self.grpc_port = 0
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()
        self._probes = Script(self._on_probe)

    @property
    def url(self) -> dict[str, Any]:
        """Its entry among a gateway's engines."""
        url = f"http://127.0.0.1:{self.port}"
        ports = {"grpc_port": self.grpc_port, "metrics_port": self.port}
        return {"url": url, "kind": self.kind, **ports}

    @property
    def fields(self) -> dict[str, Any]:
        """What a worker is told of it besides its ports."""
        return {"triton": {"sim": read_model(self.config)}}

    async def start(self) -> None:
        await self._probes.start()
        self.port = self._probes.port
        await self.listen()

    async def listen(self) -> None:
        """For calls."""
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.grpc_port, ssl=self._tls
        )
        self.grpc_port = self._server.sockets[0].getsockname()[1]

    async def deafen(self) -> None:
        """Nobody listens any more where calls went."""
        self._server.close()
        for link in self.links:
            link.writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def stop(self) -> None:
        await self._probes.stop()
        await self.deafen()
        assert not self.faults

    def begin(self, call: Call) -> None:
        self.calls.append(call)
        task = asyncio.create_task(self._play(call))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _play(self, call: Call) -> None:
        with contextlib.suppress(ConnectionError):
            try:
                await self.script(call)
            except Exception as error:
                self.faults.append(f"the script: {error!r}")
                call.link.writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = Link(self, writer)
        self.links.append(link)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            opened = self.opening(link)
            if opened is not None:
                await opened
            await link.read(reader)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # cancelled by `deafen` alone
        finally:
            link.lost()
            writer.transport.abort()
            self._tasks.discard(task)

    def _on_probe(self, asked: Asked) -> Iterable[bytes]:
        pages: dict[str, Any] = {
            "GET /v2/health/live": {},
            "GET /v2/health/ready": {},
            "POST /v2/repository/index": [{"name": "sim", "version": "1", "state": "READY"}],
            "GET /v2/models/sim/config": self.config,
        }
        page = pages.get(asked.line.rpartition(" ")[0])
        body = json.dumps(page).encode()
        status = b"404 Not Found" if page is None else b"200 OK"
        return [b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body]


def first_and_then(first: CallScript, then: CallScript = greet) -> CallScript:
    """Another script for the first call that an engine gets."""

    async def script(call: Call) -> None:
        is_first = call is call.link.server.calls[0]
        await (first if is_first else then)(call)

    return script


# The client's side.


def play_triton(play: Any, scene: Callable[[Any], Any], *engines: Triton, **options: Any) -> None:
    """`play` over these; the first one is asked first."""

    async def whole(house: Any) -> None:
        for slot in range(1, len(engines)):
            house.state(slot, State.READY, 0.01)
        await scene(house)

    play(whole, *engines, endpoints=endpoints(*engines), **options)


def in_flight(house: Any, slot: int = 0) -> int:
    return int(house.shared.table.load(slot)["in_flight"])


def endpoints(*engines: Triton) -> dict[int, dict[str, Any]]:
    """What `play` is told of them."""
    return {slot: engine.fields for slot, engine in enumerate(engines)}


async def complete(house: Any, prompt: Any = "Hi", **fields: Any) -> Any:
    """A completion on a connection of its own."""
    body = {"model": "sim", "prompt": prompt, **fields}
    return await house.ask(path="/v1/completions", body=body)


async def begin(house: Any, until: bytes, **fields: Any) -> Any:
    """The wire of a stream of which so much was read."""
    wire = await house.dial()
    body = {"model": "sim", "prompt": "Hi", "stream": True, **fields}
    wire.write(request("POST", "/v1/completions", body))
    await wire.answer(until=until)
    return wire


async def rest_of(wire: Any) -> bytes:
    """What comes until the end of its stream."""
    got = b""
    while not got.endswith(b"0\r\n\r\n"):
        piece = await wire.reader.read(1 << 16)
        assert piece, got
        got += piece
    return got


def told(answer: Any) -> dict[int, tuple[str, str | None]]:
    """Text and finish reason of each choice, of a body or of a whole stream."""
    assert answer.complete, answer
    if not answer.body.startswith(b"data: "):
        bodies = [answer.json]
    else:
        *events, done = answer.events
        assert done == b"data: [DONE]"
        bodies = [json.loads(event.removeprefix(b"data: ")) for event in events]
    found: dict[int, tuple[str, str | None]] = {}
    for body in bodies:
        for choice in body["choices"]:
            text, finish = found.get(choice["index"], ("", None))
            assert finish is None
            found[choice["index"]] = text + choice["text"], choice["finish_reason"]
    return found


def error_of(answer: Any) -> tuple[int, str]:
    """Status and message: of a refusal, or of a stream that ended so (then the status is 0)."""
    assert answer.complete, answer
    if answer.body.startswith(b"data: "):
        *_, last, done = answer.events
        assert done == b"data: [DONE]"
        return 0, json.loads(last.removeprefix(b"data: "))["error"]["message"]
    return answer.status, answer.json["error"]["message"]
