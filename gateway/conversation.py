"""Carries out what a driver of `engines.control` wants said to an engine."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from engines.control import Call, Driver, Pause, Reply, Talk, driver_of
from gateway.fleet import Member
from gateway.probe import Probe

__all__ = ["LONGEST_S", "converse", "driver_for"]

T = TypeVar("T")
NOTHING = Reply()
LOOK_S = 10.0
"""For a request that changes nothing: an engine that loads may be slow to answer."""
LONGEST_S = 3600.0
"""For one that does: large models take many minutes from a slow disk."""


def driver_for(member: Member) -> Driver:
    """What knows the requests of its kind of engine."""
    return driver_of(member.kind)


async def converse(
    probe: Probe,
    member: Member,
    talk: Talk[T],
    before_change: Callable[[], Awaitable[None]] | None = None,
) -> T:
    """What the talk returns; ControlError as it raises. Unanswered: the engine gave no answer.

    `before_change` is awaited once, before the first request that changes anything.
    """
    step = _next(talk, None)
    while not isinstance(step, Ended):
        reply = NOTHING
        if isinstance(step, Pause):
            await asyncio.sleep(step.seconds)
        else:
            if step.changes and before_change is not None:
                await before_change()
                before_change = None
            reply = await probe.call(member, step, LONGEST_S if step.changes else LOOK_S)
        step = _next(talk, reply)
    return step.value


@dataclass(frozen=True, slots=True)
class Ended(Generic[T]):
    """What a talk returned."""

    value: T


def _next(talk: Talk[T], reply: Reply | None) -> Call | Pause | Ended[T]:
    try:
        return next(talk) if reply is None else talk.send(reply)
    except StopIteration as end:
        return Ended(end.value)
