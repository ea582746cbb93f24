"""What carries load between gateways."""

from collections.abc import Mapping
from typing import Protocol

from gateway.bus.peers import Peers
from gateway.bus.state import State
from gateway.bus.work import Work

__all__ = ["Bus"]


class Bus(Protocol):
    """Tells the other gateways what this one has put on the engines, and hears it of them.

    Everything runs in the thread of one event loop. `share` and `insert` neither block nor fail:
    while nobody can be told, values are merged and what is too much is dropped and counted.
    `peers` and `state` are the bus's own, for others to read; `peers.take_*` are for the Sharer.
    `now_s` is `time.monotonic()`.
    """

    alone: bool
    """There are no others: nobody has to call anything."""
    peers: Peers
    state: State

    def share(self, changes: Mapping[int, Work], now_s: float) -> None:
        """Endpoint hash -> all that stands there now, of those where it changed. Call it every
        10-20 ms, without changes too: it is what drives the bus."""
        ...

    def insert(self, endpoint: int, blocks: bytes) -> None:
        """A prompt of these blocks (8 bytes each, little-endian) goes to an endpoint."""
        ...

    async def close(self) -> None:
        """Leave; the others forget us within 3 s. The last call."""
        ...
