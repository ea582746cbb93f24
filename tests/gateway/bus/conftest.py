"""A real Redis of one's own, a wire that can be cut, and sharers over them."""

import asyncio
import time

import pytest

from gateway.bus import RedisBus, Sharer, endpoint_hash
from router import Table

TICK_S = 0.02
ENDPOINTS = [f"pod-{n}:8000" for n in range(8)]


class Wire:
    """A TCP relay in front of a port. Cut, it takes bytes and lets them vanish: no reset, no end,
    as when a switch dies. Use inside a loop."""

    def __init__(self, port):
        self.to_port = port
        self.is_cut = False
        self.tasks = set()

    async def start(self):
        self.server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        self.url = f"redis://127.0.0.1:{port}/0"
        return self

    async def stop(self):
        self.server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _take(self, reader, writer):
        there = await asyncio.open_connection("127.0.0.1", self.to_port)
        ways = [self._carry(reader, there[1]), self._carry(there[0], writer)]
        for way in ways:
            task = asyncio.create_task(way)
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _carry(self, reader, writer):
        try:
            while data := await reader.read(65536):
                if not self.is_cut:
                    writer.write(data)
        except OSError:
            pass
        finally:
            writer.close()


class Gateway:
    """A table, a bus and a sharer that ticks; endpoint n stands in slot n + `shift`."""

    def __init__(self, url, name, shift=0, gateways=0, n_workers=2):
        self.table = Table(bytearray(Table.size(n_workers + 1)), n_workers + 1)
        self.bus = RedisBus(url, name)
        self.places = {endpoint_hash(e): n + shift for n, e in enumerate(ENDPOINTS)}
        self.inserts = []
        self.sharer = Sharer(
            self.table,
            self.bus,
            lambda: self.places,
            lambda slot, blocks: self.inserts.append((slot, blocks)),
            gateways,
        )
        self.shift = shift
        self.slowest_s = 0.0
        self.task = asyncio.create_task(self._tick())

    async def _tick(self):
        while True:
            now_s = time.monotonic()
            self.sharer.tick(now_s)
            self.slowest_s = max(self.slowest_s, time.monotonic() - now_s)
            await asyncio.sleep(TICK_S)

    def put(self, n, in_flight, prefilling=0, prefill_s=0.0, tokens=0, kv=0, worker=0):
        """What a worker has on endpoint n."""
        now_s = time.monotonic()
        work = (in_flight, prefilling, prefill_s, now_s, 0.0, tokens, kv)
        self.table.set_work(worker, n + self.shift, work)

    def own(self, n):
        """in_flight, prefilling, prefill_s, prefill_tokens, kv_tokens over the workers."""
        works = [self.table.work(w, n + self.shift) for w in range(self.table.n_workers - 1)]
        return additive([sum(column) for column in zip(*works, strict=True)])

    def peers(self, n):
        """The same of the peers' column."""
        return additive(self.table.work(self.table.n_workers - 1, n + self.shift))

    async def close(self):
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.bus.close()


def additive(work):
    return (work[0], work[1], work[2], work[5], work[6])


def agree(*gateways):
    """Whether each has in its last column what the others have in theirs."""
    for one in gateways:
        for n in range(len(ENDPOINTS)):
            others = [other.own(n) for other in gateways if other is not one]
            wanted = [sum(column) for column in zip(*others, strict=True)]
            if list(one.peers(n)) != pytest.approx(wanted):
                return False
    return True


async def until(condition, within_s=5.0):
    """Wait for a condition; how long it took."""
    start_s = time.monotonic()
    while not condition():
        assert time.monotonic() - start_s < within_s, "it did not come to pass"
        await asyncio.sleep(0.005)
    return time.monotonic() - start_s


@pytest.fixture
def world(redis_server):
    """Run a test inside a loop: gateways come from `.gateway(name)` and are closed at its end."""

    class World:
        server = redis_server
        ENDPOINTS = ENDPOINTS
        agree = staticmethod(agree)
        until = staticmethod(until)

        def __init__(self):
            self.gateways = []
            self.wires = []

        def gateway(self, name, url=None, **more):
            gateway = Gateway(url or redis_server.url, name, **more)
            self.gateways.append(gateway)
            return gateway

        async def wire(self):
            self.wires.append(await Wire(redis_server.port).start())
            return self.wires[-1]

        def run(self, test, timeout_s=60.0):
            async def whole():
                try:
                    async with asyncio.timeout(timeout_s):
                        await test(self)
                finally:
                    for gateway in self.gateways:
                        await gateway.close()
                    for wire in self.wires:
                        await wire.stop()

            asyncio.run(whole())

    return World()
