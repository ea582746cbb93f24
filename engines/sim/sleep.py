"""Sleep: memory is given up by tags and comes back by tags; dropped weights come back empty."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from json import JSONDecodeError, loads
from typing import TYPE_CHECKING

from engines.sim.errors import ApiError
from engines.sim.http import Request
from engines.sim.reply import compact
from engines.sim.response import Response

if TYPE_CHECKING:
    from engines.sim.server import SimEngine

__all__ = ["Sleep", "SleepRoutes", "Switches"]

STATES = ("awake", "weights_offloaded", "discard_all")
TAGS = ("weights", "kv_cache")


@dataclass(slots=True)
class Switches:
    """How often what an engine serves was switched, since its start."""

    adapter_loads: int = 0
    adapter_unloads: int = 0
    sleeps: int = 0
    wakes: int = 0


@dataclass(slots=True)
class Sleep:
    """What an engine has given up."""

    asleep: set[str] = field(default_factory=set)
    """Tags of the memory that is not there."""
    has_weights: bool = True
    """False: dropped, and not read again; what it says then makes no sense."""


class SleepRoutes:
    """The routes that vLLM has in its development mode."""

    def __init__(self, engine: SimEngine) -> None:
        self._engine = engine

    def sleep(self, request: Request, response: Response) -> None:
        """`POST /sleep?level=`: ends what runs, and drops the cache from level 1 on."""
        level = _level(request)
        self._after(partial(self._sleep, level, response))

    def wake_up(self, request: Request, response: Response) -> None:
        """`POST /wake_up?tags=`: without tags all of it."""
        tags = request.query.get("tags")
        self._after(partial(self._wake_up, tags, response))

    def is_sleeping(self, request: Request, response: Response) -> None:
        """`GET /is_sleeping`."""
        response.send(200, compact({"is_sleeping": self._engine.asleep}))

    def collective_rpc(self, request: Request, response: Response) -> None:
        """`POST /collective_rpc {"method": "reload_weights"}`; no other method is known."""
        try:
            method = loads(request.body or b"{}").get("method")
        except (JSONDecodeError, UnicodeDecodeError, AttributeError) as error:
            raise ApiError(400, f"JSON decode error: {error}") from None
        if method != "reload_weights":
            raise ApiError(400, f"no method {method!r}")
        sleep = self._engine.sleep
        sleep.has_weights = sleep.has_weights or "weights" not in sleep.asleep
        response.send(200, compact({"results": [None]}))

    def _sleep(self, level: int, response: Response) -> None:
        engine = self._engine
        engine.interrupt()
        engine.asleep = True
        if level:
            engine.forget_cache()
            engine.sleep.asleep = set(TAGS)
        if level == STATES.index("discard_all"):
            engine.sleep.has_weights = False
        engine.switches.sleeps += 1
        engine.metrics.sleep_state = STATES[level]
        response.send(200, compact({"status": "sleeping", "level": level}))

    def _wake_up(self, tags: list[str] | None, response: Response) -> None:
        engine = self._engine
        engine.sleep.asleep -= set(TAGS if tags is None else tags)
        if not engine.sleep.asleep:
            engine.switches.wakes += int(engine.asleep)
            engine.asleep = False
            engine.metrics.sleep_state = STATES[0]
            engine.wake()
        response.send(200, compact({"status": "awake", "tags": tags}))

    def _after(self, act: partial[None]) -> None:
        self._engine.after(self._engine.config.switch_s, act)


def _level(request: Request) -> int:
    given = request.query.get("level", ["1"])[0]
    if given.isdigit() and int(given) <= 2:
        return int(given)
    detail = (
        "{'type': 'less_than_equal', 'loc': 'query.level', 'msg': 'Input should be less than or "
        f"equal to 2', 'input': {given!r}, 'ctx': {{'le': 2}}}}"
    )
    raise ApiError(400, f"1 validation error:\n  {detail}", "Bad Request", "query.level")
