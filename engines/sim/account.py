"""Accounts of requests: each one that comes ends in exactly one way."""

from __future__ import annotations

from dataclasses import dataclass, field

from engines.sim.response import Response

__all__ = ["Accounts"]


@dataclass(slots=True)
class Accounts:
    """Counts of inference requests: seen = finished + aborted + failed + refused + open."""

    seen: int = 0
    """Requests read to their end."""
    started: int = 0
    """Those that were given to the core."""
    finished: int = 0
    """Answered in full with success."""
    aborted: int = 0
    """Left by their client before the end."""
    failed: int = 0
    """Ended by a fault after they had been taken on."""
    refused: int = 0
    """Answered with an error at once."""
    unread: int = 0
    """Requests whose body was never read (`stop_reading`); not part of `seen`."""
    open: set[Response] = field(default_factory=set)

    def saw(self, response: Response) -> None:
        """A request has come."""
        self.seen += 1
        self.open.add(response)

    def settle(self, response: Response, outcome: str) -> None:
        """It has ended as `finished`, `aborted`, `failed` or `refused`; the first word counts."""
        if response in self.open:
            self.open.remove(response)
            setattr(self, outcome, getattr(self, outcome) + 1)
