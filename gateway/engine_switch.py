"""An order to an engine, from the endpoint table's side: who waits meanwhile, what holds after."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from engines.control import ControlError, Done, Talk
from gateway.caches import Caches
from gateway.conversation import converse, driver_for
from gateway.engine_action import Action
from gateway.probe import Unanswered
from gateway.prober import Prober, Watch
from router import State

__all__ = ["Surroundings", "Switch"]

READ_S = 0.15
"""After which every worker has read a fleet that was published."""
LOOK_S = 0.05
"""Between two looks whether requests still run."""


COMES = (Action.LOAD, Action.LOAD_ADAPTER)
WHOLE = (Action.SLEEP, Action.WAKE)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an order touches besides its engine."""

    prober: Prober
    caches: Caches
    publish: Callable[[], None]
    """Tell the workers of the fleet."""
    in_flight: Callable[[int], int]
    """Requests that run in a slot."""


class Switch:
    """Make one for each order, and carry it out once; orders to sleep and to wake take turns."""

    def __init__(
        self,
        around: Surroundings,
        watch: Watch,
        action: Action,
        subject: str = "",
        grace_s: float = 0.0,
    ) -> None:
        self._around = around
        self._watch = watch
        self._member = watch.member
        self._action = action
        self._subject = subject
        self._grace_s = grace_s
        self._has_begun = False

    async def carry_out(self, talk: Talk[Done]) -> Done:
        """ControlError, Unanswered: it was not done, or it is not known whether."""
        if self._action not in WHOLE:
            return await self._models(talk)
        self._watch.n_switches += 1
        try:
            return await self._sleep(talk)
        finally:
            self._watch.n_switches += 1
            self._watch.nudge.set()

    async def _models(self, talk: Talk[Done]) -> Done:
        try:
            done = await converse(self._around.prober.probe, self._member, talk, self._withhold)
            if done.forgets:
                self._around.caches.forget(self._member.slot)
            return done
        finally:
            if self._has_begun:
                await self._give_free()

    async def _withhold(self) -> None:
        """Requests for a model that comes wait from here on; one that goes gets none."""
        self._has_begun = True
        if self._action is Action.LOAD and self._subject in (self._member.models or {}):
            return  # what is there serves until what comes is there
        self._withheld.add(self._subject)
        self._around.publish()
        await asyncio.sleep(READ_S)

    @property
    def _withheld(self) -> set[str]:
        return self._member.coming if self._action in COMES else self._member.going

    async def _give_free(self) -> None:
        try:
            # First what it serves now: those that wait shall find it, or learn that it is gone.
            await self._around.prober.reread(self._watch)
        finally:
            self._withheld.discard(self._subject)
            self._around.publish()
            # Who gave the order shall find it carried out by all.
            await asyncio.sleep(READ_S)

    async def _sleep(self, talk: Talk[Done]) -> Done:
        to_sleep = self._action is Action.SLEEP
        if (known := self._known(to_sleep)) is not None:
            talk.close()
            return known
        before = self._around_sleep if to_sleep else None
        try:
            done = await converse(self._around.prober.probe, self._member, talk, before)
        except (ControlError, Unanswered):
            await self._see()
            raise
        self._mark(to_sleep)
        if done.forgets:
            self._around.caches.lost(self._member.slot)
        if to_sleep:
            self._around.prober.release_from(self._member, "its engine was put to sleep")
        return done

    def _known(self, to_sleep: bool) -> Done | None:
        """Of an engine that does not say whether it sleeps, and would fail if asked in vain."""
        if driver_for(self._member).tells_sleep:
            return None
        if to_sleep and self._watch.asleep:
            return Done(False, "it sleeps already")
        if not to_sleep and not self._watch.asleep and self._watch.health.state is State.READY:
            return Done(False, "it is awake already")
        return None

    async def _around_sleep(self) -> None:
        """No more requests; those that run have their grace."""
        self._mark(True)
        until_s = time.monotonic() + self._grace_s
        await asyncio.sleep(LOOK_S)  # what a worker was about to send is counted by now
        # Counts in shared memory wake nobody.
        while self._around.in_flight(self._member.slot) and time.monotonic() < until_s:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)

    async def _see(self) -> None:
        """The order failed: does it sleep? In doubt it is as it was before."""
        talk = driver_for(self._member).is_asleep()
        try:
            asleep = await converse(self._around.prober.probe, self._member, talk)
        except (ControlError, Unanswered):
            asleep = None
        self._mark(self._action is Action.WAKE and self._watch.asleep if asleep is None else asleep)

    def _mark(self, asleep: bool) -> None:
        self._around.prober.mark_asleep(self._watch, asleep)
