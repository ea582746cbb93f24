"""What sharing costs a control process: python -m tests.gateway.bus.sharing_cost [n_gateways]

Each gateway is a process with 1,000 endpoints, of which 100 change per tick of 20 ms. CPU without
the making of the load; over a Redis of its own.
"""

import asyncio
import multiprocessing
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from gateway.bus import RedisBus, Sharer, endpoint_hash
from router import Table
from tests.gateway.bus.conftest import RedisServer

ENDPOINTS, CHANGING, TICK_S, WARM_S, RUN_S = 1000, 100, 0.02, 3.0, 10.0


def cpu_s():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime, usage.ru_stime


async def measure(url, name, n_workers, changing):
    table = Table(bytearray(Table.size(n_workers + 1)), n_workers + 1)
    places = {endpoint_hash(f"pod-{n}"): n for n in range(ENDPOINTS)}
    bus = RedisBus(url, name)
    sharer = Sharer(table, bus, lambda: places, lambda slot, blocks: None)
    rng = random.Random(1)
    for n in range(ENDPOINTS):
        table.set_work(0, n, (1, 0, 0.0, 0.0, 0.0, 0, 1000))
    began_s, tick, start = time.monotonic(), 0, None
    while start is None or time.monotonic() - start[0] < RUN_S:
        now_s = time.monotonic()
        if start is None and now_s - began_s > WARM_S:
            start, making_s, ticking_s = (now_s, cpu_s(), bus.state.bytes_out), 0.0, 0.0
        tick += 1
        at_s = time.thread_time()
        for n in range(tick * changing, (tick + 1) * changing):
            work = (tick % 7 + 1, 1, 0.25, now_s, 0.0, tick, 1000 + tick)
            table.set_work(rng.randrange(n_workers), n % ENDPOINTS, work)
        made_s = time.thread_time()
        sharer.tick(now_s)
        if start is not None:
            making_s += made_s - at_s
            ticking_s += time.thread_time() - made_s
        await asyncio.sleep(max(0.0, TICK_S - (time.monotonic() - now_s)))
    run_s = time.monotonic() - start[0]
    user_s, system_s = (b - a for a, b in zip(start[1], cpu_s(), strict=True))
    print(
        f"{name}: {n_workers} workers, {changing} of {ENDPOINTS} change, {len(bus.peers)} peers: "
        f"{1e3 * (user_s + system_s - making_s) / run_s:.1f} ms/s of CPU (kernel "
        f"{1e3 * system_s / run_s:.1f}, tick() {1e3 * ticking_s / run_s:.1f}), "
        f"out {(bus.state.bytes_out - start[2]) / run_s / 1e3:.0f} kB/s, gaps {bus.peers.gaps}",
        flush=True,
    )
    await bus.close()


def run(*arguments):
    uvloop.run(measure(*arguments))


def main():
    n_gateways = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    with tempfile.TemporaryDirectory() as folder:
        server = RedisServer(Path(folder)).start()
        try:
            for n_workers, changing in ((1, 0), (1, CHANGING), (4, CHANGING)):
                run(server.url, "alone", n_workers, changing)
            tasks = [
                multiprocessing.Process(target=run, args=(server.url, f"g{n}", 1, CHANGING))
                for n in range(n_gateways)
            ]
            for task in tasks:
                task.start()
            for task in tasks:
                task.join()
        finally:
            server.stop()


if __name__ == "__main__":
    main()
