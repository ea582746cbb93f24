"""Running a scenario against an engine over real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
import uvloop

from engines.sim import SimConfig, SimEngine

Scenario = Callable[[SimEngine, httpx.AsyncClient], Awaitable[Any]]


@pytest.fixture
def writers() -> list[asyncio.StreamWriter]:
    """Every connection a scenario has dialled, to be closed after it."""
    return []


@pytest.fixture
def dial(writers: list[asyncio.StreamWriter]) -> Callable[..., Any]:
    """`reader, writer = await dial(engine, b"...")`: a bare connection, with a first write."""

    async def connect(engine: SimEngine, data: bytes = b"") -> Any:
        reader, writer = await asyncio.open_connection("127.0.0.1", engine.port)
        writers.append(writer)
        writer.write(data)
        return reader, writer

    return connect


@pytest.fixture
def sim(writers: list[asyncio.StreamWriter]) -> Callable[..., Any]:
    """`sim(scenario, **config)` runs it on uvloop; an error that only the loop saw fails it."""

    def run(scenario: Scenario, **config: Any) -> Any:
        unseen: list[dict[str, Any]] = []

        async def main() -> Any:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: unseen.append(context))
            engine = SimEngine(SimConfig(**{"profile": "instant", **config}))
            await engine.start()
            try:
                async with httpx.AsyncClient(base_url=engine.url, timeout=20) as client:
                    result = await asyncio.wait_for(scenario(engine, client), 40)
            finally:
                await engine.stop()
                for writer in writers:
                    writer.transport.abort()
                await asyncio.sleep(0.001)
            check_accounts(engine)
            return result

        result = uvloop.run(main())
        assert not unseen
        return result

    return run


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """`await until(lambda: ...)`; the scenario's own limit is the patience."""

    async def wait(true: Callable[[], bool]) -> None:
        while not true():  # noqa: ASYNC110  (nothing tells of a change in the accounts)
            await asyncio.sleep(0.002)

    return wait


def check_accounts(engine: SimEngine) -> None:
    """Whatever happened, every request and connection has ended in exactly one way."""
    state = engine.state()
    kinds = ("finished", "aborted", "failed", "refused")
    assert state["requests_open"] == 0
    assert state["requests_seen"] == sum(state[f"requests_{kind}"] for kind in kinds)
    assert state["connections_opened"] == state["connections_closed"]
    assert state["running"] == state["waiting"] == state["kv_blocks_held"] == 0
    assert state["core_submitted"] == state["core_finished"] + state["core_aborted"]
