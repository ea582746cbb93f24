"""KServe's gRPC protocol for tests: messages by field numbers, a scripted engine, a client."""

import asyncio
import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

SERVICE = "/inference.GRPCInferenceService/"


def message(*fields: tuple[int, bytes | str | int]) -> bytes:
    """Fields as they go over the wire; a number is a varint."""
    out = b""
    for number, value in fields:
        if isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def infer(
    model: str = "m", text: str | None = None, id: str = "", sequence: int = 0, stream: bool = True
) -> bytes:
    """A ModelInferRequest with raw tensors, as tritonclient writes it."""
    fields: list[tuple[int, bytes | str | int]] = [(1, model)]
    if id:
        fields.append((3, id))
    if sequence:
        fields.append((4, message((1, "sequence_id"), (2, message((2, sequence))))))
    raw: list[tuple[int, bytes | str | int]] = []
    if text is not None:
        data = text.encode()
        fields.append((5, message((1, "text_input"), (2, "BYTES"))))
        raw.append((7, len(data).to_bytes(4, "little") + data))
    fields.append((5, message((1, "stream"), (2, "BOOL"))))
    raw.append((7, bytes([stream])))
    return message(*fields, *raw)


def part(id: str, text: str = "") -> bytes:
    """A ModelStreamInferResponse."""
    return message((2, message((1, "m"), (3, id), (6, text))))


def id_of(request: bytes) -> str:
    """The id of a request that `infer` wrote: a letter from a to h."""
    return next((k for k in "abcdefgh" if message((3, k)) in request), "")


def failure(text: str, id: str = "") -> bytes:
    return message((1, text), (2, message((3, id)) if id else b""))


def config(decoupled: bool) -> bytes:
    """A ModelConfigResponse."""
    policy = message((19, message((1, 1)))) if decoupled else b""
    return message((1, message((1, "m")) + policy))


@dataclass
class Call:
    """As the engine got it."""

    method: str
    request: bytes
    metadata: dict[str, Any]
    remaining_s: float | None
    context: Any = field(repr=False)


Answer = Callable[[Call], Any]


class Engine:
    """Speaks gRPC alone. `answer(call)` returns bytes, or for a stream yields them; it is called
    for each request."""

    kind = "triton"

    def __init__(
        self, answer: Answer, decoupled: bool = True, tls: tuple[bytes, bytes] | None = None
    ) -> None:
        """`tls`: key and certificate."""
        self._answer = answer
        self._tls = tls
        self._decoupled = decoupled
        self.port = 0
        self.grpc_port = 0
        self.is_silent = False
        """It tells nothing of its models."""
        self.calls: list[Call] = []
        self.configs: list[Call] = []
        """Questions for its model's config; these are not among `calls`."""
        self.under_way = 0
        self.most = 0
        self.cancelled = 0

    async def start(self) -> None:
        self._server = grpc.aio.server(handlers=(_Handler(self),))
        if self._tls is None:
            self.grpc_port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            credentials = grpc.ssl_server_credentials([self._tls])
            self.grpc_port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.port = self.grpc_port
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(None)

    def note(self, method: str, request: bytes, context: Any) -> Call:
        metadata = dict(context.invocation_metadata())
        call = Call(method, request, metadata, context.time_remaining(), context)
        (self.configs if method == "ModelConfig" else self.calls).append(call)
        return call

    @contextlib.contextmanager
    def working(self) -> Any:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            yield
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1

    async def unary(self, method: str, request: bytes, context: Any) -> bytes:
        call = self.note(method, request, context)
        if method == "ModelConfig":
            if self.is_silent:
                await asyncio.sleep(60)
            return config(self._decoupled)
        with self.working():
            answer = self._answer(call)
            return await answer if inspect.isawaitable(answer) else answer

    async def stream(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            with self.working():
                async for response in self._answer(self.note("ModelStreamInfer", request, context)):
                    yield response


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def service(self, details: Any) -> Any:
        method = details.method.removeprefix(SERVICE)
        if method == "ModelStreamInfer":
            return grpc.stream_stream_rpc_method_handler(self._engine.stream)

        async def unary(request: bytes, context: Any) -> bytes:
            return await self._engine.unary(method, request, context)

        return grpc.unary_unary_rpc_method_handler(unary)


async def words(call: Call) -> AsyncIterator[bytes]:
    """Three responses."""
    for word in ("one", "two", "three"):
        yield part(id_of(call.request), word)


async def never(call: Call) -> AsyncIterator[bytes]:
    """One response, and no end."""
    yield part(id_of(call.request), "first")
    await asyncio.sleep(60)


def play_grpc(play: Any, scene: Any, *engines: Any, **options: Any) -> None:
    """The fixture's `play`, with a gRPC port and the model `m` at all engines."""
    options.setdefault("models", {"m": list(range(len(engines)))})
    play(scene, *engines, **{"grpc": True, **options})


@contextlib.asynccontextmanager
async def client(house: Any) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(
        house.grpc_address, [("grpc.use_local_subchannel_pool", 1)]
    ) as channel:
        yield channel


async def ask(house: Any, method: str, request: bytes, **keywords: Any) -> bytes:
    """A unary call on a connection of its own."""
    async with client(house) as channel:
        answer: bytes = await channel.unary_unary(SERVICE + method)(request, **keywords)
        return answer


async def converse(house: Any, *requests: bytes, **keywords: Any) -> list[bytes]:
    """All responses of one stream."""
    async with client(house) as channel:
        call = channel.stream_stream(SERVICE + "ModelStreamInfer")(**keywords)
        for request in requests:
            await call.write(request)
        await call.done_writing()
        return [response async for response in _each(call)]


async def _each(call: Any) -> AsyncIterator[bytes]:
    while (response := await call.read()) is not grpc.aio.EOF:
        yield response


async def status_of(answer: Awaitable[Any]) -> tuple[str, str]:
    """A failed call's code and words."""
    try:
        await answer
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    raise AssertionError("it did not fail")
