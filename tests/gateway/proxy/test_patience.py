"""A dial's deadline, on a machine that stands still now and then."""

import asyncio
import time

import pytest
import uvloop

from gateway.proxy.patience import patience

LIMIT_S = 0.05


def test_what_happens_in_time_is_no_affair_of_it() -> None:
    async def main() -> str:
        async with patience(LIMIT_S):
            await asyncio.sleep(0)
        await asyncio.sleep(4 * LIMIT_S)
        return "undisturbed"

    assert uvloop.run(main()) == "undisturbed"


def test_what_does_not_happen_ends() -> None:
    async def main() -> None:
        async with patience(LIMIT_S):
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        uvloop.run(main())


def test_a_connection_that_was_made_while_the_process_stood_still() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        loop.call_soon(time.sleep, 4 * LIMIT_S)
        async with patience(LIMIT_S):
            transport, _ = await loop.create_connection(asyncio.Protocol, "127.0.0.1", port)
        transport.close()
        server.close()

    uvloop.run(main())
