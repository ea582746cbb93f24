"""The subscriber beside simulated engines: what it knows is what stands in their caches."""

import asyncio
import logging
from array import array
from random import Random

import httpx
import pytest
import uvloop

from engines._kv_events import KvEvents
from engines.kv_sources import KV_SOURCES_PATH, parse_kv_sources
from engines.sim import SimConfig, SimEngine
from gateway.kv_events import KvSubscriber
from gateway.kv_subscription import KvState
from router._hash import block_hashes
from router._index import Index, Matcher
from router._reported import ReportedCache
from router.namespace import namespace

SIZE = 8
CONFIG = SimConfig(
    profile="instant",
    block_size=SIZE,
    kv_tokens=60 * SIZE,
    adapters=("ad1",),
    kv_events="tcp://127.0.0.1:0",
    kv_replay="tcp://127.0.0.1:0",
)


def matched(index, prompt, lora="", salt=""):
    name = namespace("sim", lora, salt)
    keys = block_hashes(name, array("I", prompt).tobytes(), 4 * SIZE)
    return Matcher([index]).depth_of(keys, [0])[0]


class Bench:
    async def start(self):
        self.engine = SimEngine(CONFIG)
        await self.engine.start()
        self.client = httpx.AsyncClient(base_url=self.engine.url, timeout=20)
        found = (await self.client.get(KV_SOURCES_PATH)).content
        (source,) = parse_kv_sources(found, "127.0.0.1")
        self.index = Index(bytearray(Index.size(1024, 8)), 1024, 8)
        self.events = KvEvents("sim", ReportedCache(self.index, 0))
        self.subscriber = KvSubscriber()
        self.subscription = self.subscriber.add("sim-0", source, self.events)

    async def stop(self):
        self.subscriber.close()
        await self.client.aclose()
        await self.engine.stop()

    async def ask(self, prompt, model="sim", salt="", n=4):
        body = {"model": model, "prompt": prompt, "max_tokens": n, "cache_salt": salt}
        response = await self.client.post("/v1/completions", json=body)
        assert response.status_code == 200
        return response.json()["usage"]["prompt_tokens_details"]["cached_tokens"]

    async def settled(self, state=KvState.LIVE):
        """Wait until it is up to date."""
        async with asyncio.timeout(10):
            while not self.is_settled(state):  # noqa: ASYNC110  (nothing tells of batches)
                await asyncio.sleep(0.005)
        assert self.events.cache.n_blocks == self.engine.core.pool.cached

    def is_settled(self, state):
        is_here = self.subscription.sequence.next == self.engine.kv.n_batches
        return self.subscription.state is state and is_here


def on_bench(test):
    def run():
        async def main():
            bench = Bench()
            await bench.start()
            try:
                await test(bench)
            finally:
                await bench.stop()

        uvloop.run(main())

    run.__name__ = test.__name__
    return run


@on_bench
async def test_it_foretells_every_hit(bench):
    random = Random(3)
    await bench.settled()
    prefixes = [[random.randrange(1000) for _ in range(40)] for _ in range(6)]
    hits = 0
    for turn in range(150):
        tail = [random.randrange(1000) for _ in range(random.randrange(1, 40))]
        prompt = random.choice(prefixes) + tail
        salt = random.choice(["", "", "s"])
        lora = random.choice(["", "", "ad1"])
        await bench.settled()
        # The last token is computed whatever is cached.
        depth = matched(bench.index, prompt[:-1], lora, salt)
        assert await bench.ask(prompt, lora or "sim", salt, random.randrange(1, 20)) == SIZE * depth
        hits += depth > 0
        if turn == 75:
            await bench.client.post("/reset_prefix_cache")
            await bench.ask([1, 2, 3])
    assert hits > 20
    assert bench.events.n_removed > 100
    assert bench.subscription.n_orphans == bench.subscription.n_strays == 0
    assert bench.events.n_clears == 1


@on_bench
async def test_it_follows_through_deaths(bench):
    for life in range(4):
        await bench.settled()
        for at in range(5):
            await bench.ask([life, at] * 20)
        await bench.settled()
        assert bench.events.cache.n_blocks > 0
        bench.engine.fault("sigterm_quit")
        async with asyncio.timeout(5):
            while bench.subscription.state is not KvState.LOST:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        assert bench.events.cache.n_blocks == 0
        bench.engine.heal()


@on_bench
async def test_who_comes_late_is_told(bench):
    bench.subscriber.close()
    for at in range(30):
        await bench.ask([at] * 60)
    source = bench.subscription.source
    bench.subscription = bench.subscriber.add("late", source, bench.events)
    await bench.settled()
    assert bench.subscription.n_live == 0
    assert matched(bench.index, [29] * 59) == 7


def test_states_are_told_in_the_log(caplog):
    @on_bench
    async def run(bench):
        await bench.settled()

    with caplog.at_level(logging.INFO, "headgate.kv"):
        run()
    told = [record.getMessage() for record in caplog.records if record.name == "headgate.kv"]
    assert told[-2:] == [
        "sim-0: KV events: replaying -> live (every batch has been applied)",
        "sim-0: KV events: live -> lost (closed)",
    ]


def test_no_source_of_a_silent_engine():
    async def main():
        engine = SimEngine(SimConfig(profile="instant"))
        await engine.start()
        async with httpx.AsyncClient(base_url=engine.url) as client:
            found = (await client.get(KV_SOURCES_PATH)).content
        await engine.stop()
        assert parse_kv_sources(found, "127.0.0.1") == []

    uvloop.run(main())
    with pytest.raises(ValueError, match="no JSON"):
        parse_kv_sources(b"Not Found", "127.0.0.1")
