"""Switches what the endpoints' engines serve: models, adapters, sleep.

What to ask of an engine stands in `engines.control`; here it meets the endpoint table. While an
engine switches, requests for what comes or goes wait in the gateway, as `hold` says; afterwards the
model list is read at once, and what was assumed of the engine's cache is forgotten where that is
gone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from engines.control import (
    Able,
    Capabilities,
    ControlError,
    Done,
    Driver,
    ListedModel,
    ModelState,
    Refused,
    Talk,
)
from gateway.conversation import LONGEST_S, converse, driver_for
from gateway.engine_action import GRACE_S, TIMEOUT_S, Action
from gateway.engine_switch import Surroundings, Switch
from gateway.fleet import Member
from gateway.probe import Unanswered

__all__ = ["EngineControl", "Outcome", "StillRunning", "Unreachable"]

log = logging.getLogger("headgate.engines")

T = TypeVar("T")


class Unreachable(ControlError):
    """The engine gave no answer, so it is not known what it did."""


class StillRunning(ControlError):
    """The caller's time is over; what it asked for goes on, and can be asked for again."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an order."""

    endpoint: str
    action: Action
    subject: str
    """The model's or adapter's name; empty: the whole engine."""
    changed: bool
    """False: it was so before."""
    message: str
    took_s: float
    joined: bool
    """Another caller had asked for the same, and this is what came of that."""


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done. Orders with equal keys are one."""

    action: Action
    subject: str
    talk: Callable[[Driver], Talk[Done]]
    details: Any = None
    grace_s: float = 0.0

    def key(self) -> tuple[object, ...]:
        """What makes it the same as another."""
        return self.action, self.subject, json.dumps([self.details, self.grace_s], sort_keys=True)

    def __str__(self) -> str:
        return f"{self.action} {self.subject}".strip()


class EngineControl:
    """Used inside one event loop. Each method takes a member that is watched.

    Equal orders at the same time are one, whoever gave them; it goes on when those who wait for it
    leave. Orders about one model take turns. `timeout_s`: how long the caller waits, default
    `TIMEOUT_S`. Raised are `Unable`, `Refused` (with the engine's own words), `Unreachable` and
    `StillRunning`, all of them ControlError.
    """

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._prober = around.prober
        self._running: dict[tuple[object, ...], asyncio.Task[Outcome]] = {}
        self._turns: WeakValueDictionary[tuple[object, ...], asyncio.Lock] = WeakValueDictionary()

    async def close(self) -> None:
        """Wait for nothing any more; engines finish what they were told."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def capabilities(self, member: Member) -> Capabilities:
        """What the engine can be asked, as it says now."""
        able = await self._ask(member, driver_for(member).discover())
        stubborn = sorted(name for name, model in member.triton.items() if not model.cancels)
        if not stubborn:
            return able
        why = f"not {', '.join(stubborn)}: ensembles work on, and stay booked until they end"
        return replace(able, cancel=Able(False, why))

    async def list_models(self, member: Member) -> list[ListedModel]:
        """What it has, and what it could load if it says that."""
        listed = await self._ask(member, driver_for(member).list_models())
        watch = self._prober.watch(member)
        if watch is None or not watch.asleep:
            return listed
        return [replace(one, state=ModelState.ASLEEP) for one in listed]

    async def is_ready(self, member: Member, model: str) -> bool:
        """Whether requests for this model would be served there."""
        watch = self._prober.watch(member)
        if watch is None or watch.asleep or model in member.coming | member.going:
            return False
        return await self._ask(member, driver_for(member).is_ready(model))

    async def load(
        self,
        member: Member,
        model: str,
        options: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> Outcome:
        """Make it serve a model."""
        order = Order(Action.LOAD, model, lambda driver: driver.load(model, options or {}), options)
        return await self._give(member, order, timeout_s)

    async def unload(
        self,
        member: Member,
        model: str,
        options: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> Outcome:
        """Make it serve a model no more."""
        order = Order(
            Action.UNLOAD, model, lambda driver: driver.unload(model, options or {}), options
        )
        return await self._give(member, order, timeout_s)

    async def load_adapter(
        self, member: Member, name: str, path: str, timeout_s: float | None = None
    ) -> Outcome:
        """Make it serve a LoRA adapter. `path`: where the engine itself finds it."""
        order = Order(
            Action.LOAD_ADAPTER, name, lambda driver: driver.load_adapter(name, path), path
        )
        return await self._give(member, order, timeout_s)

    async def unload_adapter(
        self, member: Member, name: str, timeout_s: float | None = None
    ) -> Outcome:
        """Make it serve an adapter no more."""
        order = Order(Action.UNLOAD_ADAPTER, name, lambda driver: driver.unload_adapter(name))
        return await self._give(member, order, timeout_s)

    async def sleep(
        self,
        member: Member,
        level: int = 1,
        grace_s: float = GRACE_S,
        timeout_s: float | None = None,
    ) -> Outcome:
        """Free its GPU memory. It gets no more requests; those that run have `grace_s` to end."""
        order = Order(Action.SLEEP, "", lambda driver: driver.sleep(level), level, grace_s)
        return await self._give(member, order, timeout_s)

    async def wake(self, member: Member, timeout_s: float | None = None) -> Outcome:
        """Bring back what `sleep` took."""
        return await self._give(member, Order(Action.WAKE, "", lambda one: one.wake()), timeout_s)

    # one order for all who give it

    async def _give(self, member: Member, order: Order, timeout_s: float | None) -> Outcome:
        key = (member.slot, member.generation, *order.key())
        running = self._running.get(key)
        joined = running is not None
        if running is None:
            running = asyncio.create_task(self._in_turn(member, order))
            self._running[key] = running
            running.add_done_callback(lambda task: self._ended(key, task))
        patience_s = TIMEOUT_S[order.action] if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(patience_s):
                outcome = await asyncio.shield(running)
        except TimeoutError:
            raise StillRunning(
                f"{order} at {member.name} is not over after {patience_s:g} s and goes on; ask "
                "again to wait for it"
            ) from None
        return replace(outcome, joined=True) if joined else outcome

    def _ended(self, key: tuple[object, ...], task: asyncio.Task[Outcome]) -> None:
        del self._running[key]
        if not task.cancelled():
            task.exception()  # whoever waited has it, and nobody may have

    async def _in_turn(self, member: Member, order: Order) -> Outcome:
        who = (member.slot, member.generation, order.subject)
        turn = self._turns.setdefault(who, asyncio.Lock())
        async with turn:
            try:
                async with asyncio.timeout(LONGEST_S):
                    return await self._carry_out(member, order)
            except TimeoutError:
                raise Unreachable(
                    f"{member.name}: {order} did not end in {LONGEST_S:g} s; see the engine's log"
                ) from None

    async def _carry_out(self, member: Member, order: Order) -> Outcome:
        began_s = time.monotonic()
        watch = self._prober.watch(member)
        if watch is None:
            raise Refused(409, f"'{member.name}' has left")
        switch = Switch(self._around, watch, order.action, order.subject, order.grace_s)
        try:
            done = await switch.carry_out(order.talk(driver_for(member)))
        except Unanswered as error:
            raise Unreachable(f"{member.name}: {error}") from None
        took_s = round(time.monotonic() - began_s, 3)
        if done.changed:
            log.info("%s: %s: %s (%.1f s)", member.name, order, done.message, took_s)
        return Outcome(
            member.name, order.action, order.subject, done.changed, done.message, took_s, False
        )

    async def _ask(self, member: Member, talk: Talk[T]) -> T:
        try:
            return await converse(self._prober.probe, member, talk)
        except Unanswered as error:
            raise Unreachable(f"{member.name}: {error}") from None
