"""How the bus fares: for the admin API and metrics."""

from dataclasses import dataclass
from typing import Any

from gateway.bus.peers import Peers

__all__ = ["State"]


@dataclass(slots=True)
class State:
    """Written by the bus alone. Counts are since the start, bytes those of frames."""

    kind: str
    """'none' or 'redis'."""
    where: str = ""
    """host:port/db, without credentials."""
    connected: bool = False
    """What was sent comes back: both ways are open."""
    since_s: float = 0.0
    """Monotonic: since when it is connected, or is not."""
    why: str = ""
    """Why it is not."""
    connects: int = 0
    messages_out: int = 0
    messages_in: int = 0
    """Of others; own ones come back, and are not counted."""
    bytes_out: int = 0
    bytes_in: int = 0
    vectors_out: int = 0
    vectors_in: int = 0
    malformed: int = 0
    other_versions: int = 0
    dropped_blocks: int = 0
    """Block hashes that did not fit into our messages."""
    round_trip_s: float = 0.0
    """Of the last own message that came back."""

    def connect(self, now_s: float) -> None:
        """It is up, from now on."""
        self.connected, self.since_s, self.why = True, now_s, ""
        self.connects += 1

    def lose(self, now_s: float, why: str) -> None:
        """It is away; the first such call after it was up says since when."""
        if self.connected:
            self.connected, self.since_s = False, now_s
        self.why = why

    def describe(self, peers: Peers, now_s: float) -> dict[str, Any]:
        """All of it as plain data, with the peers."""
        return {
            "kind": self.kind,
            "where": self.where,
            "connected": self.connected,
            "since_s": round(now_s - self.since_s, 3),
            "why": self.why,
            "connects": self.connects,
            "messages_out": self.messages_out,
            "messages_in": self.messages_in,
            "bytes_out": self.bytes_out,
            "bytes_in": self.bytes_in,
            "vectors_out": self.vectors_out,
            "vectors_in": self.vectors_in,
            "malformed": self.malformed,
            "other_versions": self.other_versions,
            "round_trip_ms": round(1e3 * self.round_trip_s, 3),
            "dropped_blocks_out": self.dropped_blocks,
            "dropped_blocks_in": peers.dropped_blocks,
            "gaps": peers.gaps,
            "stale": peers.stale,
            "namesakes": peers.namesakes,
            "refused": peers.refused,
            "peers": peers.describe(now_s),
        }
