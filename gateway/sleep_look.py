"""Is an engine asleep? Asked with the probes, for one that sleeps answers them as ever."""

import time

from engines.control import ControlError
from gateway.conversation import converse, driver_for
from gateway.fleet import Member
from gateway.probe import Probe, Unanswered

__all__ = ["SleepLook"]

AGAIN_S = 60.0
"""An engine that has no answer is asked again after this: it may have been started anew."""


class SleepLook:
    """Used inside one event loop."""

    def __init__(self) -> None:
        self._silent: dict[tuple[int, int], float] = {}
        """By slot and generation: when it last had no answer."""

    async def look(self, probe: Probe, member: Member) -> bool | None:
        """None: it does not say. OSError as `Probe`; nothing else is raised."""
        if not driver_for(member).tells_sleep:
            return None
        who = (member.slot, member.generation)
        now_s = time.monotonic()
        if now_s - self._silent.get(who, -AGAIN_S) < AGAIN_S:
            return None
        try:
            asleep = await converse(probe, member, driver_for(member).is_asleep())
        except (Unanswered, ControlError):
            return None
        if asleep is None:
            self._forget(member.slot)
            self._silent[who] = now_s
        return asleep

    def _forget(self, slot: int) -> None:
        for who in [who for who in self._silent if who[0] == slot]:
            del self._silent[who]
