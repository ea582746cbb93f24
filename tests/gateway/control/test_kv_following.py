"""From an engine's URL to what its cache holds: sources found, events followed, ids compared."""

import asyncio
import contextlib
import json
import time
from array import array

import httpx
import pytest

from engines.sim import SimConfig, SimEngine, tokenize
from engines.tokens.probes import PROBES
from gateway._shared import Shared
from gateway.caches import Caches
from gateway.config import Engine
from gateway.config.schema import Health, ModelRule, Overload
from gateway.fleet import Fleet
from gateway.kv_following import KvFollowing
from gateway.messages import Sent
from gateway.prober import Prober
from router._hash import block_hashes
from router.namespace import namespace

SIZE = 8
TEXT = "Once upon a time a small boat went down the river until it met the open sea. " * 3
RULES = {"sim": ModelRule(tokenizer="somewhere")}


def config(**more):
    return SimConfig(
        profile="instant",
        block_size=SIZE,
        kv_tokens=600 * SIZE,
        kv_events="tcp://127.0.0.1:0",
        kv_replay="tcp://127.0.0.1:0",
        **more,
    )


class House:
    def __init__(self, rules):
        self.shared = Shared.create(1)
        self.fleet = Fleet(busy=lambda slot: False)
        self.changes = 0
        self.caches = Caches(
            self.shared.table,
            self.shared.index,
            self.shared.adapters,
            self.fleet.block_tokens_of,
            self._on_change,
        )
        self.prober = Prober(
            self.shared.table,
            self.fleet,
            self.caches,
            Health(interval_s=0.1, timeout_s=2.0, models_interval_s=0.2),
            Overload(),
            self._on_change,
            lambda condemn: None,
            lambda member: None,
            KvFollowing(self.fleet, self.caches, lambda: rules, self._on_change),
        )

    def _on_change(self):
        self.changes += 1

    def add(self, url, **fields):
        member = self.fleet.add(Engine(url=url, **fields), "config", time.monotonic())
        self.prober.add(member)
        return member

    def cache(self, slot=0):
        return self.caches.describe(slot)

    def holders(self, text, lora=""):
        """Of each whole block of a text."""
        keys = block_hashes(namespace("", lora), array("I", tokenize(text)).tobytes(), 4 * SIZE)
        return [self.shared.index.holders(key) for key in keys]


def play(scene, engines, rules=RULES):
    async def main():
        for engine in engines:
            await engine.start()
        house = House(rules)
        try:
            async with asyncio.timeout(30), httpx.AsyncClient(timeout=10) as client:
                await scene(house, client)
        finally:
            await house.prober.close()
            house.caches.stop()
            for engine in engines:
                await engine.stop()

    asyncio.run(main())


async def ask(client, engine, text=TEXT, model="sim"):
    body = {"model": model, "prompt": text, "max_tokens": 2}
    answer = await client.post(f"{engine.url}/v1/completions", json=body)
    assert answer.status_code == 200


async def until(condition):
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.01)


def test_what_an_engine_tells_is_known_and_what_is_sent_there_does_not_count():
    engines = [SimEngine(config(adapters=("ad",))), SimEngine(config())]

    async def scene(house, client):
        for engine in engines:
            house.add(engine.url)
        for slot in (0, 1):
            await until(lambda slot=slot: house.cache(slot)["known_by"] == "kv_events")
        await ask(client, engines[0])
        await ask(client, engines[0], model="ad")
        await ask(client, engines[1])
        n = len(tokenize(TEXT)) // SIZE
        await until(lambda: house.holders(TEXT) == n * [[0, 1]])
        await until(lambda: house.holders(TEXT, "ad") == n * [[0]])
        member = house.fleet.members[min(house.fleet.members, key=len)]
        await until(lambda: member.block_tokens == SIZE)
        # A worker says that it sent other blocks there; the engine knows better.
        words = array("Q", [1 << 32, 1, 77])
        house.caches.on_sent(Sent(words.tobytes()))
        house.caches.on_peers_sent(1, array("Q", [78]).tobytes())
        assert house.shared.index.holders(77) == house.shared.index.holders(78) == []
        found = house.cache()
        assert found["kv_events"]["state"] == "live"
        assert found["blocks"] == engines[0].core.pool.cached

    play(scene, engines)


def test_the_ids_that_an_engine_makes_are_asked_once():
    engine = SimEngine(config())

    async def scene(house, client):
        house.add(engine.url)
        await until(lambda: house.cache()["known_by"] == "kv_events")
        await ask(client, engine)
        await until(lambda: "sim" in house.fleet.samples)
        samples = house.fleet.samples["sim"]
        assert [(one.path, one.body) for one in samples] == list(PROBES)
        text = json.loads(PROBES[0][1])["prompt"]
        assert samples[0].ids == array("I", tokenize(text)).tobytes()

    play(scene, [engine])


def test_an_engine_that_dies_is_assumed_about_and_followed_again_when_it_is_back():
    engine = SimEngine(config())

    async def scene(house, client):
        house.add(engine.url)
        await until(lambda: house.cache()["known_by"] == "kv_events")
        await ask(client, engine)
        await until(lambda: house.holders(TEXT)[0] == [0])
        body = {"kind": "sigterm_quit", "seconds": 2}
        with contextlib.suppress(httpx.RemoteProtocolError):  # it dies before it answers
            await client.post(f"{engine.url}/sim/fault", json=body)
        await until(lambda: house.cache()["known_by"] == "what_was_sent")
        assert house.cache()["kv_events"]["state"] == "lost"
        assert not any(house.holders(TEXT))
        house.caches.on_sent(Sent(array("Q", [1 << 32, 1, 77]).tobytes()))
        assert house.shared.index.holders(77) == [0]
        await until(lambda: house.cache()["known_by"] == "kv_events")
        assert house.shared.index.holders(77) == []
        await ask(client, engine)
        await until(lambda: house.holders(TEXT)[0] == [0])

    play(scene, [engine])


@pytest.mark.parametrize(
    ("more", "rules", "fields", "said"),
    [
        ({}, {}, {}, None),
        ({"kv_events": "", "kv_replay": ""}, RULES, {}, "it publishes none; start it with"),
        ({}, RULES, {"rank": 1}, "none of its 1 publishers is rank 1"),
        (
            {},
            RULES,
            {"kv_events": ["tcp://*:7", "tcp://*:8?rank=1"]},
            "set `data_parallel: 2` for it",
        ),
    ],
)
def test_engines_that_are_not_followed(caplog, more, rules, fields, said):
    given = {"kv_events": "tcp://127.0.0.1:0", "kv_replay": "tcp://127.0.0.1:0", **more}
    engine = SimEngine(SimConfig(profile="instant", **given))

    async def scene(house, client):
        house.add(engine.url, **fields)
        await until(lambda: house.shared.table.row(0)[0].name == "READY")
        await (until(lambda: said in caplog.text) if said else asyncio.sleep(0.3))
        assert house.cache()["known_by"] == "what_was_sent"
        house.caches.on_sent(Sent(array("Q", [1 << 32, 1, 77]).tobytes()))
        assert house.shared.index.holders(77) == [0]

    play(scene, [engine], rules)
    assert caplog.text.count("no KV events") == (1 if said else 0)
