"""The subscriber against a publisher over real sockets, which is lost, mended and replaced."""

import asyncio
import json
import logging
from array import array

import msgspec
import pytest
import zmq

import gateway.kv_replay
import gateway.kv_subscription
from engines._kv_events import KvEvents
from engines.kv_sources import KvSource, parse_kv_source, parse_kv_sources
from gateway.kv_events import KvSubscriber
from gateway.kv_subscription import KvState
from gateway.zmq_reader import ZmqReader
from router._hash import block_hashes
from router._index import Index
from router._reported import ReportedCache
from router.namespace import namespace

SIZE = 4
END = b"\xff" * 8


def tokens_of(name):
    return [name * 100 + at for at in range(SIZE)]


def key_of(name):
    """Of a first block."""
    return block_hashes(namespace("m"), array("I", tokens_of(name)).tobytes(), 4 * SIZE)[0]


def stored(name, parent=None, size=SIZE):
    return {
        "type": "BlockStored",
        "block_hashes": [name],
        "parent_block_hash": parent,
        "token_ids": tokens_of(name) * (size // SIZE),
        "block_size": size,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
    }


def removed(name):
    return {"type": "BlockRemoved", "block_hashes": [name], "medium": "GPU"}


class Publisher:
    """One life of an engine: PUB and replay ROUTER. `topic_frame`: as releases from 0.29 reply."""

    def __init__(self, ports=(0, 0), topic_frame=True, keeps=1000):
        # Ended with this life: only then are the ports free for the next.
        self.context = context = zmq.Context()
        self.topic_frame = topic_frame
        self.keeps = keeps
        self.batches = []
        self.asked = []
        self.answers = True
        self.seq = 0
        self.pub = context.socket(zmq.PUB)
        self.port = self._bind(self.pub, ports[0])
        router = context.socket(zmq.ROUTER)
        self.replay_port = self._bind(router, ports[1])
        self.router = router
        self.reader = ZmqReader(router, self._on_request)

    @staticmethod
    def _bind(socket, port):
        if not port:
            return socket.bind_to_random_port("tcp://127.0.0.1")
        socket.bind(f"tcp://127.0.0.1:{port}")
        return port

    @property
    def ports(self):
        return self.port, self.replay_port

    def source(self, replay=True):
        return KvSource(
            f"tcp://127.0.0.1:{self.port}",
            f"tcp://127.0.0.1:{self.replay_port}" if replay else "",
        )

    def publish(self, *events, lost=False):
        payload = msgspec.msgpack.encode([float(len(self.batches)) + self.seq, list(events), 1])
        self.batches.append((self.seq.to_bytes(8, "big"), payload))
        self.seq += 1
        if not lost:
            self.pub.send_multipart([b"kv@m", *self.batches[-1]])

    def _on_request(self, frames):
        identity, empty, start = frames
        assert empty == b""
        self.asked.append(int.from_bytes(start, "big"))
        if not self.answers:
            return
        topic = [b"kv@m"] if self.topic_frame else []
        for seq, payload in self.batches[-self.keeps :]:
            if seq >= start:
                self.router.send_multipart([identity, b"", *topic, seq, payload])
        end = [b""] if self.topic_frame else []
        self.router.send_multipart([identity, b"", *end, END, b""])

    def close(self):
        self.reader.close()
        self.context.destroy(linger=0)


class House:
    """A publisher, a subscriber, and the cache that it fills."""

    def __init__(self, replay=True, **options):
        self.publisher = Publisher(**options)
        index = Index(bytearray(Index.size(256, 8)), 256, 8)
        self.events = KvEvents("m", ReportedCache(index, 0))
        self.states = []
        self.subscriber = KvSubscriber()
        self.subscription = self.subscriber.add(
            "pod-1", self.publisher.source(replay), self.events, self._on_change
        )

    def _on_change(self, subscription):
        self.states.append(subscription.state)

    async def until(self, state, *names):
        """Wait until it says so, and knows exactly these first blocks."""
        keys = {key_of(name) for name in names}
        try:
            async with asyncio.timeout(10):
                while not self.knows(state, keys):  # noqa: ASYNC110  (nothing tells of batches)
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(
                f"{self.subscription!r}: {self.subscription.reason}; "
                f"{len(self.events.cache.keys())} blocks, wanted {state} and {len(keys)}"
            ) from None

    def knows(self, state, keys):
        return self.subscription.state is state and self.events.cache.keys() == keys

    async def connected(self):
        """Wait until what is published arrives: subscribing takes a moment on the other side."""
        await self.until(KvState.LIVE)
        await asyncio.sleep(0.1)

    def replace(self, **options):
        """The engine has died, and another has come up on the same ports."""
        ports = self.publisher.ports
        self.publisher.close()
        self.publisher = Publisher(ports, **options)

    def close(self):
        self.subscriber.close()
        self.publisher.close()


def in_house(**options):
    """Run a test in a loop, with a House."""

    def decorate(test):
        def run():
            async def main():
                house = House(**options)
                try:
                    await test(house)
                finally:
                    house.close()

            asyncio.run(main())

        run.__name__ = test.__name__
        return run

    return decorate


@pytest.fixture(autouse=True)
def _hasty(monkeypatch):
    monkeypatch.setattr(gateway.kv_replay, "SILENCE_S", 0.4)
    monkeypatch.setattr(gateway.kv_subscription, "RECONNECT_MS", 20)
    monkeypatch.setattr(gateway.kv_subscription, "RECONNECT_MAX_MS", 100)


@in_house()
async def test_batches_arrive_and_are_counted(house):
    await house.connected()
    house.publisher.publish(stored(1), stored(2))
    house.publisher.publish(removed(2))
    await house.until(KvState.LIVE, 1)
    subscription = house.subscription
    assert subscription.rank == 1
    assert (subscription.n_live, subscription.n_gaps, subscription.n_replays) == (2, 0, 1)
    assert (house.events.n_stored, house.events.n_removed) == (2, 1)
    assert house.states == [KvState.REPLAYING, KvState.LIVE]


@pytest.mark.parametrize("topic_frame", [True, False])
def test_what_happened_before_is_replayed(topic_frame):
    async def main():
        house = House(topic_frame=topic_frame)
        try:
            house.publisher.publish(stored(1), stored(2))
            house.publisher.publish(removed(1))
            await house.until(KvState.LIVE, 2)
            assert house.publisher.asked == [0]
        finally:
            house.close()

    asyncio.run(main())


@pytest.mark.parametrize("topic_frame", [True, False])
def test_a_gap_is_filled(topic_frame):
    async def main():
        house = House(topic_frame=topic_frame)
        try:
            await house.connected()
            house.publisher.publish(stored(1))
            house.publisher.publish(stored(2), lost=True)
            house.publisher.publish(removed(1), lost=True)
            house.publisher.publish(stored(3))
            house.publisher.publish(stored(4))
            await house.until(KvState.LIVE, 2, 3, 4)
            assert house.subscription.n_gaps == 1
            assert house.subscription.n_clears == 0
            assert house.publisher.asked[-1] == 1
        finally:
            house.close()

    asyncio.run(main())


@in_house(keeps=2)
async def test_a_gap_that_is_not_covered_costs_what_was_known(house):
    await house.connected()
    house.publisher.publish(stored(1))
    await house.until(KvState.LIVE, 1)
    for name in (2, 3, 4):
        house.publisher.publish(stored(name), lost=True)
    house.publisher.publish(stored(5))
    await house.until(KvState.REBUILDING, 4, 5)
    assert "gone" in house.subscription.reason
    assert house.subscription.n_clears == 1
    house.publisher.publish({"type": "AllBlocksCleared"}, stored(6))
    await house.until(KvState.LIVE, 6)


def test_without_replay_it_says_once_that_it_rebuilds(caplog):
    @in_house(replay=False)
    async def run(house):
        await asyncio.sleep(0.3)
        house.publisher.publish(stored(1))
        await house.until(KvState.LIVE, 1)
        for name in (2, 3, 4):
            house.publisher.publish(stored(name + 10), lost=True)
            house.publisher.publish(stored(name))
            await house.until(KvState.REBUILDING, name)
        assert house.subscription.n_gaps == 3

    with caplog.at_level(logging.INFO, "headgate.kv"):
        run()
    told = [record.message for record in caplog.records if "-> rebuilding" in record.message]
    assert len(told) == 2  # before the first batch, and at the first gap
    assert "pod-1: KV events: live -> rebuilding (1 batches were lost" in told[1]


@in_house()
async def test_a_replay_that_is_not_answered(house):
    await house.connected()
    house.publisher.publish(stored(1))
    await house.until(KvState.LIVE, 1)
    house.publisher.answers = False
    house.publisher.publish(stored(2), lost=True)
    house.publisher.publish(stored(3))
    await house.until(KvState.REPLAYING, 1)
    await house.until(KvState.REBUILDING, 3)
    assert "silent" in house.subscription.reason


@in_house()
async def test_an_engine_that_dies_and_comes_back(house):
    await house.connected()
    house.publisher.publish(stored(1))
    await house.until(KvState.LIVE, 1)
    ports = house.publisher.ports
    house.publisher.close()
    await house.until(KvState.LOST)
    assert house.subscription.reason == "connection lost"
    house.publisher = Publisher(ports)
    house.publisher.publish(stored(2))
    await house.until(KvState.LIVE, 2)
    assert house.subscription.n_connects == 2
    house.replace()
    await house.until(KvState.LIVE)
    house.publisher.publish(stored(3))
    await house.until(KvState.LIVE, 3)


@in_house()
async def test_a_restart_behind_a_proxy(house):
    await house.connected()
    for name in (1, 2, 3):
        house.publisher.publish(stored(name))
    await house.until(KvState.LIVE, 1, 2, 3)
    house.publisher.batches.clear()
    house.publisher.seq = 0
    later = {"type": "BlockStored", **stored(9)}
    payload = msgspec.msgpack.encode([100.0, [later], 1])
    house.publisher.pub.send_multipart([b"kv@m", bytes(8), payload])
    await house.until(KvState.LIVE, 9)
    assert house.subscription.sequence.n_restarts == 1


@in_house()
async def test_orphans_put_it_in_doubt(house):
    await house.connected()
    house.publisher.publish(stored(1), stored(2, parent=77))
    await house.until(KvState.REBUILDING, 1)
    assert house.subscription.n_orphans == 1


@in_house()
async def test_what_cannot_be_read(house):
    await house.connected()
    house.publisher.publish(stored(1))
    house.publisher.publish(stored(2, size=8))
    await house.until(KvState.REBUILDING)
    assert "8 tokens after one of 4" in house.subscription.reason
    assert house.subscription.n_faults == 1
    house.publisher.pub.send_multipart([b"kv@m", b"no number", b""])
    house.publisher.publish({"type": "AllBlocksCleared"}, stored(3))
    await house.until(KvState.LIVE, 3)
    assert house.subscription.n_faults == 2


@in_house()
async def test_a_new_generation_begins_from_nothing(house):
    await house.connected()
    house.publisher.publish(stored(1))
    await house.until(KvState.LIVE, 1)
    other = Publisher()
    try:
        other.publish(stored(2))
        house.subscription.restart("moved", other.source())
        assert house.subscription.state is KvState.LOST
        assert house.events.cache.keys() == set()
        await house.until(KvState.LIVE, 2)
        with pytest.raises(ValueError, match="tcp://nowhere"):
            house.subscription.restart("moved", KvSource("tcp://nowhere"))
        assert house.subscription.state is KvState.LOST
    finally:
        other.close()


@in_house()
async def test_silence_of_an_engine_that_has_nothing_to_tell(house):
    await house.connected()
    house.publisher.publish(stored(1))
    await house.until(KvState.LIVE, 1)
    subscription = house.subscription
    for at_s in (0, 5, 11):
        subscription.on_progress(10000.0 * at_s, at_s)
    await house.until(KvState.REPLAYING, 1)
    await house.until(KvState.LIVE, 1)
    assert subscription.n_clears == 0


@in_house()
async def test_silence_of_a_connection_that_brings_nothing(house):
    await house.connected()
    house.publisher.publish(stored(1))
    await house.until(KvState.LIVE, 1)
    house.publisher.publish(stored(2), lost=True)
    for at_s in (0, 11):
        house.subscription.on_progress(10000.0 * at_s, at_s)
    await house.until(KvState.LIVE, 1, 2)
    await asyncio.sleep(0.3)
    await house.until(KvState.LIVE, 1, 2)
    assert KvState.LOST in house.states
    assert house.subscription.n_connects == 2


@pytest.mark.parametrize("replay", [True, False])
def test_silence_that_cannot_be_explained(replay):
    async def main():
        house = House(replay=replay)
        try:
            await (house.connected() if replay else asyncio.sleep(0.3))
            house.publisher.publish(stored(1))
            await house.until(KvState.LIVE, 1)
            house.publisher.answers = False
            for at_s in (0, 11):
                house.subscription.on_progress(10000.0 * at_s, at_s)
            await house.until(KvState.LOST)
            assert "silent" in house.subscription.reason
            house.publisher.answers = True
            house.publisher.publish(stored(2))
            if replay:
                await house.until(KvState.LIVE, 1, 2)
            else:
                await house.until(KvState.REBUILDING, 2)
        finally:
            house.close()

    asyncio.run(main())


@in_house()
async def test_many_batches_at_once(house):
    await house.connected()
    for name in range(1, 2000):
        house.publisher.publish(stored(name % 50 + 1))
        house.publisher.publish(removed(name % 50 + 1))
    house.publisher.publish(stored(7))
    await house.until(KvState.LIVE, 7)


@in_house()
async def test_closing_leaves_nothing(house):
    await house.connected()
    house.publisher.publish(stored(1))
    await house.until(KvState.LIVE, 1)
    house.subscriber.remove(house.subscription)
    assert house.subscription.state is KvState.LOST
    assert house.events.cache.keys() == set()
    house.publisher.publish(stored(2))
    await asyncio.sleep(0.05)
    assert house.events.cache.keys() == set()
    with pytest.raises(ValueError, match="tcp://nowhere"):
        house.subscriber.add("x", KvSource("tcp://nowhere"), house.events)


@in_house()
async def test_what_is_closed_does_not_begin_again(house):
    await house.connected()
    house.publisher.publish(stored(1))
    await house.until(KvState.LIVE, 1)
    house.publisher.publish(stored(2), lost=True)
    for at_s in (0, 11):
        house.subscription.on_progress(10000.0 * at_s, at_s)
    connects = house.subscription.n_connects
    house.subscriber.remove(house.subscription)
    house.subscription.restart("batches are published but do not arrive")
    await asyncio.sleep(0.3)
    assert house.subscription.n_connects == connects
    assert house.events.cache.keys() == set()


def test_a_message_that_nobody_can_take_does_not_stop_the_rest(caplog):
    taken = []

    def take(frames):
        taken.append(frames)
        if len(taken) == 1:
            raise RuntimeError("a bug")

    async def main():
        context = zmq.Context()
        reader = ZmqReader(context.socket(zmq.PAIR), take)
        try:
            other = context.socket(zmq.PAIR)
            reader._socket.bind("inproc://pair")
            other.connect("inproc://pair")
            for at in range(200):
                other.send(b"%d" % at)
            await asyncio.sleep(0.05)
            reader.send((b"back",))
            assert other.recv() == b"back"
        finally:
            reader.close()
            reader.close()
            context.destroy(linger=0)

    asyncio.run(main())
    assert taken == [[b"%d" % at] for at in range(200)]
    assert "a bug" in caplog.text


# -- where events are published


def ranks(**ranks):
    return json.dumps({rank.removeprefix("r"): entry for rank, entry in ranks.items()})


def test_sources_as_vllm_tells_them():
    first = {
        "enable_kv_cache_events": True,
        "publisher": "zmq",
        "endpoint": "tcp://*:5557",
        "replay_endpoint": "tcp://*:5657",
        "topic": "kv@tiny",
    }
    second = {"endpoint": "tcp://0.0.0.0:5558", "replay_endpoint": None, "topic": ""}
    found = parse_kv_sources(ranks(r1=second, r0=first), "10.0.0.7")
    assert found == [
        KvSource("tcp://10.0.0.7:5557", "tcp://10.0.0.7:5657", "", 0),
        KvSource("tcp://10.0.0.7:5558", "", "", 1),
    ]
    (six,) = parse_kv_sources(ranks(r0=first), "fd00::7")
    assert six.endpoint == "tcp://[fd00::7]:5557"
    assert parse_kv_sources("{}", "10.0.0.7") == []
    off = {"enable_kv_cache_events": False, "endpoint": "tcp://*:5557"}
    assert parse_kv_sources(ranks(r0=off), "10.0.0.7") == []


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "[" * 100000,
        '{"a": {}}',
        '{"0": 1}',
        '{"0": {}}',
        '{"0": {"endpoint": 1}}',
        '{"0": {"endpoint": "tcp://*:5557", "replay_endpoint": 1}}',
        '{"0": {"endpoint": "ipc:///tmp/x"}}',
        '{"0": {"endpoint": "tcp://*:0"}}',
        '{"0": {"endpoint": "tcp://*:x"}}',
        '{"0": {"endpoint": "tcp://:1"}}',
        "\x00",
    ],
)
def test_what_is_no_list_of_sources(body):
    with pytest.raises(ValueError, match=r"."):
        parse_kv_sources(body, "10.0.0.7")


def test_configured_sources():
    assert parse_kv_source("tcp://pod-1:5557") == KvSource("tcp://pod-1:5557")
    assert parse_kv_source("tcp://127.0.0.1:5557?replay=5657&rank=2", "10.0.0.7") == KvSource(
        "tcp://127.0.0.1:5557", "tcp://127.0.0.1:5657", "", 2
    )
    assert parse_kv_source("tcp://*:5557?replay=1", "::1").replay_endpoint == "tcp://[::1]:1"
    for text in ("pod-1", "tcp://pod-1", "tcp://a:1?x=1", "tcp://a:1?replay=0", "tcp://*:1"):
        with pytest.raises(ValueError, match=r"."):
            parse_kv_source(text)
