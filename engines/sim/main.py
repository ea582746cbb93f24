"""Simulated engines as a process: composition, ready lines, signals."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence

import uvloop

from engines.sim.config import SimConfig
from engines.sim.server import SimEngine

__all__ = ["run"]


def run(engines: Sequence[SimConfig], host: str, ports: Sequence[int]) -> None:
    """Run one engine per configuration and port until all are gone. Blocks.

    Prints one line per engine when it can be reached. SIGTERM makes every engine exit in its
    configured way; a second one, or SIGINT, ends the process at once. ValueError if configurations
    and ports do not pair up or names repeat; OSError if an address is taken.
    """
    if len(engines) != len(ports) or len({config.name for config in engines}) != len(engines):
        raise ValueError("one port and one name of its own for each engine")
    uvloop.run(_main([SimEngine(config) for config in engines], host, ports))


async def _main(engines: Sequence[SimEngine], host: str, ports: Sequence[int]) -> None:
    over = asyncio.Event()
    terminated = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, over.set)
    loop.add_signal_handler(signal.SIGTERM, _on_sigterm, terminated, over)
    peers = {engine.config.name: engine for engine in engines}
    leaving = loop.create_task(_leave(engines, terminated, over))
    try:
        for engine, port in zip(engines, ports, strict=True):
            engine.peers = peers
            await engine.start(host, port)
            print(_ready_line(engine), flush=True)
        await over.wait()
    finally:
        leaving.cancel()
        for engine in engines:
            await engine.stop()


def _on_sigterm(terminated: asyncio.Event, over: asyncio.Event) -> None:
    if terminated.is_set():
        over.set()
    terminated.set()


async def _leave(
    engines: Sequence[SimEngine], terminated: asyncio.Event, over: asyncio.Event
) -> None:
    """Once the signal has come: every engine exits in its way, then the process is over."""
    await terminated.wait()
    for engine in engines:
        engine.sigterm()
    for engine in engines:
        await engine.exited.wait()
    over.set()


def _ready_line(engine: SimEngine) -> str:
    config = engine.config
    return f"{config.name} ready on {engine.url} (model {config.model}, profile {config.profile})"
