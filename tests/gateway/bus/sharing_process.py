"""A gateway's sharer in a process of its own: URL, name, in_flight per endpoint, names..."""

import asyncio
import sys
import time

from gateway.bus import RedisBus, Sharer, endpoint_hash
from router import Table


async def main(url, name, in_flight, *endpoints):
    table = Table(bytearray(Table.size(2)), 2)
    places = {endpoint_hash(endpoint): slot for slot, endpoint in enumerate(endpoints)}
    sharer = Sharer(table, RedisBus(url, name), lambda: places, lambda slot, blocks: None)
    for slot in range(len(endpoints)):
        table.set_work(0, slot, (int(in_flight), 0, 0.0, 0.0, 0.0, 0, 10 * int(in_flight)))
    print("up", flush=True)
    while True:
        sharer.tick(time.monotonic())
        await asyncio.sleep(0.02)


asyncio.run(main(*sys.argv[1:]))
