"""KV events, from the bytes of the wire to the index: nanoseconds per block."""

from itertools import count
from random import Random
from time import perf_counter_ns

import msgspec
import pytest

from bench.micro.conftest import Measure
from engines._kv_events import KvEvents
from router._index import Index
from router._reported import ReportedCache

HELD = 102_400
"""Blocks in the index of one engine: 1.6 M tokens at 16 per block, as many as caches hold."""
BATCH_BLOCKS = 64


def payloads(block_tokens: int, shape: str, events_of: int) -> list[bytes]:
    """Batches that store `HELD` blocks, in events of so many, with no block twice."""
    random, names = Random(7), count(1)
    pool = random.choices(range(150_000), k=100_000)
    encoded = []
    for _ in range(HELD // BATCH_BLOCKS):
        events: list[object] = []
        for _ in range(BATCH_BLOCKS // events_of):
            hashes = [random.getrandbits(64) | 1 << 63 for _ in range(events_of)]
            at = random.randrange(len(pool) - block_tokens * events_of)
            tokens = [next(names), *pool[at + 1 : at + block_tokens * events_of]]
            event = {
                "type": "BlockStored",
                "block_hashes": hashes,
                "parent_block_hash": None,
                "token_ids": tokens,
                "block_size": block_tokens,
                "lora_id": None,
                "medium": "GPU",
                "lora_name": None,
                "extra_keys": [None] * events_of,
                "group_idx": 0,
                "kv_cache_spec_kind": "full_attention",
            }
            events.append(event if shape == "maps" else list(event.values()))
        encoded.append(msgspec.msgpack.encode([1.0, events, 0]))
    return encoded


def removals(stored: list[bytes]) -> list[bytes]:
    """One event per block, as vLLM has it."""
    encoded = []
    for payload in stored:
        events = [
            {"type": "BlockRemoved", "block_hashes": [name], "medium": "GPU", "group_idx": 0}
            for event in msgspec.msgpack.decode(payload)[1]
            for name in event["block_hashes"]
        ]
        encoded.append(msgspec.msgpack.encode([1.0, events, 0]))
    return encoded


def fresh() -> KvEvents:
    memory = bytearray(Index.size(2 * HELD))
    return KvEvents("m", ReportedCache(Index(memory, 2 * HELD), 1))


@pytest.mark.parametrize(
    ("block_tokens", "shape", "events_of"),
    [(16, "maps", 1), (16, "maps", 32), (16, "arrays", 32), (128, "maps", 1), (128, "maps", 32)],
)
def test_stored(measure: Measure, block_tokens: int, shape: str, events_of: int) -> None:
    batches = payloads(block_tokens, shape, events_of)

    def run(n: int) -> float:
        """Fills a cache from nothing to `HELD` blocks, however few operations are asked for."""
        events = fresh()
        started = perf_counter_ns()
        for batch in batches:
            events.apply(batch)
        elapsed = perf_counter_ns() - started
        assert events.n_stored == events.cache.n_blocks == len(batches) * BATCH_BLOCKS
        return elapsed / events.n_stored

    measure(f"kv stored:{block_tokens} tokens, {shape}, {events_of} blocks per event", run)


def test_removed(measure: Measure) -> None:
    batches = payloads(16, "maps", 32)
    reversals = removals(batches)

    def run(n: int) -> float:
        events = fresh()
        for batch in batches:
            events.apply(batch)
        started = perf_counter_ns()
        for batch in reversals:
            events.apply(batch)
        elapsed = perf_counter_ns() - started
        assert events.cache.n_blocks == 0
        return elapsed / events.n_removed

    measure("kv removed:one block per event", run)
