"""Sharers over a real Redis: what they agree on, and what becomes of it when things break."""

import asyncio
import logging
import os
import random
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from gateway.bus import RedisBus, endpoint_hash
from gateway.bus.frame import Beat, Sender, encode

PROCESS = Path(__file__).parent / "sharing_process.py"


def start_process(world, name, in_flight):
    command = [sys.executable, PROCESS, world.server.url, name, str(in_flight), *world.ENDPOINTS]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline() == "up\n"
    return process


def end(process):
    process.kill()
    process.wait()
    process.stdout.close()


def shake(gateway, rng):
    """Some workers' load changes."""
    for n in range(len(gateway.places)):
        for worker in range(gateway.table.n_workers - 1):
            if rng.random() < 0.5:
                n_prompts = rng.choice((0, 0, 1, 3))
                gateway.put(
                    n,
                    n_prompts + rng.randrange(5),
                    n_prompts,
                    n_prompts * rng.random(),
                    n_prompts * 100,
                    rng.randrange(1000),
                    worker,
                )


@pytest.mark.parametrize("n", [2, 3])
def test_what_one_puts_there_the_others_see(world, n):
    async def test(world):
        rng = random.Random(n)
        gateways = [world.gateway(f"g{k}", shift=10 * k) for k in range(n)]
        await world.until(lambda: all(len(g.bus.peers) == n - 1 for g in gateways))
        for _ in range(20):
            for gateway in gateways:
                shake(gateway, rng)
            await world.until(lambda: world.agree(*gateways), 2.0)
        assert all(g.bus.peers.gaps == g.bus.state.malformed == 0 for g in gateways)
        assert all(g.sharer.n_gateways() == n for g in gateways)
        assert all(g.sharer.scale(time.monotonic()) == 1.0 for g in gateways)
        await asyncio.sleep(0.3)
        assert all(g.sharer.doubt_s(time.monotonic()) < 0.25 for g in gateways)

    world.run(test)


def test_a_change_is_there_within_50_ms(world):
    async def test(world):
        one, two = world.gateway("one"), world.gateway("two")
        await world.until(lambda: len(one.bus.peers) == len(two.bus.peers) == 1)
        took = []
        for k in range(1, 30):
            one.put(0, k)
            took.append(await world.until(lambda k=k: two.peers(0)[0] == k, 1.0))
            await asyncio.sleep(0.013)
        assert sorted(took)[len(took) // 2] < 0.05

    world.run(test)


def test_silence_when_nothing_changes(world):
    async def test(world):
        one, two = world.gateway("one"), world.gateway("two")
        await world.until(lambda: world.agree(one, two) and one.bus.peers)
        before, before_s = two.bus.state.messages_in, time.monotonic()
        await asyncio.sleep(1.0)
        rate = (two.bus.state.messages_in - before) / (time.monotonic() - before_s)
        assert 5 <= rate <= 11

    world.run(test)


def test_a_newcomer_reads_what_was_said_before(world):
    async def test(world):
        one = world.gateway("one")
        for n in range(8):
            one.put(n, n + 1, kv=100)
            await asyncio.sleep(0.05)
        two = world.gateway("two")
        await world.until(lambda: world.agree(one, two) and len(two.bus.peers), 2.0)
        assert two.bus.state.vectors_in >= 1
        assert two.bus.peers.gaps == 0

    world.run(test)


def test_a_killed_gateways_load_vanishes_within_3_s(world):
    async def test(world):
        one = world.gateway("one")
        process = start_process(world, "two", 5)
        try:
            await world.until(lambda: one.peers(0)[0] == 5)
            process.send_signal(signal.SIGKILL)
            took_s = await world.until(lambda: one.peers(0)[0] == 0)
            assert 2.0 < took_s < 3.1
            assert len(one.bus.peers) == 0
        finally:
            end(process)

    world.run(test)


def test_a_restart_replaces_its_own_load_at_once(world):
    async def test(world):
        one = world.gateway("one")
        first = start_process(world, "two", 5)
        try:
            await world.until(lambda: one.peers(0)[0] == 5)
            first.kill()
            second = start_process(world, "two", 2)
            try:
                seen = set()

                def is_new():
                    seen.add(one.peers(0)[0])
                    return one.peers(0)[0] == 2

                await world.until(is_new, 2.5)
                await asyncio.sleep(0.5)
                assert seen <= {5, 0, 2}
                assert len(one.bus.peers) == 1
            finally:
                end(second)
        finally:
            end(first)

    world.run(test)


def test_redis_killed_and_back(world):
    async def test(world):
        rng = random.Random(7)
        gateways = [world.gateway(name) for name in "abc"]
        for gateway in gateways:
            shake(gateway, rng)
        await world.until(lambda: world.agree(*gateways))
        await world.until(lambda: all(g.sharer.n_gateways() == 3 for g in gateways))
        world.server.kill()
        await world.until(lambda: not any(g.bus.state.connected for g in gateways), 2.0)
        assert all(g.sharer.scale(time.monotonic()) == 1.0 for g in gateways)
        took_s = await world.until(
            lambda: all(g.peers(n)[0] == 0 for g in gateways for n in range(8))
        )
        assert took_s < 3.1
        now_s = time.monotonic()
        for gateway in gateways:
            assert gateway.sharer.scale(now_s) == 3.0
            assert gateway.sharer.doubt_s(now_s) > 1.0
            assert gateway.bus.state.why
            shake(gateway, rng)
        world.server.start()
        took_s = await world.until(lambda: world.agree(*gateways))
        assert took_s < 3.0
        now_s = time.monotonic()
        assert all(g.sharer.scale(now_s) == 1.0 for g in gateways)
        assert max(g.slowest_s for g in gateways) < 0.1

    world.run(test)


def test_redis_stopped_and_continued(world):
    async def test(world):
        rng = random.Random(8)
        gateways = [world.gateway(name) for name in "ab"]
        for gateway in gateways:
            shake(gateway, rng)
        await world.until(lambda: world.agree(*gateways))
        world.server.signal(signal.SIGSTOP)
        await world.until(lambda: not any(g.bus.state.connected for g in gateways), 3.0)
        for _ in range(100):
            for gateway in gateways:
                shake(gateway, rng)
                for n in range(8):
                    gateway.sharer.insert(n, bytes(8 * 100))
            await asyncio.sleep(0.02)
        await world.until(lambda: all(len(g.bus.peers) == 0 for g in gateways), 3.0)
        assert all(g.sharer.scale(time.monotonic()) == 2.0 for g in gateways)
        assert all(g.bus.state.dropped_blocks > 0 for g in gateways)
        world.server.signal(signal.SIGCONT)
        await world.until(lambda: all(g.bus.state.connected for g in gateways), 5.0)
        await world.until(lambda: world.agree(*gateways), 3.0)
        assert max(g.slowest_s for g in gateways) < 0.1

    world.run(test)


def test_a_network_that_swallows_everything(world):
    async def test(world):
        rng = random.Random(9)
        wire = await world.wire()
        cut, one, two = world.gateway("cut", wire.url), world.gateway("one"), world.gateway("two")
        for gateway in (cut, one, two):
            shake(gateway, rng)
        await world.until(lambda: world.agree(cut, one, two))
        wire.is_cut = True
        took_s = await world.until(lambda: not cut.bus.state.connected)
        assert took_s < 1.7
        await world.until(lambda: world.agree(one, two) and len(cut.bus.peers) == 0, 4.0)
        assert one.bus.state.connected
        assert one.sharer.scale(time.monotonic()) == 1.0
        assert cut.sharer.scale(time.monotonic()) == 3.0
        assert cut.sharer.n_gateways() == 3
        await world.until(lambda: one.sharer.n_gateways() == 2)
        shake(one, rng)
        shake(cut, rng)
        wire.is_cut = False
        await world.until(lambda: world.agree(cut, one, two), 6.0)

    world.run(test)


def test_no_redis_at_all_from_the_start(world, caplog):
    async def test(world):
        world.server.kill()
        caplog.set_level(logging.WARNING)
        alone, told = world.gateway("alone"), world.gateway("told", gateways=4)
        await asyncio.sleep(1.0)
        now_s = time.monotonic()
        assert (alone.sharer.scale(now_s), told.sharer.scale(now_s)) == (1.0, 4.0)
        assert told.sharer.doubt_s(now_s) > 0.9
        assert told.slowest_s < 0.1
        # the same trouble is told once, not with each attempt
        assert len([r for r in caplog.records if "cannot be used" in r.message]) == 2
        world.server.start()
        alone.put(3, 4)
        await world.until(lambda: told.peers(3)[0] == 4)
        assert told.sharer.scale(time.monotonic()) == 1.0

    world.run(test)


def test_inserts_reach_the_same_endpoint_in_its_slot(world):
    async def test(world):
        one, two = world.gateway("one"), world.gateway("two", shift=100)
        await world.until(lambda: len(one.bus.peers) == len(two.bus.peers) == 1)
        await world.until(lambda: two.bus.state.connected)
        blocks = struct.pack("<3Q", 1, 2**64 - 1, 3)
        one.sharer.insert(2, blocks)
        one.sharer.insert(999, blocks)
        await world.until(lambda: two.inserts)
        await asyncio.sleep(0.1)
        assert two.inserts == [(102, blocks)]
        assert one.inserts == []

    world.run(test)


def test_an_endpoint_that_goes_takes_its_peers_load_along(world):
    async def test(world):
        one, two = world.gateway("one"), world.gateway("two")
        two.put(0, 3)
        two.put(1, 4)
        await world.until(lambda: (one.peers(0)[0], one.peers(1)[0]) == (3, 4))
        first, second = (endpoint_hash(e) for e in world.ENDPOINTS[:2])
        one.places = {second: 0, 77: 1}
        await world.until(lambda: (one.peers(0)[0], one.peers(1)[0]) == (4, 0), 1.0)
        one.places = {first: 2, second: 0}
        await world.until(lambda: one.peers(2)[0] == 3, 1.0)
        # and its own, in the others' eyes
        one.put(2, 9)
        await world.until(lambda: two.peers(0)[0] == 9, 1.0)
        one.places = {second: 0}
        await world.until(lambda: two.peers(0)[0] == 0, 1.0)

    world.run(test)


def test_what_is_no_message_is_counted_and_told_once_a_minute(world, caplog):
    async def test(world):
        import redis.asyncio

        one, two = world.gateway("one"), world.gateway("two")
        await world.until(lambda: len(one.bus.peers) == len(two.bus.peers) == 1)
        client = redis.asyncio.Redis.from_url(world.server.url)
        good = encode(Beat(Sender("odd", 1, 2), 0))
        for frame in (b"", b"\x01", b"\x00" * 100, b"\x02" + good[1:], good[:-1]):
            await client.publish("headgate:load:0", frame)
        await client.set("headgate:load:0:odd", b"\x01rubbish")
        await client.publish("headgate:load:0", encode(Beat(Sender("odd", 1, 2), 5)))
        await world.until(lambda: one.bus.state.malformed >= 4, 2.0)
        await client.aclose()
        assert one.bus.state.other_versions == 2
        assert sum("messages ignored" in r.message for r in caplog.records) == 2  # one each
        one.put(0, 6)
        await world.until(lambda: two.peers(0)[0] == 6)

    world.run(test)


def test_two_of_one_name_are_told(world, caplog):
    async def test(world):
        one, two = world.gateway("same"), world.gateway("same")
        await world.until(lambda: one.bus.peers.namesakes and two.bus.peers.namesakes)
        assert "goes by our name, same" in caplog.text

    world.run(test)


def test_a_password_is_asked_for_and_never_told(world, caplog):
    async def test(world):
        world.server.kill()
        world.server.start("--requirepass", "s3cret")
        without = world.gateway("without")
        url = world.server.url.replace("://", "://:wr0ng@")
        wrong, right = (
            world.gateway("wrong", url),
            world.gateway("r", url.replace("wr0ng", "s3cret")),
        )
        await world.until(lambda: right.bus.state.connected)
        await world.until(lambda: without.bus.state.why and wrong.bus.state.why)
        assert not without.bus.state.connected
        assert not wrong.bus.state.connected
        told = repr([g.bus.state.describe(g.bus.peers, 0.0) for g in (without, wrong, right)])
        assert "127.0.0.1" in told
        for text in (told, caplog.text):
            assert "s3cret" not in text
            assert "wr0ng" not in text

    world.run(test)


def test_the_description_is_plain_data(world):
    async def test(world):
        one, two = world.gateway("one"), world.gateway("two")
        two.put(0, 2)
        await world.until(lambda: one.peers(0)[0] == 2)
        told = one.bus.state.describe(one.bus.peers, time.monotonic())
        assert msgspec.json.decode(msgspec.json.encode(told)) == told
        assert told["connected"]
        assert told["why"] == ""
        (peer,) = told["peers"]
        assert (peer["name"], peer["in_flight"], peer["complete"]) == ("two", 2, True)
        assert peer["age_s"] < 0.5

    world.run(test)


def test_a_closed_bus_leaves_nothing_behind(world):
    async def test(world):
        one = RedisBus(world.server.url, "one")
        one.share({}, time.monotonic())
        await asyncio.sleep(0.1)
        await one.close()
        await one.close()
        assert len(asyncio.all_tasks()) == 1

    world.run(test)
