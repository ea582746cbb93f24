"""Whether a request that failed at an engine is asked elsewhere: one pure table and one budget.

A request that has sent a byte to its client is never repeated. Inference requests change nothing
at an engine, which is why the others may be, against the caution of RFC 9110 9.2.2.
"""

from collections import deque
from enum import IntEnum

__all__ = ["Budget", "Cause", "Verdict", "decide"]


class Cause(IntEnum):
    """How a dispatch failed."""

    DIAL = 0
    """No connection: the engine has not seen the request."""
    LOST_REUSED = 1
    """A kept connection turned out to be gone: closed by the engine before it saw the request."""
    LOST = 2
    """A connection broke before the response was whole; the engine may have died of it."""
    CONDEMNED = 3
    """The endpoint was declared dead or hung."""
    STATUS = 4
    """429, 502 or 503."""
    DYING = 5
    """An answer by which the engine says that it is going down."""
    MALFORMED = 6
    """Framing that cannot be trusted: asking again would only find the same bug."""
    TIMEOUT = 7
    """Nothing for too long: the client's patience is spent already."""


class Verdict(IntEnum):
    """What to do."""

    GIVE_UP = 0
    SAME_FRESH = 1
    """The same endpoint once more, on a new connection."""
    ELSEWHERE = 2
    """Another endpoint, outside the budget."""
    ELSEWHERE_IN_BUDGET = 3
    """Another endpoint, if the budget allows."""


def decide(cause: int, *, refreshed: bool, redispatched: bool, deaths: int) -> int:
    """The verdict for a request of which the client has not received a byte.

    `refreshed`: it has used SAME_FRESH. `redispatched`: it has used ELSEWHERE. `deaths`: engines
    that died, or may have died, with it on board: after the second nobody else is risked.
    """
    if cause == Cause.LOST_REUSED and not refreshed:
        return Verdict.SAME_FRESH
    if cause in (Cause.LOST, Cause.LOST_REUSED, Cause.CONDEMNED, Cause.DYING) and deaths > 1:
        return Verdict.GIVE_UP
    if cause in (Cause.DIAL, Cause.CONDEMNED) and not redispatched:
        return Verdict.ELSEWHERE
    if cause in (Cause.MALFORMED, Cause.TIMEOUT):
        return Verdict.GIVE_UP
    return Verdict.ELSEWHERE_IN_BUDGET


class Budget:
    """Retries as a share of the requests in a sliding window, with a floor for quiet times.

    `tick` once a second with the number of requests ever accepted (`accepted`: at the start);
    `spend` asks for one retry.
    """

    def __init__(self, share: float, floor: int, window_s: float, accepted: int = 0) -> None:
        self.share = share
        self.floor = floor
        self._accepted: deque[int] = deque([accepted], maxlen=max(1, round(window_s)))
        self._spent: deque[int] = deque([0], maxlen=max(1, round(window_s)))

    def tick(self, accepted: int) -> None:
        """A second has passed."""
        self._accepted.append(accepted)
        self._spent.append(0)

    def spend(self, accepted: int) -> bool:
        """Take one retry out of the window's budget; False: there is none left."""
        requests = accepted - self._accepted[0]
        if sum(self._spent) >= max(self.floor, self.share * requests):
            return False
        self._spent[-1] += 1
        return True
