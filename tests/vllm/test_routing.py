"""What the gateway believes of two replicas' KV caches is what these caches hold, and it pays.

Three witnesses of each request: the decision header (what the router believed), the engine's usage
(what its cache really had), and the blocks that `kv_oracle` reads from the engine's events.

Two things the engine does in its own time, and the tests wait for: blocks are told of with the step
that fills them, some time after the answer perhaps; and a cleared cache is told of with the step
after, so an engine that has been reset gets a small request.
"""

from __future__ import annotations

import asyncio
import random
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from engines._kv_events import KvEvents
from router._hash import block_hashes
from router._index import Index
from router._reported import ReportedCache
from router.namespace import namespace
from tests.vllm import headgate_process
from tests.vllm.fleet import Fleet
from tests.vllm.headgate_process import Gateway
from tests.vllm.kv_oracle import KvOracle
from tests.vllm.server import ADAPTERS, BLOCK_TOKENS, CACHING_BLOCKS, MODEL, Server

pytestmark = [pytest.mark.engines, pytest.mark.usefixtures("through_gateway")]

Note = Callable[[str], None]

REQUESTS = 240
RESETS = 1
CONVERSATIONS, TURNS, AT_ONCE = 40, 5, 4
LIMIT_S = 60.0
# For so long a worker goes on believing that what it sent somewhere is there.
OVERLAY_S = 2.0
SALTS = ("", "", "", "", "red", 'blue "\u00e9"')
MODELS = (MODEL, MODEL, MODEL, *ADAPTERS)
TEXT = "the boat went down river until it met open sea; which city has most weather today? tell me"
WORDS = TEXT.split(" ")


@dataclass
class Asked:
    """One request, and the three things known of what was cached of its prompt."""

    endpoint: str
    believed: int
    known: bool
    """By token ids: on a busy machine they may come too late for the choice."""
    cached: int
    prompt: list[int]
    answer: list[int]
    text: str

    @property
    def computed(self) -> list[int]:
        """What the engine has in its cache afterwards: the last token is never fed back."""
        return self.prompt + self.answer[:-1]


def asked_of(path: str, response: httpx.Response) -> Asked:
    assert response.status_code == 200, response.text
    parts = dict(
        part.split("=")
        for part in response.headers["x-headgate-decision"].partition(";")[0].split()
    )
    believed, believed_of = parts["cached-tokens"].split("/")
    answer = response.json()
    (choice,) = answer["choices"]
    details = answer["usage"]["prompt_tokens_details"] or {}
    is_chat = path.endswith("/chat/completions")
    prompt = answer["prompt_token_ids"] if is_chat else choice["prompt_token_ids"]
    known = parts["known-by"] == "token-ids"
    assert not known or int(believed_of) == len(prompt)
    return Asked(
        endpoint=parts["endpoint"],
        believed=int(believed),
        known=known,
        cached=details.get("cached_tokens") or 0,
        prompt=prompt,
        answer=choice["token_ids"],
        text=choice["message"]["content"] if is_chat else choice["text"],
    )


def body_of(request: dict[str, Any]) -> dict[str, Any]:
    return {"temperature": 0, "return_token_ids": True, **request}


class Scene:
    """A gateway over the replicas, and an oracle for each; requests one at a time."""

    def __init__(self, gateway: Gateway, servers: list[Server]) -> None:
        self.gateway = gateway
        self.oracles = {s.url.removeprefix("http://"): KvOracle(s) for s in servers}
        self.servers = {s.url.removeprefix("http://"): s for s in servers}
        self.asked: list[Asked] = []
        self.client = httpx.Client(base_url=gateway.url, timeout=LIMIT_S)
        self._before: dict[str, int] = {}
        for name, oracle in self.oracles.items():
            self.until_live(name)
            self._before[name] = len(oracle.payloads) - self.batches(name)

    def close(self) -> None:
        self.client.close()
        for oracle in self.oracles.values():
            oracle.close()

    def cache(self, name: str) -> dict[str, Any]:
        (found,) = (e["cache"] for e in self.gateway.endpoints() if e["name"] == name)
        return dict(found)

    def batches(self, name: str) -> int:
        return int(self.cache(name)["kv_events"]["batches"])

    def until_live(self, name: str) -> None:
        def is_live() -> bool:
            return bool(self.cache(name).get("kv_events", {}).get("state") == "live")

        until(is_live, f"the gateway follows the events of {name}")

    def ask(self, path: str, request: dict[str, Any]) -> Asked:
        """And wait until the engine has told what came of it, and the gateway has heard."""
        asked = asked_of(path, self.client.post(path, json=body_of(request)))
        self.asked.append(asked)
        oracle = self.oracles[asked.endpoint]
        adapter = request["model"] if request["model"] in ADAPTERS else ""
        salt = request.get("cache_salt") or ""
        told = oracle.held.cached_tokens(adapter, salt, asked.prompt)
        assert told == asked.cached, "the oracle does not understand the engine"
        if asked.known:
            assert asked.believed == asked.cached, f"{asked.endpoint}: {request}"
        oracle.wait_for(adapter, salt, asked.computed)
        self.settle(asked.endpoint)
        return asked

    def settle(self, name: str) -> None:
        oracle = self.oracles[name]

        def has_all() -> bool:
            oracle.hear()
            return self.batches(name) == len(oracle.payloads) - self._before[name]

        until(has_all, f"the gateway has all batches of {name}")

    def reset(self, name: str) -> None:
        url, oracle = self.servers[name].url, self.oracles[name]
        clears = oracle.held.clears
        httpx.post(f"{url}/reset_prefix_cache").raise_for_status()
        httpx.post(
            f"{url}/v1/completions", json={"model": MODEL, "prompt": [40], "max_tokens": 1}
        ).raise_for_status()

        def is_told() -> bool:
            oracle.hear(0.05)
            return oracle.held.clears > clears

        until(is_told, "the engine tells that its cache was cleared")
        self.settle(name)
        time.sleep(OVERLAY_S)

    def check_blocks(self) -> dict[str, int]:
        """Everything the engines ever said, through the gateway's classes and through the oracle;
        the number of blocks by endpoint."""
        capacity = 1 << 16
        index = Index(bytearray(Index.size(capacity)), capacity)
        expected: dict[int, set[int]] = {}
        counts = {}
        for slot, (name, oracle) in enumerate(self.oracles.items()):
            self.settle(name)
            replayed = oracle.replay()
            assert replayed == oracle.payloads
            events = KvEvents("", ReportedCache(index, slot))
            for payload in replayed:
                events.apply(payload)
            keys = {
                block_hashes(
                    namespace("", block.adapter, block.salt),
                    array("I", block.tokens).tobytes(),
                    4 * BLOCK_TOKENS,
                )[-1]
                for block in oracle.held.by_hash.values()
            }
            assert events.cache.keys() == keys
            assert events.cache.n_blocks == len(oracle.held.by_hash)
            assert (events.cache.n_orphans, events.cache.n_strays) == (0, 0)
            for key in keys:
                expected.setdefault(key, set()).add(slot)
            cache = self.cache(name)
            assert cache["known_by"] == "kv_events"
            assert cache["blocks"] == len(oracle.held.by_hash)
            assert cache["kv_events"]["state"] == "live"
            counts[name] = cache["blocks"]
        assert index.n_blocks == len(expected)
        for key, slots in expected.items():
            assert set(index.holders(key)) == slots
        return counts


def until(condition: Callable[[], bool], what: str) -> None:
    limit_s = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < limit_s, f"not after {LIMIT_S} s: {what}"
        time.sleep(0.005)


class Workload:
    """Requests of many kinds, the same for the same seed (but that chats have answers in them)."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._prefixes = [self._ids(size) for size in (20, 96, 200, 333, 640, 800)]
        self._chats: list[dict[str, Any]] = []
        self._earlier: list[tuple[str, dict[str, Any]]] = []

    def draw(self) -> tuple[str, dict[str, Any]]:
        kind = self.random.random()
        if kind < 0.15 and self._earlier:
            return self.random.choice(self._earlier)
        if kind < 0.45:
            path, request = "/v1/chat/completions", self._chat()
        else:
            path, request = "/v1/completions", self._completion()
        # Seldom so long that it fills a block alone.
        request["max_tokens"] = self.random.choice((1, 2, 5, 10, 20, 40))
        self._earlier = [*self._earlier[-30:], (path, request)]
        return path, request

    def answered(self, path: str, request: dict[str, Any], text: str) -> None:
        for chat in self._chats:
            if chat["messages"] == request.get("messages"):
                chat["messages"] = [*chat["messages"], {"role": "assistant", "content": text}]
                break

    def _chat(self) -> dict[str, Any]:
        if len(self._chats) < 8 or self.random.random() < 0.1:
            self._chats = [*self._chats[-7:], {**self._names(), "messages": []}]
        chat = self.random.choice(self._chats)
        chat["messages"] = [*chat["messages"], {"role": "user", "content": self._text()}]
        if len(chat["messages"]) > 9:
            self._chats.remove(chat)
        return dict(chat)

    def _completion(self) -> dict[str, Any]:
        prefix = self.random.choice(self._prefixes)
        if self.random.random() < 0.2:  # often a whole number of blocks
            return {**self._names(), "prompt": prefix[: self.random.randint(1, 30) * BLOCK_TOKENS]}
        if self.random.random() < 0.2:
            return {**self._names(), "prompt": self._text()}
        return {**self._names(), "prompt": prefix + self._ids(self.random.randint(1, 1100))}

    def _names(self) -> dict[str, Any]:
        found = {"model": self.random.choice(MODELS)}
        if salt := self.random.choice(SALTS):
            found["cache_salt"] = salt
        return found

    def _ids(self, n: int) -> list[int]:
        return [self.random.randrange(20, 500) for _ in range(n)]

    def _text(self) -> str:
        return " ".join(self.random.choices(WORDS, k=self.random.randint(5, 60)))


@pytest.fixture(scope="module")
def replicas(fleet: Fleet) -> list[Server]:
    return fleet.require(caching=2)


@pytest.fixture
def scene(fleet: Fleet, replicas: list[Server]) -> Iterator[Scene]:
    """Each with a gateway of its own: it finds engines in mid-life."""
    with running(fleet, replicas) as gateway:
        scene = Scene(gateway, replicas)
        try:
            yield scene
        finally:
            scene.close()


def running(fleet: Fleet, replicas: list[Server]) -> Any:
    return headgate_process.running(
        [server.url for server in replicas],
        models={MODEL: {"tokenizer": str(fleet.caching_model)}},
        decision_header=True,
    )


def play(scene: Scene, workload: Workload, requests: int) -> None:
    for _ in range(requests):
        path, request = workload.draw()
        asked = scene.ask(path, request)
        workload.answered(path, request, asked.text)


def test_index_is_what_the_engines_hold(scene: Scene, figure: Note) -> None:
    workload = Workload(7)
    until_ids_are_made(scene)
    for _ in range(RESETS):
        play(scene, workload, REQUESTS // (RESETS + 1))
        scene.check_blocks()
        scene.reset(workload.random.choice(list(scene.oracles)))
    play(scene, workload, REQUESTS // (RESETS + 1))
    scene.check_blocks()

    held = [oracle.held for oracle in scene.oracles.values()]
    # One request at a time: where a replica is warm it gets more of them than the other.
    evicted = [one.evicted for one in held]
    assert min(evicted) > 0
    assert sum(evicted) > CACHING_BLOCKS // 2
    known = [asked for asked in scene.asked if asked.known]
    assert len(known) > 0.8 * len(scene.asked)
    assert {asked.endpoint for asked in known} == set(scene.oracles)
    figure(
        f"KV index: {len(known)} of {len(scene.asked)} requests by token ids, "
        f"{sum(asked.cached > 0 for asked in known)} with hits, none believed wrongly; "
        f"{sum(one.evicted for one in held)} blocks evicted"
    )


def until_ids_are_made(scene: Scene) -> None:
    """An engine tells the size of its blocks with the first of them."""
    prompt = [30] * (BLOCK_TOKENS + 1)

    def are_made() -> bool:
        request = {"model": MODEL, "prompt": prompt, "max_tokens": 1}
        return scene.ask("/v1/completions", request).known

    until(are_made, "prompts are routed by token ids")


def test_a_new_gateway_learns_what_they_hold(scene: Scene) -> None:
    counts = scene.check_blocks()
    assert all(counts.values())
    until_ids_are_made(scene)
    play(scene, Workload(7), 20)
    scene.check_blocks()


def test_conversations_stay_where_they_are_cached(scene: Scene, figure: Note) -> None:
    """The working set fits into both caches together, and not into one."""
    until_ids_are_made(scene)
    for name in scene.oracles:
        scene.reset(name)
    talks = [Talk(number) for number in range(CONVERSATIONS)]
    asyncio.run(talk_all(scene.gateway.url, talks))

    blocks = sum(len(talk.turns[-1].computed) // BLOCK_TOKENS for talk in talks)
    assert CACHING_BLOCKS < blocks < 2 * CACHING_BLOCKS
    best = sum(talk.best() for talk in talks)
    hits = sum(turn.cached for talk in talks for turn in talk.turns)
    work: Counter[str] = Counter()
    for turn in (turn for talk in talks for turn in talk.turns):
        work[turn.endpoint] += len(turn.prompt) - turn.cached
    share = max(work.values()) / sum(work.values())
    late = sum(not turn.known for talk in talks for turn in talk.turns)
    figure(
        f"KV routing: {CONVERSATIONS} conversations of {TURNS} turns, {blocks} blocks of "
        f"{2 * CACHING_BLOCKS}: {hits / best:.3f} of the best possible hits, {share:.0%} of the "
        f"work on one replica, {late} prompts not known by token ids"
    )
    assert hits >= 0.97 * best
    assert share <= 0.65


@dataclass
class Talk:
    number: int
    messages: list[dict[str, str]] = field(default_factory=list)
    turns: list[Asked] = field(default_factory=list)

    async def turn(self, client: httpx.AsyncClient, words: str) -> None:
        self.messages.append({"role": "user", "content": f"{self.number} {words}"})
        path = "/v1/chat/completions"
        request = {"model": MODEL, "messages": self.messages, "max_tokens": 8}
        asked = asked_of(path, await client.post(path, json=body_of(request)))
        self.turns.append(asked)
        self.messages.append({"role": "assistant", "content": asked.text})

    def best(self) -> int:
        """Tokens in whole blocks that each turn can have from the turn before it."""
        found = 0
        for before, after in zip(self.turns, self.turns[1:], strict=False):
            same = 0
            while same < len(after.prompt) - 1 and before.computed[same : same + 1] == [
                after.prompt[same]
            ]:
                same += 1
            found += same // BLOCK_TOKENS * BLOCK_TOKENS
        return found


async def talk_all(url: str, talks: list[Talk]) -> None:
    """In an order by lot, some of them at once."""
    chance = random.Random(11)

    async def some(mine: list[Talk]) -> None:
        order = mine * TURNS
        chance.shuffle(order)
        for talk in order:
            # Something to talk about, then questions.
            size = 40 if talk.turns else 220
            await talk.turn(client, " ".join(chance.choices(WORDS, k=size)))

    async with httpx.AsyncClient(base_url=url, timeout=LIMIT_S) as client:
        await asyncio.gather(*(some(talks[number::AT_ONCE]) for number in range(AT_ONCE)))


def test_an_engine_that_died_holds_nothing(fleet: Fleet, replicas: list[Server]) -> None:
    """Killed, it is forgotten at once; back again, at other ports, it is followed anew."""
    victim = replicas[0]
    name = victim.url.removeprefix("http://")
    with running(fleet, replicas) as gateway:
        scene = Scene(gateway, replicas)
        play(scene, Workload(8), 12)
        assert scene.check_blocks()[name] > 0
        scene.close()
        victim.kill()
        until(lambda: scene.cache(name)["kv_events"]["state"] == "lost", "its death is seen")
        assert scene.cache(name)["known_by"] == "what_was_sent"
        victim.start()
        victim.wait_ready()

        def is_used() -> bool:  # requests go on, for one must be the trial
            request = {"model": MODEL, "prompt": [40], "max_tokens": 1}
            httpx.post(f"{gateway.url}/v1/completions", json=request).raise_for_status()
            return gateway.usable() == len(replicas)

        until(is_used, "it is used again")
        scene = Scene(gateway, replicas)
        try:
            play(scene, Workload(9), 24)
            assert all(scene.check_blocks().values())
            assert any(asked.endpoint == name for asked in scene.asked)
        finally:
            scene.close()
