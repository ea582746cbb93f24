"""The gRPC port of a worker: which calls there are, and who answers them."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import msgspec

from engines.kserve import EXTENSIONS
from engines.kserve_wire import (
    HEALTH,
    SERVICE,
    read_flag,
    read_name,
    read_repository_request,
    write_flag,
    write_index,
    write_server_metadata,
)
from gateway._shared import Count
from gateway.kserve.channels import Channels
from gateway.kserve.relay import SERVER_PATH, Ended, Relay, status_for, understood, within
from gateway.kserve.status import code_of
from gateway.kserve.stream import Stream
from gateway.kserve.unary import Unary
from gateway.messages import Endpoint
from gateway.proxy._errand import Refused
from gateway.proxy._native import model_is_ready, native_is_ready, repository_index
from gateway.proxy._plane import Plane
from gateway.reasons import Reason
from gateway.version import VERSION

__all__ = ["GrpcPort"]

NOT_HERE = (
    "SystemSharedMemoryStatus",
    "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister",
    "CudaSharedMemoryStatus",
    "CudaSharedMemoryRegister",
    "CudaSharedMemoryUnregister",
    "TraceSetting",
    "LogSettings",
)
SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"
HEALTH_PATH = "/v2/health/live"
# Of a model that is to be loaded: it stands in the head of a request to the control process.
NAME_LIMIT_CHARS = 1024

Call = Callable[[bytes, Any], Awaitable[bytes]]


class GrpcPort(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Listens at one address beside the ports of other workers (SO_REUSEPORT).

    `address`: host:port; `port` is the one that was taken. `body_bytes`: the largest message that
    a client may send. `certificate`: files of key and chain, or None: without TLS. OSError: its
    files cannot be read; RuntimeError: the address cannot be had.
    """

    def __init__(
        self,
        plane: Plane,
        address: str,
        body_bytes: int,
        certificate: tuple[str, str] | None = None,
    ) -> None:
        self._plane = plane
        self._relay = Relay(plane, Channels())
        self._unary = Unary(self._relay)
        self._closing = asyncio.Event()
        self._calls = self._table()
        self._server = grpc.aio.server(
            handlers=(self,),
            options=(
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", body_bytes),
                ("grpc.max_send_message_length", -1),
                # Clients may ping as often as Triton lets them, and more.
                ("grpc.http2.min_ping_interval_without_data_ms", 1000),
                ("grpc.keepalive_permit_without_calls", 1),
            ),
        )
        self.port = self._listen(address, certificate)

    def _listen(self, address: str, certificate: tuple[str, str] | None) -> int:
        if certificate is None:
            return int(self._server.add_insecure_port(address))
        key, chain = (Path(name).read_bytes() for name in certificate)
        credentials = grpc.ssl_server_credentials([(key, chain)])
        return int(self._server.add_secure_port(address, credentials))

    async def start(self) -> None:
        """Answer from here on."""
        await self._server.start()

    def retain(self, endpoints: list[Endpoint]) -> None:
        """The fleet has changed."""
        self._relay.retain(endpoints)

    async def drain(self, grace_s: float) -> None:
        """Take no new calls and no new requests on streams; returns when all has ended, or after
        the grace, which ends what still runs."""
        self._closing.set()
        await self._server.stop(grace_s)
        await self._relay.channels.close()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """What handles a call; None: there is no such call."""
        return self._calls.get(details.method)

    def _table(self) -> dict[str, grpc.RpcMethodHandler]:
        calls: dict[str, Call] = {
            SERVICE + "ServerLive": self._server_live,
            SERVICE + "ServerReady": self._server_ready,
            SERVICE + "ServerMetadata": self._server_metadata,
            SERVICE + "ModelReady": self._model_ready,
            SERVICE + "ModelInfer": self._unary.infer,
            SERVICE + "ModelStatistics": self._unary.statistics,
            SERVICE + "RepositoryIndex": self._index,
            SERVICE + "RepositoryModelLoad": self._load,
            SERVICE + "RepositoryModelUnload": self._unload,
            HEALTH + "Check": self._check,
        }
        for method in ("ModelMetadata", "ModelConfig"):
            calls[SERVICE + method] = self._teller(method)
        for method in NOT_HERE:
            calls[SERVICE + method] = _not_here(method)
        table = {
            path: grpc.unary_unary_rpc_method_handler(_answering(call))
            for path, call in calls.items()
        }
        table[SERVICE + "ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream)
        table[HEALTH + "Watch"] = grpc.unary_stream_rpc_method_handler(self._watch)
        return table

    # -- the server

    async def _server_live(self, _: bytes, __: Any) -> bytes:
        return write_flag(True)

    async def _server_ready(self, _: bytes, __: Any) -> bytes:
        return write_flag(native_is_ready(self._plane))

    async def _check(self, message: bytes, _: Any) -> bytes:
        service, _ = understood(read_name, message)
        if service not in ("", SERVICE.strip("/")):
            raise Ended(grpc.StatusCode.NOT_FOUND, "unknown service")
        return SERVING if native_is_ready(self._plane) else NOT_SERVING

    async def _watch(self, message: bytes, context: Any) -> None:
        """Health as it changes."""
        told = None
        while not self._closing.is_set():
            now = SERVING if native_is_ready(self._plane) else NOT_SERVING
            if now != told:
                await context.write(now)
                told = now
            await asyncio.sleep(1.0)

    async def _server_metadata(self, _: bytes, context: Any) -> bytes:
        method = SERVICE + "ServerMetadata"
        async with self._relay.errand(context, method, SERVER_PATH) as (one, __):
            one.end(Count.COMPLETED, 200)
            return write_server_metadata("headgate", VERSION, EXTENSIONS)

    # -- models

    async def _model_ready(self, message: bytes, context: Any) -> bytes:
        name, _ = understood(read_name, message)
        async with self._relay.errand(context, SERVICE + "ModelReady", SERVER_PATH) as (one, _):
            one.end(Count.COMPLETED, 200)
            return write_flag(model_is_ready(self._plane, name.encode(), one.allowed))

    def _teller(self, method: str) -> Call:
        async def tell(message: bytes, context: Any) -> bytes:
            return await self._unary.tell(method, message, context)

        return tell

    async def _stream(self, _: Any, context: Any) -> None:
        try:
            await Stream(self._relay, context, self._closing).run()
        except Ended as ended:
            await context.abort(ended.code, ended.details)

    # -- the repository

    async def _index(self, message: bytes, context: Any) -> bytes:
        only_ready = understood(read_flag, message, 2)
        async with self._relay.errand(context, SERVICE + "RepositoryIndex", SERVER_PATH) as (
            one,
            _,
        ):
            one.end(Count.COMPLETED, 200)
            return write_index(repository_index(self._plane, one.allowed, only_ready))

    async def _load(self, message: bytes, context: Any) -> bytes:
        return await self._change("load", message, context)

    async def _unload(self, message: bytes, context: Any) -> bytes:
        return await self._change("unload", message, context)

    async def _change(self, verb: str, message: bytes, context: Any) -> bytes:
        """The control process does it, at every engine, if it likes the token."""
        model, parameters = understood(read_repository_request, message)
        if len(model) > NAME_LIMIT_CHARS:
            long = f"the model's name is longer than {NAME_LIMIT_CHARS} characters"
            raise Ended(grpc.StatusCode.INVALID_ARGUMENT, long)
        target = f"/v2/repository/models/{quote(model, safe='')}/{verb}"
        method = f"{SERVICE}RepositoryModel{verb.capitalize()}"
        async with self._relay.errand(context, method, HEALTH_PATH) as (one, metadata):
            token = str(dict(metadata).get("authorization", ""))
            change = self._plane.change_repository
            assert change is not None
            asked = (
                target.encode(),
                f"authorization: {token}\r\n".encode(),
                msgspec.json.encode({"parameters": parameters}),
            )
            try:
                status, text = await within(one, None, lambda: change(*asked))
            except OSError:
                raise Refused(Reason.NO_ENDPOINT, "the control process does not answer") from None
            if status == 403:
                raise Refused(Reason.FORBIDDEN_REPOSITORY)
            one.end(Count.COMPLETED, status)
            if status != 200:
                raise Ended(code_of(status), _error_of(text))
            return b""


def _answering(call: Call) -> Callable[[bytes, Any], Awaitable[bytes]]:
    """The call with what it raises as its status."""

    async def answer(message: bytes, context: Any) -> bytes:
        try:
            return await call(message, context)
        except Exception as error:
            code, text = status_for(error)
        await context.abort(code, text)
        raise AssertionError

    return answer


def _not_here(method: str) -> Call:
    async def refuse(_: bytes, __: Any) -> bytes:
        raise Ended(
            grpc.StatusCode.UNIMPLEMENTED,
            f"{method} is about one server's own memory or settings; ask the server itself.",
        )

    return refuse


def _error_of(text: bytes) -> str:
    try:
        return str(msgspec.json.decode(text)["error"])
    except (msgspec.DecodeError, KeyError, TypeError):
        return text.decode("utf-8", "replace")
