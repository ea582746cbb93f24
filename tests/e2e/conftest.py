"""A data worker in this process, its engines, and clients that read with h11.

The worker is the real one, ordered about over a real channel; the house plays the control process.
Engines are simulated ones, or scripts that send bytes as told. After each scene the account of the
worker has to be even, whatever happened.
"""

import asyncio
import contextlib
import functools
import gc
import hashlib
import json
import logging
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h11
import pytest
import uvloop

from engines.sim import SimConfig, SimEngine
from gateway._shared import Area, Count, ModelWord, Shared
from gateway.channel import Channel
from gateway.messages import (
    Access,
    Choice,
    Condemn,
    Drain,
    Drained,
    Endpoint,
    Fleet,
    Key,
    Made,
    Model,
    Ready,
    Settings,
)
from gateway.reasons import Reason
from gateway.worker import Worker
from router import State
from tests.e2e.product import play_product

# What a script may do besides sending bytes and waiting (a float: seconds).
CLOSE, RESET, HANG, EOF = "close", "reset", "hang", "eof"
Step = bytes | float | str
Answers = Callable[["Asked"], Iterable[Step]]

PATIENCE_S = 10.0
SCENE_S = 40.0


@dataclass
class Asked:
    """A request as an engine received it."""

    index: int
    """Of all that this engine got, from 0."""
    connection: int
    line: str
    headers: list[tuple[str, str]]
    body: bytes

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Script:
    """An engine that answers each request with the bytes it is told, and then CLOSEs or not."""

    def __init__(self, answers: Answers | Iterable[Step]) -> None:
        self._answers = answers
        self.asked: list[Asked] = []
        self.opened = 0
        self.closed = 0
        self.port = 0
        self._server: asyncio.AbstractServer | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, tls: ssl.SSLContext | None = None) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        connection, self.opened = self.opened, self.opened + 1
        try:
            await self._talk(reader, writer, connection)
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # cancelled by `stop` alone
        finally:
            writer.transport.abort()
            self.closed += 1
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _talk(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, connection: int
    ) -> None:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            line, *fields = head[:-4].split("\r\n")
            headers = [
                (name.lower(), value.strip())
                for name, _, value in (one.partition(":") for one in fields)
            ]
            asked = Asked(len(self.asked), connection, line, headers, b"")
            for length in asked.all("content-length"):
                asked.body = await reader.readexactly(int(length))
            self.asked.append(asked)
            steps = self._answers(asked) if callable(self._answers) else self._answers
            for step in steps:
                if isinstance(step, bytes):
                    writer.write(step)
                    await writer.drain()
                elif isinstance(step, float):
                    await asyncio.sleep(step)
                elif asyncio.iscoroutine(step):
                    await step
                elif step == EOF:
                    writer.write_eof()
                elif step == HANG:
                    await reader.read()
                    return
                else:
                    if step == RESET:
                        _reset_on_close(writer.get_extra_info("socket"))
                    else:
                        await writer.drain()
                        writer.close()
                        await writer.wait_closed()
                    return


def _reset_on_close(sock: Any) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@dataclass
class Answer:
    """A response as h11 read it. `complete`: it ended as its framing says."""

    status: int = 0
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    complete: bool = False
    broken: str = ""
    """What h11 found wrong with it."""
    informational: list[int] = field(default_factory=list)

    def __getitem__(self, name: str) -> str:
        (value,) = [value for key, value in self.headers if key == name]
        return value

    def get(self, name: str) -> str | None:
        found = [value for key, value in self.headers if key == name]
        assert len(found) < 2, f"{name} stands twice: {found}"
        return found[0] if found else None

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def reason(self) -> str | None:
        return self.get("x-headgate-reason")

    @property
    def events(self) -> list[bytes]:
        return [event for event in self.body.split(b"\n\n") if event]


class Wire:
    """A client's connection: raw bytes out, h11 in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._spare = b""
        self.eof = False

    def write(self, data: bytes) -> None:
        self.writer.write(data)

    async def ask(
        self,
        method: str = "POST",
        path: str = "/v1/chat/completions",
        body: Any = None,
        headers: Iterable[tuple[str, str]] = (),
    ) -> Answer:
        """Send a request and read its whole answer."""
        self.write(request(method, path, body, headers))
        return await self.answer(method)

    async def answer(self, method: str = "POST", until: bytes | None = None) -> Answer:
        """The next response. `until`: no further than these bytes of its body."""
        parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        parser.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
        parser.send(h11.EndOfMessage())
        answer = Answer()
        if self._spare:
            parser.receive_data(self._spare)
            self._spare = b""
        try:
            while True:
                event = parser.next_event()
                if event is h11.NEED_DATA:
                    if until is not None and until in answer.body:
                        return answer
                    if self.eof:
                        return answer
                    async with asyncio.timeout(PATIENCE_S):
                        data = await self._read()
                    parser.receive_data(data)
                elif isinstance(event, h11.InformationalResponse):
                    answer.informational.append(event.status_code)
                elif isinstance(event, h11.Response):
                    answer.status = event.status_code
                    answer.headers = [
                        (name.decode(), value.decode("latin-1")) for name, value in event.headers
                    ]
                elif isinstance(event, h11.Data):
                    answer.body += bytes(event.data)
                elif isinstance(event, h11.EndOfMessage):
                    answer.complete = True
                    self._spare = parser.trailing_data[0]
                    return answer
                else:
                    return answer
        except h11.RemoteProtocolError as error:
            answer.broken = str(error)
            return answer

    async def _read(self) -> bytes:
        try:
            data = await self.reader.read(1 << 18)
        except ConnectionError:
            data = b""
        self.eof = not data
        return data

    async def is_closed(self) -> bool:
        """Whether the gateway ends the connection, soon, without another byte."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self.reader.read(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.writer.transport.abort()

    def reset(self) -> None:
        _reset_on_close(self.writer.get_extra_info("socket"))
        self.writer.transport.abort()


def request(
    method: str, path: str, body: Any = None, headers: Iterable[tuple[str, str]] = ()
) -> bytes:
    """A request's bytes; a body that is no bytes is sent as JSON."""
    lines = [f"{method} {path} HTTP/1.1", "Host: gateway"]
    lines += [f"{name}: {value}" for name, value in headers]
    payload = b""
    if body is not None:
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        if not any(name.lower() == "content-type" for name, _ in headers):
            lines.append("Content-Type: application/json")
        lines.append(f"Content-Length: {len(payload)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + payload


class House:
    """A worker that serves, as its control process sees it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, workers: int = 1) -> None:
        self.loop = loop
        self.shared = Shared.create(workers)
        self.engines: list[Any] = []
        self.wires: list[Wire] = []
        self.access: list[dict[str, Any]] = []
        self.made: list[Made] = []
        self.ready = asyncio.Event()
        self.drained = asyncio.Event()
        self.fleet = Fleet([], [], {}, [], False, Settings(), b'{"data":[]}')
        self.port = 0
        self.client_tls: ssl.SSLContext | None = None

    async def start(self, tls: ssl.SSLContext | None, grpc: Any = False) -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        ours, theirs = socket.socketpair()
        make_grpc = functools.partial(self._grpc_port, grpc) if grpc else None
        self.worker = Worker(self.loop, self.shared, 0, listener, tls, make_grpc)
        self._run = asyncio.create_task(self.worker.run(theirs))
        self._channel = await Channel.to_worker(ours)
        self._read = asyncio.create_task(self._listen())
        self.send(self.fleet)
        await self.ready.wait()

    def _grpc_port(self, grpc: Any, plane: Any) -> Any:
        from gateway.kserve import GrpcPort

        certificate = grpc if isinstance(grpc, tuple) else None
        port = GrpcPort(plane, "127.0.0.1:0", plane.settings.body_bytes, certificate)
        self.grpc_address = f"127.0.0.1:{port.port}"
        return port

    async def _listen(self) -> None:
        async for message in self._channel:
            if isinstance(message, Ready):
                self.ready.set()
            elif isinstance(message, Drained):
                self.drained.set()
            elif isinstance(message, Access):
                self.access += [json.loads(line) for line in message.lines]
            else:
                self.made.append(message)

    def send(self, message: Fleet | Condemn | Drain | Made) -> None:
        """Give the worker an order."""
        self._channel.send(message)

    async def stop(self) -> None:
        for wire in self.wires:
            wire.close()
        try:
            if not self._run.done():
                # Nothing may be left once clients and endpoints have gone.
                self.send(Fleet([], [], {}, [], True, self.fleet.settings, b'{"data":[]}'))
                await self.until(self._is_even)
                await self._settle()
        finally:
            async with asyncio.timeout(PATIENCE_S):
                await self._channel.close()
                await self._run
                if self.worker._grpc is not None:
                    await self.worker._grpc.drain(0)
                self.worker._server.close()  # a process that ends needs no such care
                self._read.cancel()
                for engine in self.engines:
                    await engine.stop()
        self.check_account()

    def _is_even(self) -> bool:
        count = self.count
        return (
            count(Count.CLIENT_OPENED) == count(Count.CLIENT_CLOSED)
            and count(Count.UPSTREAM_OPENED) == count(Count.UPSTREAM_CLOSED)
            and count(Count.WAITING_FOR_DIAL) == 0
        )

    async def _settle(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    # the world

    def endpoints(self) -> list[Endpoint]:
        return [self.endpoint(slot, engine) for slot, engine in enumerate(self.engines)]

    def endpoint(self, slot: int, engine: Any, **fields: Any) -> Endpoint:
        return Endpoint(
            slot=slot,
            generation=1,
            name=f"e{slot}",
            kind=fields.pop("kind", getattr(engine, "kind", "vllm")),
            grpc_port=getattr(engine, "grpc_port", 0),
            host=f"127.0.0.1:{engine.port}",
            address="127.0.0.1",
            port=engine.port,
            **fields,
        )

    def state(self, slot: int, state: State, share: float = 1.0, generation: int = 1) -> None:
        """Write an endpoint's row, as the prober does."""
        self.shared.table.set_row(slot, state=state, share=share, generation=generation)

    def tell(self, **fields: Any) -> None:
        """Send a fleet that differs in these fields from the last; settings by their names."""
        kept = {name: getattr(self.fleet, name) for name in Fleet.__struct_fields__}
        settings = {
            name: fields.pop(name) for name in list(fields) if name in Settings.__struct_fields__
        }
        old = self.fleet.settings
        kept["settings"] = Settings(
            **{n: getattr(old, n) for n in Settings.__struct_fields__} | settings
        )
        kept |= fields
        names = [model.name for model in kept["models"]] + list(kept["aliases"])
        cards = [{"id": name, "object": "model"} for name in names]
        kept["models_json"] = json.dumps({"object": "list", "data": cards}).encode()
        self.fleet = Fleet(**kept)
        if self.ready.is_set():
            self.send(self.fleet)

    # its clients

    async def dial(self, data: bytes = b"", *, limit: int = 1 << 16) -> Wire:
        """A new connection, with a first write."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            self.port,
            ssl=self.client_tls,
            server_hostname="localhost" if self.client_tls else None,
            limit=limit,
        )
        wire = Wire(reader, writer)
        self.wires.append(wire)
        if data:
            wire.write(data)
        return wire

    async def ask(self, *args: Any, **kwargs: Any) -> Answer:
        """One request on a connection of its own."""
        wire = await self.dial()
        try:
            return await wire.ask(*args, **kwargs)
        finally:
            wire.close()

    async def chat(self, **fields: Any) -> Answer:
        return await self.ask(body=chat(**fields))

    # what is known of it

    def count(self, index: Count | int) -> int:
        return self.shared.count(index)

    def counts(self) -> dict[str, int]:
        """All that is not 0, by name."""
        found = {name: self.count(one) for name, one in Count.__members__.items() if one < 64}
        return {name: value for name, value in found.items() if value}

    def reasons(self) -> dict[str, int]:
        found = {r.name.lower(): self.count(int(Area.REASONS) + r) for r in Reason}
        return {name: value for name, value in found.items() if value}

    def model_word(self, word: ModelWord, model: int = 0) -> int:
        return self.count(int(Area.MODELS) + model * int(Area.MODEL_WIDTH) + word)

    def endpoint_word(self, word: int, slot: int = 0) -> int:
        return self.count(int(Area.ENDPOINTS) + slot * int(Area.ENDPOINT_WIDTH) + word)

    async def until(self, condition: Callable[[], Any], within_s: float = PATIENCE_S) -> None:
        """Wait for a condition; a generous bound keeps a hang from being one."""
        end_s = self.loop.time() + within_s
        while not condition():
            assert self.loop.time() < end_s, f"it did not come to pass: {self.counts()}"
            await asyncio.sleep(0.004)

    def check_account(self) -> None:
        """Whatever happened, each request, dispatch and connection has ended in one way."""
        counts = self.counts()

        def total(*names: str) -> int:
            return sum(counts.get(name, 0) for name in names)

        ends = ("COMPLETED", "CANCELLED", "FAILED", "REFUSED")
        assert total("ACCEPTED") == total(*ends), counts
        assert total("DISPATCHED") == sum(
            self.count(one) for one in range(Count.ANSWERED, Count.CUT + 1)
        ), counts
        assert total("CLIENT_OPENED") == total("CLIENT_CLOSED"), counts
        assert total("UPSTREAM_OPENED") == total("UPSTREAM_CLOSED"), counts
        assert total("BUFFERED_BYTES", "WAITING_FOR_DIAL") == 0, counts
        assert total("HELD_REQUESTS", "HELD_BYTES") == 0, counts
        for slot in range(len(self.engines)):
            load = self.shared.table.load(slot)
            assert (load["in_flight"], load["producing"]) == (0, 0), load


def chat(**fields: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": "sim", "messages": [{"role": "user", "content": "Hello"}], **fields}


def sim(name: str = "sim-0", **config: Any) -> SimEngine:
    """A simulated engine that answers at once, unless told otherwise."""
    return SimEngine(SimConfig(**{"name": name, "profile": "instant", **config}))


Scene = Callable[[House], Awaitable[Any]]


class Watchman(logging.Handler):
    """Whatever the gateway logs as an error is one."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(self.format(record))


@pytest.fixture(name="play")
def play_fixture() -> Iterable[Callable[..., Any]]:
    """`play(scene, *engines, **settings)` runs a scene in a house with these engines.

    Further keywords: `models` (name -> slots), `aliases` (name -> {model: weight}), `keys` (key ->
    Key fields), `endpoints` (slot -> Endpoint fields), `listen_tls`, `engine_tls`, `complete`,
    `log_errors` (how many are expected), `workers` (that the memory has room for; one runs),
    `grpc` (it has that port too; a tuple: with this key and certificate, files).
    """
    thresholds = gc.get_threshold()

    def run(scene: Scene, *engines: Any, **options: Any) -> Any:
        return uvloop.run(_play(scene, engines, options))

    yield run
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def is_of_another_scene(context: dict[str, Any]) -> bool:
    """grpcio has one poller per process: what it learns late of an earlier scene's call, it says
    in the loop that runs now, and would tell the one that is closed."""
    is_poller = "PollerCompletionQueue._handle_events" in context["message"]
    return is_poller and str(context.get("exception")) == "Event loop is closed"


async def _play(scene: Scene, engines: tuple[Any, ...], options: dict[str, Any]) -> Any:
    loop = asyncio.get_running_loop()
    unseen: list[dict[str, Any]] = []
    loop.set_exception_handler(
        lambda _, context: is_of_another_scene(context) or unseen.append(context)
    )
    watchman = Watchman()
    logging.getLogger("headgate").addHandler(watchman)
    house = House(loop, options.pop("workers", 1))
    house.client_tls = options.pop("client_tls", None)
    expected = options.pop("log_errors", 0)
    try:
        await _furnish(house, engines, options)
        try:
            async with asyncio.timeout(SCENE_S):
                result = await scene(house)
        except BaseException:
            with contextlib.suppress(Exception):
                await house.stop()
            raise
        await house.stop()
    finally:
        logging.getLogger("headgate").removeHandler(watchman)
    assert not unseen
    assert len(watchman.heard) == expected, watchman.heard
    return result


@dataclass
class World:
    """A house whose loop turns only in `run`: for tests that are not coroutines themselves."""

    house: House
    run: Callable[[Awaitable[Any]], Any]


@pytest.fixture(name="open_house")
def open_house_fixture() -> Iterable[Callable[..., Any]]:
    """`with open_house(*engines, **settings) as world`: as `play`, in steps."""
    thresholds = gc.get_threshold()
    yield open_house
    gc.set_threshold(*thresholds)
    gc.unfreeze()


@contextlib.contextmanager
def open_house(*engines: Any, **options: Any) -> Iterator[World]:
    """See the fixture; state machines open theirs without one."""
    watchman = Watchman()
    logging.getLogger("headgate").addHandler(watchman)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        house = House(runner.get_loop())
        try:
            runner.run(_furnish(house, engines, options))
            try:
                yield World(house, runner.run)
            except BaseException:
                with contextlib.suppress(Exception):
                    runner.run(house.stop())
                raise
            runner.run(house.stop())
        finally:
            logging.getLogger("headgate").removeHandler(watchman)
    assert not watchman.heard


async def _furnish(house: House, engines: tuple[Any, ...], options: dict[str, Any]) -> None:
    engine_tls = options.pop("engine_tls", None)
    for slot, engine in enumerate(engines):
        if isinstance(engine, Script):
            await engine.start(engine_tls)
        elif engine.port == 0:
            await engine.start()
        house.engines.append(engine)
        house.state(slot, State.READY)
    models = options.pop("models", {"sim": list(range(len(engines)))})
    parents = options.pop("parents", {})
    extra = options.pop("endpoints", {})
    house.tell(
        endpoints=[
            house.endpoint(slot, engine, **extra.get(slot, {}))
            for slot, engine in enumerate(engines)
        ],
        models=[
            Model(name, index, slots, parents.get(name, ""))
            for index, (name, slots) in enumerate(models.items())
        ],
        labels=options.pop("labels", {}),
        aliases={
            name: [Choice(model, weight) for model, weight in choices.items()]
            for name, choices in options.pop("aliases", {}).items()
        },
        keys=[
            Key(name=key, digest=hashlib.sha256(key.encode()).digest(), **fields)
            for key, fields in options.pop("keys", {}).items()
        ],
        complete=options.pop("complete", True),
        access_log=True,
        **{name: options.pop(name) for name in list(options) if name in Settings.__struct_fields__},
    )
    tls, grpc = options.pop("listen_tls", None), options.pop("grpc", False)
    assert not options, f"unknown options: {options}"
    await house.start(tls, grpc)


@pytest.fixture
def product(tmp_path: Path) -> Callable[..., None]:
    """`product(scene, n_engines, text, **config of the engines)`; see `play_product`."""
    return functools.partial(play_product, tmp_path)


@pytest.fixture
def new_sim() -> Callable[..., SimEngine]:
    return sim


@pytest.fixture
def script() -> Callable[[Answers | Iterable[Step]], Script]:
    return Script


@pytest.fixture(name="chat")
def chat_fixture() -> Callable[..., dict[str, Any]]:
    return chat


@pytest.fixture(name="request_bytes")
def request_fixture() -> Callable[..., bytes]:
    return request
