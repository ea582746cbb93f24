"""KV events as vLLM 0.32 publishes them: PUB for batches, ROUTER for the replay of missed ones."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from time import time
from typing import Any

import zmq
from msgspec import msgpack

from engines.sim.core import Core, KvStored

__all__ = ["KvPublisher"]

BUFFER_STEPS = 10_000
HWM = 100_000
END = b"\xff" * 8


class KvPublisher:
    """The publisher of one life of an engine: sequence numbers begin at 0, the buffer is empty.

    Make it in the loop. OSError: an address is taken. Port 0 takes a free one.
    """

    def __init__(self, endpoint: str, replay_endpoint: str, topic: str, block_size: int) -> None:
        self._topic = topic
        self._block_size = block_size
        self._buffer: deque[tuple[bytes, bytes]] = deque(maxlen=BUFFER_STEPS)
        self.n_batches = 0
        """Published so far: the next one's sequence number."""
        self._pending: list[Mapping[str, Any]] = []
        self._adapters: dict[str, int] = {}
        # A context for each life: to end it is to wait until the ports are free again.
        self._context = zmq.Context()
        self._router: zmq.Socket[bytes] | None = None
        self._fd = -1
        try:
            self._pub = self._context.socket(zmq.PUB)
            self._pub.set_hwm(HWM)
            self.endpoint = _bind(self._pub, endpoint)
            self.replay_endpoint = self._open_replay(replay_endpoint) if replay_endpoint else ""
        except zmq.ZMQError as error:
            self._context.destroy(linger=0)
            raise OSError(error.errno, f"KV events cannot be published: {error}") from error

    def close(self) -> None:
        """Free the ports. Again: no effect."""
        if self._router is not None and not self._router.closed:
            asyncio.get_running_loop().remove_reader(self._fd)
        self._context.destroy(linger=0)

    def describe(self) -> dict[str, object]:
        """What stands in `GET /kv_event_sources` for a rank."""
        return {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": self.endpoint,
            "replay_endpoint": self.replay_endpoint or None,
            "buffer_steps": BUFFER_STEPS,
            "hwm": HWM,
            "max_queue_size": HWM,
            "topic": self._topic,
        }

    def cleared(self) -> None:
        """The cache was dropped; that leaves with the next step, as everything does."""
        self._pending.append({"type": "AllBlocksCleared"})

    def publish(self, core: Core) -> None:
        """Send what a step has changed, if it has changed anything."""
        events = self._pending
        events += (_removed(key) for key in core.pool.removed)
        events += (self._stored(stored) for stored in core.kv_stored)
        core.pool.removed.clear()
        core.kv_stored.clear()
        if not events:
            return
        self._pending = []
        batch = (self.n_batches.to_bytes(8, "big"), msgpack.encode([time(), events, 0]))
        self.n_batches += 1
        self._buffer.append(batch)
        self._pub.send_multipart((self._topic.encode(), *batch), zmq.NOBLOCK)

    def _stored(self, stored: KvStored) -> Mapping[str, Any]:
        adapter = stored.adapter or None
        keys: list[list[str] | None] = [[adapter] if adapter else None for _ in stored.hashes]
        if stored.parent is None and stored.salt:
            keys[0] = [*(keys[0] or ()), stored.salt]
        return {
            "type": "BlockStored",
            "block_hashes": stored.hashes,
            "parent_block_hash": stored.parent,
            "token_ids": stored.tokens.tolist(),
            "block_size": self._block_size,
            "lora_id": self._adapter_id(adapter) if adapter else None,
            "medium": "GPU",
            "lora_name": adapter,
            "extra_keys": keys,
            "group_idx": 0,
            "kv_cache_spec_kind": "full_attention",
        }

    def _adapter_id(self, adapter: str) -> int:
        return self._adapters.setdefault(adapter, len(self._adapters) + 1)

    def _open_replay(self, endpoint: str) -> str:
        self._router = self._context.socket(zmq.ROUTER)
        bound = _bind(self._router, endpoint)
        self._fd = int(self._router.getsockopt(zmq.FD))
        loop = asyncio.get_running_loop()
        loop.add_reader(self._fd, self._on_requests)
        loop.call_soon(self._on_requests)  # the descriptor tells of changes only
        return bound

    def _on_requests(self) -> None:
        router = self._router
        while router is not None and not router.closed:
            try:
                frames = router.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            if len(frames) == 3:
                self._replay(router, frames[0], frames[2])

    def _replay(self, router: zmq.Socket[bytes], identity: bytes, start: bytes) -> None:
        # A full pipe drops what comes then, as in the real one.
        for seq, payload in self._buffer:
            if seq >= start:
                router.send_multipart((identity, b"", self._topic.encode(), seq, payload))
        router.send_multipart((identity, b"", b"", END, b""))


def _removed(key: int) -> Mapping[str, Any]:
    return {"type": "BlockRemoved", "block_hashes": [key], "medium": "GPU", "group_idx": 0}


def _bind(socket: zmq.Socket[bytes], endpoint: str) -> str:
    """The endpoint with the port that it has got."""
    socket.bind(endpoint)
    port = socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2]
    return f"{endpoint.rpartition(':')[0]}:{port}"
