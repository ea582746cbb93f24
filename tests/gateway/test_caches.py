"""What the control process assumes of caches, and learns of engines, in a real table and index."""

import asyncio
import logging
import struct
from array import array

import pytest
import zmq

from engines.kv_sources import KvSource
from engines.profile import profile_named
from gateway.caches import TEXT_BLOCK_TOKENS, UNKNOWN_TOKENS, Caches
from gateway.config import Engine
from gateway.fleet import Fleet
from gateway.messages import Sent
from router import Adapters, Index, State, Table, make_policy
from router._demand import Demand
from router._router import Router

PROFILE = profile_named("8b-h100")


class House:
    """A table and an index, their keeper, and two endpoints."""

    def __init__(self) -> None:
        self.table = Table(bytearray(Table.size(1)), 1)
        self.index = Index(bytearray(Index.size(100_000)), 100_000)
        self.caches = Caches(self.table, self.index, Adapters(bytearray(Adapters.size())))
        fleet = Fleet(lambda slot: False)
        self.members = [
            fleet.add(Engine(url=f"http://127.0.0.1:{port}"), "config", 0.0) for port in (1, 2)
        ]
        for member in self.members:
            self.caches.open(member, PROFILE)

    def report(self, slot: int, keys: "array[int]", generation: int = 1) -> None:
        head = struct.pack("<2Q", generation << 32 | slot, len(keys))
        self.caches.on_sent(Sent(head + keys.tobytes()))

    def row(self, slot: int) -> dict[str, float]:
        return self.table.profile(slot)

    def is_full(self, slot: int) -> bool:
        """By what it costs to bring something new while hits are common."""
        self.table.set_row(slot, state=State.READY, share=1.0)
        ask = {"n_tokens": 100.0, "hit_ratio": 0.5}
        policy = make_policy("marginal-cost", least_pressure=0.0)
        return policy.explain(self.table, [slot], **ask)[slot]["price"] > 0


def blocks(tokens: int) -> int:
    return tokens // TEXT_BLOCK_TOKENS


def test_what_workers_and_peers_sent_is_assumed_to_be_there() -> None:
    house = House()
    house.report(0, array("Q", [1, 2]))
    house.caches.on_peers_sent(1, array("Q", [2, 3]).tobytes() + b"rest")
    house.caches.on_peers_sent(7, array("Q", [2]).tobytes())  # left meanwhile
    house.report(0, array("Q", [9]), generation=2)
    assert [house.index.holders(key) for key in (1, 2, 3, 9)] == [[0], [0, 1], [1], []]


@pytest.mark.parametrize("leave", ["forget", "close", "open"])
def test_a_dead_or_gone_engine_holds_nothing(leave: str) -> None:
    house = House()
    house.report(0, array("Q", [1, 2]))
    if leave == "open":
        house.caches.open(house.members[0], PROFILE)
    else:
        getattr(house.caches, leave)(0)
        getattr(house.caches, leave)(500)  # nobody
    assert house.index.n_blocks == 0
    house.report(0, array("Q", [1]))
    assert house.index.n_blocks == (0 if leave == "close" else 1)


def test_a_cache_is_as_large_as_its_engine_says() -> None:
    house = House()
    keys = array("Q", range(1, 1001))
    house.report(0, keys)
    house.caches.on_capacity(0, 6400)
    assert house.row(0)["kv_tokens"] == 6400
    assert house.row(0)["base_s"] == PROFILE.base_s
    assert house.index.n_blocks == blocks(6400) == 100
    house.caches.on_capacity(0, 64_000)
    house.report(0, keys)
    assert house.index.n_blocks == 1000
    house.report(1, array("Q", range(1, blocks(UNKNOWN_TOKENS) + 1000)))
    assert house.index.n_blocks == blocks(UNKNOWN_TOKENS)


def test_a_cache_counts_as_full_a_little_before_it_is() -> None:
    house = House()
    house.caches.on_capacity(0, 6400)
    for n, full in ((94, False), (95, True), (100, True)):
        house.report(0, array("Q", range(1, n + 1)))
        house.caches.tick()
        assert house.is_full(0) == full
        assert not house.is_full(1)
    house.caches.forget(0)
    house.caches.tick()
    assert not house.is_full(0)


def test_what_requests_took_is_learned_once_a_tick() -> None:
    house = House()
    house.table.set_row(0, state=State.READY, share=1.0)
    router = Router(house.table, 0, make_policy("round-robin"), None)
    for at in range(100):
        dispatch = router.send(Demand(), [0], array("Q"), 2000, 16, 10.0 * at)
        assert dispatch is not None
        dispatch.first_token(10.0 * at + 5)
        dispatch.release(10.0 * at + 5)
    before = house.row(0)["chunk_token_s"]
    house.caches.tick()
    once = house.row(0)["chunk_token_s"]
    house.caches.tick()
    assert before < once == house.row(0)["chunk_token_s"]
    assert house.row(1)["chunk_token_s"] == PROFILE.chunk_token_s


def test_a_report_that_is_cut_off_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    house = House()
    with caplog.at_level(logging.ERROR):
        house.caches.on_sent(Sent(bytes(12)))
    assert "cut off" in caplog.text


def test_events_are_found_again_where_something_else_had_answered() -> None:
    async def run() -> None:
        house, answered = House(), asyncio.Event()

        async def nonsense(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            # A greeting of ZeroMQ's, and then nothing that makes sense.
            greeting = b"\xff" + 8 * b"\0" + b"\x7f\3\0" + b"NULL".ljust(20, b"\0") + 32 * b"\0"
            writer.write(greeting + 64 * b"\0")
            writer.close()
            answered.set()

        server = await asyncio.start_server(nonsense, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        source = KvSource(f"tcp://127.0.0.1:{port}", "")
        context = zmq.Context()
        try:
            async with asyncio.timeout(20):
                house.caches.follow(house.members[0], source)
                await answered.wait()
                await asyncio.sleep(0.3)
                server.close()
                await server.wait_closed()
                publisher = context.socket(zmq.PUB)
                publisher.bind(source.endpoint)
                await asyncio.sleep(0.3)
                house.caches.follow(house.members[0], source)
                subscription = house.caches.subscription(0)
                assert subscription is not None
                while subscription.is_lost:  # noqa: ASYNC110  (nothing tells of it)
                    await asyncio.sleep(0.01)
        finally:
            house.caches.stop()
            context.destroy(linger=0)

    asyncio.run(run())
