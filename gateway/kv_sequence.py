"""The order of a publisher's batches: what is due, missing or too late. Pure: no I/O, no clock.

    NEW -> IN_ORDER <-> REPLAYING

What is applied so far is what the engine held after its batch `next - 1` if `whole`, else a part
of that. `exact` says that it is whole and that nothing is known to be missing.
"""

from collections import deque
from enum import Enum
from typing import NamedTuple

__all__ = ["Advice", "Phase", "Sequence"]

MAX_HELD = 10_000
MAX_HELD_BYTES = 64 << 20


class Phase(Enum):
    """What the next live batch meets."""

    NEW = "new"
    """Nothing is known: the first that comes is the beginning."""
    IN_ORDER = "in order"
    REPLAYING = "replaying"
    """Something was missed and has been asked for; what comes live is held."""


class Advice(NamedTuple):
    """What to do, in this order."""

    clear: str = ""
    """Forget what was applied; why. Empty: no need."""
    ready: tuple[bytes, ...] = ()
    """Apply these."""
    replay_from: int | None = None
    """Ask for a replay from this batch on; one that is under way is void."""


class _Live(NamedTuple):
    seq: int
    stamp: float
    payload: bytes


NOTHING = Advice()


class Sequence:
    """Of one publisher. `can_replay`: it has a replay endpoint."""

    def __init__(self, can_replay: bool) -> None:
        self.can_replay = can_replay
        self.phase = Phase.NEW
        self.next = 0
        self.whole = False
        self.why = "nothing has been received"
        """Why what is known is not whole."""
        self.n_gaps = 0
        self.n_restarts = 0
        self._last: _Live | None = None
        """The newest live batch."""
        self._held: deque[_Live] = deque()
        self._held_bytes = 0
        self._asked = 0

    @property
    def exact(self) -> bool:
        """Whether what was applied is what the engine holds, as far as batches have come."""
        return self.whole and self.phase is Phase.IN_ORDER

    def begin(self, why: str) -> Advice:
        """The connection is new, and so may be the engine: all over again."""
        self._drop_held()
        self._last = None
        self.next = 0
        self.whole, self.why = False, why
        if not self.can_replay:
            self.phase = Phase.NEW
            return Advice(clear=why)
        self.whole = True  # as long as the replay has no hole
        return Advice(why, (), self._ask())

    def live(self, seq: int, stamp: float, payload: bytes) -> Advice:
        """A batch was published; `stamp` is the engine's time for it."""
        last, here = self._last, _Live(seq, stamp, payload)
        if last is not None and seq <= last.seq:
            if stamp <= last.stamp:
                return NOTHING  # an old one, once more or late
            return self._restarted(last, here)
        self._last = here
        if self.phase is Phase.NEW:
            self._start_at(here)
            return Advice(ready=(payload,))
        if self.phase is Phase.REPLAYING:
            self._hold(here)
            return NOTHING
        if seq < self.next:
            return NOTHING  # the replay had it
        if seq > self.next:
            return self._gap(here)
        self.next += 1
        return Advice(ready=(payload,))

    def replayed(self, seq: int, payload: bytes) -> Advice:
        """The replay brought a batch."""
        if self.phase is not Phase.REPLAYING or seq < self.next:
            return NOTHING
        missing = seq - self.next
        if missing and self.next > self._asked:
            # The engine sent more at once than its socket holds: the rest once more.
            return Advice("", (), self._ask())
        self.next = seq + 1
        why = self._broken(f"{missing} batches are gone from the replay") if missing else ""
        return Advice(why, (payload,))

    def replay_over(self) -> Advice:
        """The replay brought all that the engine keeps."""
        if self.phase is not Phase.REPLAYING:
            return NOTHING
        ready = self._release()
        if self._last is None or self.next > self._last.seq:
            self.phase = Phase.IN_ORDER
            return Advice(ready=ready)
        if self.next > self._asked:
            return Advice("", ready, self._ask())
        return self._give_up(f"the replay does not have batch {self.next}")

    def replay_failed(self, why: str) -> Advice:
        """The replay did not come to its end."""
        if self.phase is not Phase.REPLAYING:
            return NOTHING
        if self.next > self._asked:
            return Advice("", (), self._ask())
        return self._give_up(why)

    def verify(self) -> Advice:
        """Ask whether something was missed without a gap that shows."""
        if not self.can_replay or self.phase is Phase.REPLAYING:
            return NOTHING
        return Advice("", (), self._ask())

    def cleared(self) -> None:
        """The engine dropped all its blocks: from here on, what is known is whole."""
        self.whole = True

    def doubt(self, why: str) -> None:
        """What is known has turned out to be incomplete."""
        self.whole, self.why = False, why

    def _start_at(self, first: _Live) -> None:
        self.phase = Phase.IN_ORDER
        self.next = first.seq + 1
        self.whole = first.seq == 0
        if not self.whole:
            self.why = f"what came before batch {first.seq} is not known"

    def _restarted(self, last: _Live, here: _Live) -> Advice:
        self.n_restarts += 1
        why = f"restarted: batch {here.seq} after batch {last.seq}"
        advice = self.begin(why)
        self._last = here
        if here.seq == 0 or not self.can_replay:
            self._start_at(here)
            return Advice(why, (here.payload,))
        self._hold(here)
        return advice

    def _gap(self, here: _Live) -> Advice:
        self.n_gaps += 1
        if self.can_replay:
            self._hold(here)
            return Advice("", (), self._ask())
        missing = here.seq - self.next
        self.next = here.seq + 1
        return Advice(
            self._broken(f"{missing} batches were lost, and there is no replay"), (here.payload,)
        )

    def _ask(self) -> int:
        self.phase = Phase.REPLAYING
        self._asked = self.next
        return self.next

    def _give_up(self, why: str) -> Advice:
        """Go on from the latest batches that follow each other."""
        last, held = self._last, list(self._held)
        self._drop_held()
        if last is None:
            self.phase = Phase.NEW
            return Advice(self._broken(why))
        self.phase = Phase.IN_ORDER
        self.next = last.seq + 1
        ready: list[bytes] = []
        due = last.seq
        for one in reversed(held):
            if one.seq != due:
                break
            ready.append(one.payload)
            due -= 1
        return Advice(self._broken(why), tuple(reversed(ready)))

    def _broken(self, why: str) -> str:
        self.doubt(why)
        return why

    def _hold(self, one: _Live) -> None:
        # What finds no room is missing when the replay is over, and is asked for then.
        if len(self._held) < MAX_HELD and self._held_bytes + len(one.payload) <= MAX_HELD_BYTES:
            self._held.append(one)
            self._held_bytes += len(one.payload)

    def _drop_held(self) -> None:
        self._held.clear()
        self._held_bytes = 0

    def _release(self) -> tuple[bytes, ...]:
        """What is held and follows now."""
        ready = []
        while self._held and self._held[0].seq <= self.next:
            one = self._held.popleft()
            self._held_bytes -= len(one.payload)
            if one.seq == self.next:
                ready.append(one.payload)
                self.next += 1
        return tuple(ready)
