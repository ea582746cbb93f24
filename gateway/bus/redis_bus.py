"""The bus over Redis: one pub/sub channel for what changes, one key per gateway for the whole.

Redis is a shortcut, never a dependency: without it each gateway goes on with what it knows of
itself. Two connections: one listens; over the other goes one pipeline at a time, and what changes
meanwhile waits, merged, for the next.
"""

import asyncio
import contextlib
import logging
import os
import random
import socket
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from gateway.bus.frame import FrameError, Sender, Vector, VersionError, decode, encode, prefix
from gateway.bus.ledger import Ledger
from gateway.bus.peers import Peers
from gateway.bus.state import State
from gateway.bus.work import Work

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.client import PubSub

__all__ = ["RedisBus"]

log = logging.getLogger("headgate.bus")

CHANNEL = "headgate:load"
"""With the db's number behind it; and for a key, the gateway's name behind that."""
BEAT_S = 0.1
"""Longest silence; also the oldest that peers' state gets while nothing changes."""
VECTOR_S = 0.5
VECTOR_EXPIRY_MS = 3000
IO_S = 1.0
"""Patience with one pipeline, one dial, and until an own message comes back."""
BACKOFF_S = 0.1
BACKOFF_MAX_S = 2.0
COMPLAINT_S = 60.0


class RedisBus:
    """See Bus. Make it inside a running event loop: it begins to connect at once.

    `url`: redis[s]://[[user]:password@]host[:port][/db]. `name`: of this gateway, unlike any
    other's, kept over restarts.
    """

    alone = False

    def __init__(self, url: str, name: str) -> None:
        born_ms = time.time_ns() // 1_000_000
        sender = Sender(name, born_ms, int.from_bytes(os.urandom(8), "little"))
        parts = urlsplit(url)
        db = parts.path.strip("/") or "0"
        self.peers = Peers(name)
        self.state = State(
            "redis", f"{parts.hostname}:{parts.port or 6379}/{db}", since_s=time.monotonic()
        )
        self._url = url
        # Pub/sub knows no db: the number keeps deployments apart that share a server.
        self._channel = f"{CHANNEL}:{db}"
        self._own = prefix(sender)
        self._ledger = Ledger(sender)
        self._due = asyncio.Event()
        self._sent_s = 0.0
        self._vector_s = 0.0
        self._echo_s = 0.0
        self._complained_s = -COMPLAINT_S
        self._complaints = 0
        self._task = asyncio.get_running_loop().create_task(self._run())

    def share(self, changes: Mapping[int, Work], now_s: float) -> None:
        """See Bus."""
        if changes:
            self._ledger.put(changes, now_s)
        self._due.set()

    def insert(self, endpoint: int, blocks: bytes) -> None:
        """See Bus."""
        self._ledger.insert(endpoint, blocks)
        self.state.dropped_blocks = self._ledger.dropped_blocks

    async def close(self) -> None:
        """See Bus."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        """Connect, serve, lose it, wait; for ever."""
        from redis.exceptions import RedisError

        wait_s, where = BACKOFF_S, self.state.where
        while True:
            connects = self.state.connects
            try:
                await self._serve()
            except (RedisError, OSError, TimeoutError) as error:
                why = str(error) or type(error).__name__
            except Exception as error:  # a bug: the gateway goes on without a bus, and so does this
                log.exception("bus: %s", where)
                why = repr(error)
            was_connected = self.state.connects > connects
            if was_connected:
                wait_s = BACKOFF_S
                log.warning("bus: %s is away: %s; each gateway goes by itself", where, why)
            elif why != self.state.why:
                log.warning("bus: each gateway goes by itself: %s cannot be used: %s", where, why)
            self.state.lose(time.monotonic(), why)
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))
            wait_s = min(2 * wait_s, BACKOFF_MAX_S)

    async def _serve(self) -> None:
        """One life of the connections; ends by an exception."""
        client = _client(self._url)
        pubsub = client.pubsub(ignore_subscribe_messages=True)
        tasks: list[asyncio.Task[None]] = []
        try:
            async with asyncio.timeout(2 * IO_S):
                await pubsub.subscribe(self._channel)
            self._echo_s = time.monotonic()
            self._vector_s = self._sent_s = 0.0
            tasks = [
                asyncio.create_task(self._listen(pubsub)),
                asyncio.create_task(self._talk(client)),
            ]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with contextlib.suppress(Exception):
                async with asyncio.timeout(IO_S):
                    await pubsub.aclose()  # type: ignore[no-untyped-call]
                    await client.aclose()

    async def _listen(self, pubsub: "PubSub") -> None:
        while True:
            message = await pubsub.get_message(timeout=None)
            if message is not None and message["type"] == "message":
                self._hear(message["data"], time.monotonic())

    async def _talk(self, client: "Redis") -> None:
        while True:
            await self._due.wait()
            self._due.clear()
            now_s = time.monotonic()
            # Of the last message, not of now: a loop that stood still has heard nothing either.
            if self._sent_s - self._echo_s > IO_S:
                raise TimeoutError(f"nothing of what was sent came back for {IO_S:g} s")
            await self._say(client, now_s)

    async def _say(self, client: "Redis", now_s: float) -> None:
        """All that is due, as one pipeline."""
        pipe = client.pipeline(transaction=False)
        delta = self._ledger.take(now_s)
        if delta is not None or now_s - self._sent_s >= BEAT_S:
            self._sent_s = now_s
            frame = encode(delta or self._ledger.beat())
            pipe.publish(self._channel, frame)
            self.state.messages_out += 1
            self.state.bytes_out += len(frame)
        if now_s - self._vector_s >= VECTOR_S:
            self._vector_s = now_s
            frame = encode(self._ledger.vector(now_s))
            pipe.set(self._key(self._ledger.sender.name), frame, px=VECTOR_EXPIRY_MS)
            self.state.vectors_out += 1
            self.state.bytes_out += len(frame)
        wanted = [self._key(name) for name in self.peers.wanted(now_s)]
        if wanted:
            pipe.mget(wanted)
        if len(pipe):
            results: list[Any] = await pipe.execute()
            if wanted:
                for vector in results[-1]:
                    if vector is not None:
                        self._read(vector, time.monotonic())

    def _key(self, name: str) -> str:
        return f"{self._channel}:{name}"

    def _hear(self, frame: bytes, now_s: float) -> None:
        """One message off the channel."""
        if frame.startswith(self._own):
            self._echo_s = now_s
            self.state.round_trip_s = now_s - self._sent_s
            if not self.state.connected:
                self.state.connect(now_s)
                log.info("bus: connected to %s", self.state.where)
            return
        self.state.messages_in += 1
        self._take(frame, False, now_s)

    def _read(self, frame: bytes, now_s: float) -> None:
        """One peer's key."""
        self.state.vectors_in += 1
        self._take(frame, True, now_s)

    def _take(self, frame: bytes, is_key: bool, now_s: float) -> None:
        self.state.bytes_in += len(frame)
        try:
            message = decode(frame)
            if isinstance(message, Vector) != is_key:
                raise FrameError("a message where it does not belong")
        except VersionError as error:
            self.state.other_versions += 1
            self._complain(error, now_s)
        except FrameError as error:
            self.state.malformed += 1
            self._complain(error, now_s)
        else:
            namesakes = self.peers.namesakes
            self.peers.apply(message, now_s)
            if self.peers.namesakes > namesakes:
                self._complain(f"another gateway goes by our name, {message.sender.name}", now_s)

    def _complain(self, what: object, now_s: float) -> None:
        """Once a minute, with the number of those in between."""
        self._complaints += 1
        if now_s - self._complained_s >= COMPLAINT_S:
            log.warning("bus: %d messages ignored; the last: %s", self._complaints, what)
            self._complained_s, self._complaints = now_s, 0


def _client(url: str) -> "Redis":
    """Two connections, no retries: `_run` is the one that tries again."""
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    return Redis.from_url(
        url,
        protocol=2,
        retry=Retry(NoBackoff(), 0),
        socket_timeout=IO_S,
        socket_connect_timeout=IO_S,
        socket_keepalive=True,
        client_name=f"headgate-{socket.gethostname()}",
        max_connections=2,
    )
