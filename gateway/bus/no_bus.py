"""One gateway, and nobody to talk to: the default."""

from collections.abc import Mapping

from gateway.bus.peers import Peers
from gateway.bus.state import State
from gateway.bus.work import Work

__all__ = ["NoBus"]


class NoBus:
    """See Bus."""

    alone = True

    def __init__(self) -> None:
        self.peers = Peers()
        self.state = State("none")

    def share(self, changes: Mapping[int, Work], now_s: float) -> None:
        """Nobody listens."""

    def insert(self, endpoint: int, blocks: bytes) -> None:
        """Nobody listens."""

    async def close(self) -> None:
        """Nothing is open."""
