"""KV events of a simulated engine, as vLLM 0.32 has them on the wire."""

import asyncio
from pathlib import Path

import msgspec
import pytest
import zmq

from engines.sim import SimConfig

END = b"\xff" * 8
PUBLISHING = {
    "kv_events": "tcp://127.0.0.1:0",
    "kv_replay": "tcp://127.0.0.1:0",
    "block_size": 4,
    "adapters": ("ad1",),
    "kv_tokens": 400,
}
CAPTURE = Path(__file__).parent.parent / "captures" / "kv_events_uint64.hex"


async def replay(engine, start=0):
    """All batches from one on, and the frames as they came."""
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    try:
        dealer.connect(engine.kv.replay_endpoint)
        dealer.send_multipart([b"", start.to_bytes(8, "big")])
        found = []
        async with asyncio.timeout(10):
            while not found or found[-1][2] != END:
                if dealer.poll(0):
                    found.append(dealer.recv_multipart())
                else:
                    await asyncio.sleep(0.002)
        return found
    finally:
        context.destroy(linger=0)


async def ask(client, prompt, **fields):
    body = {"model": "sim", "prompt": prompt, "max_tokens": 1, **fields}
    response = await client.post("/v1/completions", json=body)
    assert response.status_code == 200
    return response


def batches(frames):
    return [msgspec.msgpack.decode(payload) for *_, payload in frames[:-1]]


def test_they_look_like_the_real_ones(sim):
    async def scenario(engine, client):
        await ask(client, list(range(12)))
        await ask(client, list(range(12)), cache_salt="x")
        await ask(client, list(range(12)), model="ad1")
        return await replay(engine), (await client.get("/kv_event_sources")).json(), engine.kv

    frames, sources, kv = sim(scenario, **PUBLISHING)
    assert [len(frame) for frame in frames] == [4, 4, 4, 4]
    assert frames[-1] == [b"", b"", END, b""]
    assert [frame[1] for frame in frames[:3]] == [b"kv@sim"] * 3
    assert [int.from_bytes(frame[2], "big") for frame in frames[:3]] == [0, 1, 2]
    real = msgspec.msgpack.decode(bytes.fromhex(CAPTURE.read_text().split()[0]))
    for ts, events, rank in batches(frames):
        assert isinstance(ts, float)
        assert rank == 0
        (event,) = events
        assert list(event) == list(real[1][0])
        assert event["token_ids"] == list(range(12))
        assert len(event["block_hashes"]) == 3
        assert (event["medium"], event["block_size"]) == ("GPU", 4)
        assert event["parent_block_hash"] is None
    plain, salted, adapted = (batch[1][0] for batch in batches(frames))
    assert plain["extra_keys"] == [None] * 3
    assert salted["extra_keys"] == [["x"], None, None]
    assert adapted["extra_keys"] == [["ad1"]] * 3
    assert (adapted["lora_id"], adapted["lora_name"]) == (1, "ad1")
    assert sources["0"]["endpoint"] == kv.endpoint
    assert sources["0"]["replay_endpoint"] == kv.replay_endpoint
    assert sources["0"]["topic"] == "kv@sim"


def test_removals_and_clears(sim):
    async def scenario(engine, client):
        for at in range(8):
            await ask(client, list(range(100 * at, 100 * at + 80)))
        assert (await client.post("/reset_prefix_cache")).json() == {"success": True}
        before = await replay(engine)
        await ask(client, [1, 2, 3, 4])
        return before, await replay(engine, len(before) - 1)

    before, after = sim(scenario, **PUBLISHING)
    events = [event for batch in batches(before) for event in batch[1]]
    removals = [event for event in events if event["type"] == "BlockRemoved"]
    assert len(removals) > 20
    assert all(list(event) == ["type", "block_hashes", "medium", "group_idx"] for event in removals)
    assert all(len(event["block_hashes"]) == 1 for event in removals)
    # The clear leaves with the next step.
    assert "AllBlocksCleared" not in {event["type"] for event in events}
    (batch,) = batches(after)
    assert batch[1][0] == {"type": "AllBlocksCleared"}
    assert batch[1][1]["type"] == "BlockStored"


def test_another_life_begins_at_zero_on_the_same_ports(sim):
    async def scenario(engine, client):
        await ask(client, list(range(8)))
        first = engine.kv
        engine.fault("sigterm_quit")
        assert engine.kv is None
        engine.heal()
        assert engine.kv is not first
        assert (engine.kv.endpoint, engine.kv.replay_endpoint) == (
            first.endpoint,
            first.replay_endpoint,
        )
        return await replay(engine)

    assert len(sim(scenario, **PUBLISHING)) == 1


def test_without_it_nothing_is_published(sim):
    async def scenario(engine, client):
        assert engine.kv is None
        return (await client.get("/kv_event_sources")).json()

    assert sim(scenario) == {}


@pytest.mark.parametrize(
    "options",
    [
        {"kv_replay": "tcp://*:5557"},
        {"kv_events": "5557"},
        {"kv_events": "ipc:///tmp/x"},
        {"kv_events": "tcp://*:port"},
    ],
)
def test_addresses_are_checked(options):
    with pytest.raises(ValueError, match=r"kv_replay without|no tcp://"):
        SimConfig(**options)


def test_a_taken_address_is_told(sim):
    async def scenario(engine, client):
        taken = engine.kv.endpoint
        with pytest.raises(OSError, match="KV events cannot be published"):
            type(engine.kv)(taken, "", "", 4)

    sim(scenario, **PUBLISHING)
