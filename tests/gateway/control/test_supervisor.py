"""Data workers as real processes: fed, lost, replaced, drained."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import time

import pytest
import uvloop

from gateway import supervisor as module
from gateway._shared import Area, Count, Shared
from gateway.listener import open_listeners
from gateway.messages import Condemn, Fleet, Settings
from gateway.reasons import Reason
from gateway.supervisor import Supervisor


def fleet_of(models_json):
    return Fleet([], [], {}, [], False, Settings(), models_json)


class House:
    def __init__(self, n_workers):
        self.shared = Shared.create(n_workers)
        self.listeners = open_listeners("127.0.0.1", 0, n_workers, 16)
        self.port = self.listeners[0].getsockname()[1]
        self.lines = []
        self.supervisor = Supervisor(
            self.shared,
            self.listeners,
            [],
            on_access=lambda access: self.lines.extend(access.lines),
            module="tests.gateway.control.dummy_worker",
        )

    @property
    def workers(self):
        return self.supervisor.workers

    async def ask(self, worker):
        """What a worker has heard; the kernel chooses who answers, so ask until it is this one."""
        for _ in range(200):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            _, _, body = (await reader.read()).partition(b"\r\n\r\n")
            writer.close()
            await writer.wait_closed()
            heard = json.loads(body)
            if heard["index"] == worker.index:
                return heard
        raise AssertionError("the kernel never chose it")


@pytest.fixture
def scene(monkeypatch, until):
    monkeypatch.setattr(module, "RESPAWN_S", 0.05)

    def run(play, n_workers=2, behaviour=None):
        if behaviour is not None:
            monkeypatch.setenv("HEADGATE_TEST_WORKER", behaviour)

        async def inside():
            house = House(n_workers)
            house.supervisor.start(fleet_of(b"1"))
            try:
                if behaviour is None:
                    await until(lambda: house.supervisor.ready_count == n_workers, 20)
                await play(house)
            finally:
                await house.supervisor.drain(0, 0)
            assert all(worker.process is None for worker in house.workers)

        uvloop.run(inside())

    return run


def test_workers_get_the_newest_fleet_and_each_other_s_responses(scene, until):
    async def play(house):
        heard = await house.ask(house.workers[0])
        assert heard["fleet"]["models_json"] == "MQ=="
        house.supervisor.broadcast(fleet_of(b"2"))
        house.supervisor.send(Condemn(1, 2, "x", hung=True))
        await asyncio.sleep(0.1)
        for worker in house.workers:
            heard = await house.ask(worker)
            assert heard["fleet"]["models_json"] == "Mg=="
            assert heard["condemned"] == [
                {"type": "condemn", "slot": 1, "generation": 2, "why": "x", "hung": True}
            ]
        made = [(await house.ask(worker)).get("made") for worker in house.workers]
        assert made != [None, None]
        assert made[0] != "resp_0"
        assert made[1] != "resp_1"
        assert sorted(house.lines) == [b'{"worker":0}', b'{"worker":1}']

    scene(play)


def test_a_killed_worker_is_replaced_and_its_account_settled(scene, until, pen):
    async def play(house):
        worker = house.workers[1]
        words = pen(house.shared).words[1]
        words[Count.ACCEPTED], words[Count.COMPLETED] = 5, 2
        words[Count.DISPATCHED], words[Count.BUFFERED_BYTES] = 4, 99
        house.supervisor.broadcast(fleet_of(b"2"))
        pid = worker.pid
        os.kill(pid, signal.SIGKILL)
        await until(lambda: worker.is_ready and worker.pid not in (None, pid))
        assert (await house.ask(worker))["fleet"]["models_json"] == "Mg=="
        count = house.shared.count
        assert (count(Count.FAILED, 1), count(Count.CUT, 1), count(Count.BUFFERED_BYTES)) == (
            3,
            4,
            0,
        )
        assert count(Area.REASONS + Reason.WORKER_LOST) == 3
        assert house.supervisor.restarts == 1
        assert house.workers[0].starts == 1

    scene(play)


def test_connections_that_queue_for_a_killed_worker_are_answered_by_the_next(scene, until):
    async def play(house):
        (worker,) = house.workers
        os.kill(worker.pid, signal.SIGSTOP)
        queued = [await asyncio.open_connection("127.0.0.1", house.port) for _ in range(5)]
        os.kill(worker.pid, signal.SIGKILL)
        for reader, writer in queued:
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            async with asyncio.timeout(10):
                assert (await reader.read()).startswith(b"HTTP/1.1 200")
            writer.close()
            await writer.wait_closed()

    scene(play, n_workers=1)


def test_a_worker_that_never_starts_makes_the_gateway_give_up(scene):
    async def play(house):
        async with asyncio.timeout(20):
            await house.supervisor.gave_up.wait()
        assert house.workers[0].starts == module.START_ATTEMPTS

    scene(play, n_workers=1, behaviour="crash")


def test_a_worker_for_which_there_is_no_memory_is_tried_again(scene, until, monkeypatch):
    spawn, failures = Supervisor._spawn, []

    async def fail_twice(self, index, control_fd):
        if len(failures) < 2:
            failures.append(index)
            raise OSError(12, "Cannot allocate memory")
        return await spawn(self, index, control_fd)

    async def play(house):
        assert house.workers[0].starts == 3

    monkeypatch.setattr(Supervisor, "_spawn", fail_twice)
    scene(play, n_workers=1)


def test_a_worker_that_talks_nonsense_is_killed(scene, until, caplog):
    async def play(house):
        await until(lambda: house.workers[0].starts >= 2, 10)

    scene(play, n_workers=1, behaviour="babble")


def test_a_drained_worker_is_no_lost_worker(scene, until):
    async def play(house):
        start_s = time.monotonic()
        await house.supervisor.drain(0.2, 5.0)
        assert 0.2 <= time.monotonic() - start_s < 2.0
        assert all(worker.has_drained for worker in house.workers)
        assert house.shared.count(Area.REASONS + Reason.WORKER_LOST) == 0
        with contextlib.closing(socket.socket()) as sock:
            assert sock.connect_ex(("127.0.0.1", house.port)) != 0

    scene(play)


def test_a_second_order_cuts_the_first_short(scene):
    async def play(house):
        first = asyncio.create_task(house.supervisor.drain(60, 60))
        await asyncio.sleep(0.1)
        start_s = time.monotonic()
        await house.supervisor.drain(0, 0)
        await first
        assert time.monotonic() - start_s < 1.0

    scene(play)


def test_a_worker_that_does_not_drain_is_killed(scene):
    async def play(house):
        for worker in house.workers:
            os.kill(worker.pid, signal.SIGSTOP)
        start_s = time.monotonic()
        await house.supervisor.drain(0, 0)
        assert time.monotonic() - start_s < 4.0

    scene(play)


@pytest.mark.parametrize(("behaviour", "words"), [("", "hangs"), ("mute", "is not ready after")])
def test_a_worker_that_lives_and_does_not_work_is_replaced(
    scene, until, monkeypatch, caplog, behaviour, words
):
    """The double never ticks, as a worker whose event loop stands still."""
    monkeypatch.setattr(module, "WATCH_S", 0.02)
    monkeypatch.setattr(module, "HUNG_WATCHES", 5)
    monkeypatch.setattr(module, "START_S", 0.3 if behaviour else 60)

    async def play(house):
        first = house.workers[0].pid
        await until(lambda: house.workers[0].starts >= 2 and house.workers[0].pid != first, 20)
        await until(lambda: f"worker 0 {words}" in caplog.text)

    scene(play, 1, behaviour or None)
