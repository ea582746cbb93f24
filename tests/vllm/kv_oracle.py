"""What a vLLM's KV cache holds, read from its events by other means than the gateway's own.

Messages are decoded by msgspec, and blocks stand in a
dict by all that sets them apart: adapter, salt and every token up to their end. Slow and plain.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import msgspec
import zmq

from tests.vllm.server import BLOCK_TOKENS, Server

LIMIT_S = 60.0
END = b"\xff" * 8


@dataclass(frozen=True, order=True)
class Block:
    """`tokens`: from the beginning of the prompt to the end of the block."""

    adapter: str
    salt: str
    tokens: tuple[int, ...]


@dataclass
class HeldBlocks:
    by_hash: dict[int | bytes, Block] = field(default_factory=dict)
    counts: Counter[int | bytes] = field(default_factory=Counter)
    evicted: int = 0
    clears: int = 0

    def apply(self, payload: bytes) -> None:
        _, events, _ = msgspec.msgpack.decode(payload)
        for event in events:
            getattr(self, f"_on_{event['type']}")(event)

    def cached_tokens(self, adapter: str, salt: str, tokens: list[int]) -> int:
        """Of a prompt that comes now; its last token is always computed."""
        blocks = set(self.by_hash.values())
        end = BLOCK_TOKENS
        while end < len(tokens) and Block(adapter, salt, tuple(tokens[:end])) in blocks:
            end += BLOCK_TOKENS
        return end - BLOCK_TOKENS

    def _on_BlockStored(self, event: dict[str, Any]) -> None:
        assert event["block_size"] == BLOCK_TOKENS
        adapter, salt, before = event.get("lora_name") or "", "", ()
        if event["parent_block_hash"] is not None:
            parent = self.by_hash[event["parent_block_hash"]]
            assert adapter == parent.adapter
            salt, before = parent.salt, parent.tokens
        else:
            extras = (event.get("extra_keys") or [None])[0] or []
            salt = "".join(key for key in extras if key != adapter)
        tokens = (*before, *event["token_ids"])
        for number, name in enumerate(event["block_hashes"], 1):
            block = Block(adapter, salt, tokens[: len(before) + number * BLOCK_TOKENS])
            assert self.by_hash.setdefault(name, block) == block
            self.counts[name] += 1

    def _on_BlockRemoved(self, event: dict[str, Any]) -> None:
        for name in event["block_hashes"]:
            self.evicted += 1
            self.counts[name] -= 1
            if not self.counts[name]:
                del self.counts[name], self.by_hash[name]

    def _on_AllBlocksCleared(self, event: dict[str, Any]) -> None:
        self.clears += 1
        self.by_hash.clear()
        self.counts.clear()


class KvOracle:
    """Of one server, as long as that lives; `close` it."""

    def __init__(self, server: Server) -> None:
        self.held = HeldBlocks()
        self.payloads: list[bytes] = []
        """All batches so far."""
        self._source = httpx.get(f"{server.url}/kv_event_sources").raise_for_status().json()["0"]
        self._context = zmq.Context()
        self._live = self._connect(zmq.SUB, self._source["endpoint"])
        self._live.setsockopt(zmq.SUBSCRIBE, b"")
        self.catch_up()

    def hear(self, timeout_s: float = 0.0) -> None:
        """Take in what has arrived, within `timeout_s` if nothing has."""
        while self._live.poll(timeout_s * 1000):
            _, sequence, payload = self._live.recv_multipart()
            self._take(sequence, payload)
            timeout_s = 0.0

    def catch_up(self) -> None:
        """Take in all that has been published."""
        for sequence, payload in enumerate(self.replay(len(self.payloads)), len(self.payloads)):
            self._take(sequence.to_bytes(8, "big"), payload)

    def wait_for(self, adapter: str, salt: str, tokens: list[int]) -> None:
        """Until the engine has told that all whole blocks of these computed tokens are cached."""
        limit_s = time.monotonic() + LIMIT_S
        whole = len(tokens) // BLOCK_TOKENS * BLOCK_TOKENS
        while self.held.cached_tokens(adapter, salt, [*tokens, 0]) < whole:
            assert time.monotonic() < limit_s, "the engine does not tell of blocks it computed"
            self.hear(0.05)

    def replay(self, start: int = 0) -> list[bytes]:
        """The payloads of all batches from this one on."""
        found: list[bytes] = []
        is_whole = False
        with self._connect(zmq.DEALER, self._source["replay_endpoint"]) as socket:
            while not is_whole:
                socket.send_multipart((b"", (start + len(found)).to_bytes(8, "big")))
                is_whole = True
                while True:
                    _, _, sequence, payload = socket.recv_multipart()
                    if sequence == END:
                        break
                    if int.from_bytes(sequence, "big") == start + len(found):
                        found.append(payload)
                    else:  # the engine sent more than its socket holds: the rest once more
                        is_whole = False
        return found

    def close(self) -> None:
        self._context.destroy(linger=0)

    def _connect(self, kind: int, endpoint: str) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.RCVTIMEO, int(LIMIT_S * 1000))
        socket.connect(endpoint)
        return socket

    def _take(self, sequence: bytes, payload: bytes) -> None:
        due = len(self.payloads)
        number = int.from_bytes(sequence, "big")
        if number > due:
            self.catch_up()
        elif number == due:
            self.payloads.append(payload)
            self.held.apply(payload)
