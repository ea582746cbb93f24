"""The data worker: composition root of the process that carries requests, and nothing else.

`python -m gateway.worker --fd-shared N --fd-control N --fd-listen N --index I --workers W` is how
the supervisor starts it; it serves once the first `Fleet` has come, and exits when the control
process goes or when it has drained.
"""

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import uvloop

from gateway import descriptors
from gateway._shared import Shared
from gateway.channel import Channel
from gateway.logs import configure_logs
from gateway.messages import (
    Access,
    Condemn,
    Drain,
    Drained,
    Endpoint,
    Explain,
    Explained,
    Fleet,
    FromWorker,
    Made,
    Ready,
    Sent,
    Settings,
    Tokenizer,
    ToWorker,
)
from gateway.proxy._explain import explain
from gateway.proxy._plane import Plane, keep_freed_memory
from gateway.proxy._pool import Pool
from gateway.proxy._session import Session
from gateway.tokenizing import Tokenizing, loader

if TYPE_CHECKING:
    from gateway.kserve import GrpcPort

__all__ = ["Worker", "main"]

log = logging.getLogger("headgate.worker")

TICK_S = 0.1
# Connections that the kernel holds for us while the loop is busy.
BACKLOG = 4096
# The control process renders some 100,000 lines in that time.
METRICS_S = 5.0
# Of access log lines that the control process has not read.
BACKLOG_BYTES = 16 << 20
# Until a model is loaded everywhere: longer than the control process waits.
LOAD_S = 660.0
# For errors written at the grace's end to leave.
LAST_WORDS_S = 1.0
# Young objects before the collector looks: sessions are freed by reference counts, the collector
# is for cycles, of which the data path makes none on its own.
GC_THRESHOLD = 50_000

# Larger bodies than this are rare enough to be mapped anew each time.
REUSED_BLOCK_BYTES = 2 << 20


class Worker:
    """Serves one listening socket with one plane, as the control process orders."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        shared: Shared,
        index: int,
        listener: socket.socket,
        tls: ssl.SSLContext | None,
        grpc: "Callable[[Plane], GrpcPort] | None" = None,
    ) -> None:
        self.plane = Plane(loop, shared, index, _make_pool)
        self._loop = loop
        self._listener = listener
        self._tls = tls
        self._server: asyncio.AbstractServer | None = None
        self._make_grpc = grpc
        self._grpc: GrpcPort | None = None
        self._channel: Channel[FromWorker, ToWorker] | None = None
        self._drain: asyncio.Task[None] | None = None
        self._tokenizers: dict[str, Tokenizer] = {}
        self._done = asyncio.Event()

    async def run(self, control: socket.socket) -> None:
        """Serve until drained, or until the control process has gone."""
        self._channel = await Channel.to_control(control)
        self.plane.on_made = self._made
        self.plane.fetch_metrics = self._fetch_metrics
        self.plane.change_repository = self._change_repository
        orders = asyncio.create_task(self._obey())
        self._tick()
        await self._done.wait()
        orders.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await orders
        await self._channel.close()
        if self.plane.tokenizing is not None:
            self.plane.tokenizing.close()

    def _tick(self) -> None:
        try:
            self.plane.tick()
            channel = self._channel
            # A control process that does not read: the plane bounds what waits, and counts the rest
            # as dropped.
            if channel is not None and channel.backlog_bytes < BACKLOG_BYTES:
                if self.plane.access:
                    channel.send(Access(self.plane.take_access()))
                if sent := self.plane.take_sent():
                    channel.send(Sent(sent))
        except Exception:  # a bug here must not stop every deadline for good
            log.exception("the tick failed")
        if not self._done.is_set():
            self._loop.call_later(TICK_S, self._tick)

    async def _obey(self) -> None:
        assert self._channel is not None
        try:
            async for order in self._channel:
                try:
                    await self._carry_out(order)
                except Exception:  # one order that cannot be carried out; the next ones can
                    log.exception("an order failed: %s", type(order).__name__)
        finally:
            # Nobody owns us any more: a worker without its control process would never end.
            self._done.set()

    async def _carry_out(self, order: ToWorker) -> None:
        if isinstance(order, Fleet):
            before, after = self.plane.settings, order.settings
            self.plane.apply(order)
            self._load(order.tokenizers)
            # The first one agrees with the command line.
            if before is not None and _log(before) != _log(after):
                configure_logs(*_log(after))
            if self._server is None and self._drain is None:
                await self._listen()
            if self._grpc is not None:
                self._grpc.retain(order.endpoints)
        elif isinstance(order, Condemn):
            self.plane.condemn(order.slot, order.generation, order.why, order.hung)
        elif isinstance(order, Made):
            self.plane.made(order.response, order.slot, order.generation, order.holder)
        elif isinstance(order, Explain):
            self._explain(order)
        elif isinstance(order, Drain):
            if self._drain is not None:
                self._drain.cancel()
            self._drain = asyncio.create_task(self._drain_out(order))

    def _load(self, wanted: dict[str, Tokenizer]) -> None:
        """Make token ids with these, and no others. Those without a folder are not ours to make."""
        wanted = {name: one for name, one in wanted.items() if one.folder}
        before, self._tokenizers = self._tokenizers, wanted
        if before == wanted:
            return
        if self.plane.tokenizing is None:
            self.plane.tokenizing = Tokenizing(self._loop, self.plane.count_ids)
        for name in before.keys() - wanted.keys():
            self.plane.tokenizing.forget(name)
        for name, tokenizer in wanted.items():
            if before.get(name) != tokenizer:
                load = loader(
                    Path(tokenizer.folder),
                    chat_template=tokenizer.chat_template,
                    samples=tokenizer.samples,
                )
                self.plane.tokenizing.load(name, load)

    def _explain(self, order: Explain) -> None:
        def answer(found: dict[str, Any]) -> None:
            assert self._channel is not None
            self._channel.send(Explained(order.number, msgspec.json.encode(found)))

        explain(self.plane, order.head, order.body, order.key, answer)

    async def _listen(self) -> None:
        assert self._channel is not None
        self._server = await self._loop.create_server(
            lambda: Session(self.plane),
            sock=self._listener,
            ssl=self._tls,
            ssl_handshake_timeout=self.plane.settings.head_s if self._tls else None,
            backlog=BACKLOG,
        )
        if self._make_grpc is not None:
            self._grpc = self._make_grpc(self.plane)
            await self._grpc.start()
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD, 20, 100)
        self._channel.send(Ready(os.getpid()))

    async def _drain_out(self, order: Drain) -> None:
        assert self._channel is not None
        await asyncio.sleep(order.pre_stop_s)
        if self._server is not None:
            self._server.close()
        self.plane.drain()
        grpc = None
        if self._grpc is not None:
            # It ends what still runs a little later than we do, who know what to say.
            grpc = asyncio.create_task(self._grpc.drain(order.grace_s + LAST_WORDS_S))
        if not await _within(order.grace_s, self.plane.empty):
            self.plane.cut()
            # What was said last shall reach the clients that read.
            await _within(LAST_WORDS_S, self.plane.empty)
        if grpc is not None:
            await asyncio.wait((grpc,), timeout=LAST_WORDS_S)
        self.plane.tick()
        if self.plane.access:
            self._channel.send(Access(self.plane.take_access()))
        self._channel.send(Drained())
        await self._channel.flush()
        self._done.set()

    def _made(self, response: str, slot: int, generation: int, holder: str) -> None:
        if self._channel is not None:
            self._channel.send(Made(response, slot, generation, holder))

    async def _fetch_metrics(self) -> bytes:
        """The control process's own answer to GET /metrics; OSError if it does not answer."""
        async with asyncio.timeout(METRICS_S):
            status, body = await self._ask_control(b"GET /metrics", b"", b"")
        if status != 200:
            raise OSError("the admin listener refused")
        return body

    async def _change_repository(
        self, target: bytes, lines: bytes, body: bytes
    ) -> tuple[int, bytes]:
        """Have models loaded or unloaded: the admin port asks for its token. 403: it refused."""
        line = b"POST /admin" + target.split(b"?")[0]
        lines += b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
        async with asyncio.timeout(LOAD_S):
            status, answer = await self._ask_control(line, lines, body)
        return (403 if status == 401 else status), answer

    async def _ask_control(self, line: bytes, lines: bytes, body: bytes) -> tuple[int, bytes]:
        """Status and body of an answer of the admin port. OSError: there is none."""
        admin = self.plane.settings.admin_address
        if not admin:
            raise OSError("the admin listener's address is not known")
        host, _, port = admin.rpartition(":")
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
        try:
            writer.write(line + b" HTTP/1.0\r\nHost: " + admin.encode() + b"\r\n" + lines)
            writer.write(b"\r\n" + body)
            head, _, answer = (await reader.read(-1)).partition(b"\r\n\r\n")
        finally:
            writer.close()
        words = head.split(b" ", 2)
        if len(words) < 2 or not words[1].isdigit():
            raise OSError("the admin listener does not answer")
        return int(words[1]), answer


def _make_pool(plane: Plane, endpoint: Endpoint) -> Pool:
    if endpoint.kind == "triton":
        from gateway.proxy._triton import TritonPool

        return TritonPool(plane, endpoint)
    return Pool(plane, endpoint)


def _log(settings: Settings) -> tuple[str, str]:
    return settings.log_level, settings.log_format


async def _within(seconds: float, event: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


def main() -> None:
    """Entry point of the worker process."""
    parser = argparse.ArgumentParser(prog="gateway.worker")
    for name in ("fd-shared", "fd-control", "fd-listen", "index", "workers", "index-blocks"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--tls-cert")
    parser.add_argument("--tls-key")
    parser.add_argument("--grpc", metavar="HOST:PORT")
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-format", default="text")
    arguments = parser.parse_args()
    configure_logs(arguments.log_level, arguments.log_format)
    # The control process decides when we stop: a terminal's Ctrl-C goes to the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    descriptors.raise_limit()
    keep_freed_memory(REUSED_BLOCK_BYTES)
    tls = None
    if arguments.tls_cert:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(arguments.tls_cert, arguments.tls_key)
    uvloop.run(_serve(arguments, tls))


async def _serve(arguments: argparse.Namespace, tls: ssl.SSLContext | None) -> None:
    worker = Worker(
        asyncio.get_running_loop(),
        Shared(arguments.fd_shared, arguments.workers, arguments.index_blocks),
        arguments.index,
        socket.socket(fileno=arguments.fd_listen),
        tls,
        _grpc(arguments) if arguments.grpc else None,
    )
    await worker.run(socket.socket(fileno=arguments.fd_control))


def _grpc(arguments: argparse.Namespace) -> "Callable[[Plane], GrpcPort]":
    from gateway.kserve import GrpcPort  # grpc takes memory and time: only where it is wanted

    files = (arguments.tls_key, arguments.tls_cert) if arguments.tls_cert else None
    return lambda plane: GrpcPort(plane, arguments.grpc, plane.settings.body_bytes, files)


if __name__ == "__main__":
    main()
