"""What happens to the engines of a chaos run: faults from a seed, each bounded."""

import asyncio
from collections import Counter
from random import Random
from typing import Any, Self

from bench.chaos.house import ENGINES, Engines

__all__ = ["Gremlin"]

PAUSE_S = (0.02, 0.12)

# Kind -> weight. Those that strike a few requests, and heal when they have.
STRIKES: dict[str, float] = {
    "reset": 5,
    "early_close": 5,
    "clean_close": 4,
    "bad_chunk": 4,
    "bad_status": 3,
    "cl_te": 3,
    "two_responses": 3,
    "500": 4,
    "503": 5,
    "429": 3,
    "delay": 6,
    "drip": 4,
    "stall": 1,
    "hang": 0.6,
    "endless_head": 1,
}
# Those that strike an engine, for a time.
SPELLS: dict[str, float] = {
    "refuse": 1.0,
    "freeze": 0.8,
    "stop_reading": 0.6,
    "kill_core": 1.0,
    "sigterm_hang": 0.6,
    "sigterm_drain": 0.6,
    "sigterm_quit": 0.8,
}


class Gremlin:
    """Injects faults while it is entered, and heals them when left; a spell never holds all
    engines at once."""

    def __init__(self, seed: int, engines: Engines) -> None:
        self.done: Counter[str] = Counter()
        self._random = Random(f"{seed}/gremlin")
        self._engines = engines
        self._spells: dict[str, asyncio.Task[None]] = {}

    async def __aenter__(self) -> Self:
        self._work = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        tasks = [self._work, *self._spells.values()]
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for engine in ENGINES:
            await self._engines.command("heal", engine)
        for error in results:
            if isinstance(error, Exception):
                raise error

    async def _run(self) -> None:
        while True:
            kind, engine, options = self._next()
            if kind in STRIKES:
                self.done[kind] += 1
                await self._engines.command("fault", engine, kind=kind, **options)
            elif engine not in self._spells and len(self._spells) < len(ENGINES) - 1:
                self.done[kind] += 1
                self._spells[engine] = asyncio.create_task(self._spell(engine, kind, **options))
            await asyncio.sleep(self._random.uniform(*PAUSE_S))

    def _next(self) -> tuple[str, str, dict[str, Any]]:
        """The next decision; it takes as many draws whatever it is."""
        random, weights = self._random, {**STRIKES, **SPELLS}
        (kind,) = random.choices(list(weights), list(weights.values()))
        engine = random.choice(ENGINES)
        count, share, events = random.choice((1, 1, 2, 4, 8)), random.random(), random.randrange(6)
        if kind in SPELLS:
            return kind, engine, {"lasts_s": 0.1 + 0.9 * share}
        options: dict[str, Any] = {"count": count, "after_events": events - 1}
        if kind == "delay":
            options["seconds"] = 0.3 * share
        elif kind == "drip":
            options |= {"bytes": 1 + int(200 * share), "seconds": 0.002}
        elif kind in ("hang", "stall", "endless_head"):
            options["count"] = min(count, 2)
        return kind, engine, options

    async def _spell(self, engine: str, kind: str, lasts_s: float) -> None:
        try:
            await self._engines.command("fault", engine, kind=kind)
            await asyncio.sleep(lasts_s)
            await self._engines.command("heal", engine)
        finally:
            del self._spells[engine]
