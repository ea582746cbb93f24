"""What the other gateways have put on the engines, from whatever of their messages arrived."""

from dataclasses import dataclass, field
from typing import Any

from gateway.bus.frame import Delta, Insert, Message, Sender, Vector, work_of
from gateway.bus.work import NOTHING, Work, total

__all__ = ["EXPIRY_S", "MAX_PEERS", "Peers"]

EXPIRY_S = 2.9
"""Silence after which a gateway is gone. With a message's way and a tick below 3 s: what it had
asked of the engines is cancelled or done by somebody else."""
ASK_S = 0.1
"""Between two readings of one vector; it is written every 0.5 s."""
MAX_PEERS = 256
MAX_EARLY = 1024
"""Messages remembered from behind a gap: 20 s of them."""
MAX_ENDPOINTS = 4096
"""Per peer: four times what a gateway can have at once."""
MAX_BLOCKS = 1 << 16
"""Block hashes that wait for the next `take_inserts`."""


@dataclass(slots=True)
class _Peer:
    """One incarnation. It begins with nothing, at number 0."""

    sender: Sender
    heard_s: float
    whole_s: float
    """When it was last known completely."""
    works: dict[int, Work] = field(default_factory=dict)
    complete: int = 0
    """All messages up to this one are in `works`."""
    newest: int = 0
    """The highest number heard of."""
    early: set[int] = field(default_factory=set)
    """Applied, though some before them are missing."""
    stamps: dict[int, int] = field(default_factory=dict)
    """Endpoint -> number of the early message that set it."""
    asked_s: float = -1.0e9

    @property
    def is_whole(self) -> bool:
        return self.complete >= self.newest


class Peers:
    """The other gateways, each by its name. Pure: no I/O, no clock; `now_s` never runs back.

    However messages are lost, doubled or reordered: per name one incarnation counts, and of each
    endpoint one of its values, the latest that arrived. Once a peer's vector or all messages up
    to its newest arrived, its values are exactly those of then.
    """

    def __init__(self, own_name: str = "") -> None:
        self.gaps = 0
        """Times that a message was missing."""
        self.stale = 0
        """Messages that came twice, or from an incarnation that is over."""
        self.namesakes = 0
        """Messages of another gateway with our name: give each its own."""
        self.refused = 0
        """Messages or cells beyond the bounds."""
        self.dropped_blocks = 0
        self._own_name = own_name
        self._peers: dict[str, _Peer] = {}
        self._dirty: set[int] = set()
        self._inserts: list[Insert] = []
        self._n_blocks = 0

    def __len__(self) -> int:
        return len(self._peers)

    def apply(self, message: Message, now_s: float) -> None:
        """Take a message in. A vector is no sign of life: it outlives who wrote it."""
        peer = self._speaker(message, now_s)
        if peer is None:
            return
        if isinstance(message, Vector):
            if message.seq > peer.complete:
                self._replace(peer, message, now_s)
            return
        peer.heard_s = now_s
        was_whole = peer.is_whole
        peer.newest = max(peer.newest, message.seq)
        if isinstance(message, Delta):
            self._merge(peer, message, now_s)
        if peer.is_whole:
            peer.whole_s = now_s
        elif was_whole and peer.complete:
            self.gaps += 1

    def wanted(self, now_s: float) -> list[str]:
        """Names of those whose vector would help; each at most every ASK_S."""
        found = []
        for name, peer in self._peers.items():
            if not peer.is_whole and now_s - peer.asked_s >= ASK_S:
                peer.asked_s = now_s
                found.append(name)
        return found

    def expire(self, now_s: float) -> None:
        """Forget who has been silent for EXPIRY_S."""
        for name, peer in list(self._peers.items()):
            if now_s - peer.heard_s > EXPIRY_S:
                self._dirty.update(peer.works)
                del self._peers[name]

    def sum(self, endpoint: int, now_s: float) -> Work:
        """What all of them have put on an endpoint."""
        works = [
            work for peer in self._peers.values() if (work := peer.works.get(endpoint)) is not None
        ]
        return total(works, now_s)

    def take_sums(self, now_s: float) -> dict[int, Work]:
        """The sums that may have changed since the last call, by endpoint."""
        self.expire(now_s)
        dirty, self._dirty = self._dirty, set()
        return {endpoint: self.sum(endpoint, now_s) for endpoint in dirty}

    def take_inserts(self) -> list[Insert]:
        """Inserts since the last call, in the order of their arrival."""
        taken, self._inserts, self._n_blocks = self._inserts, [], 0
        return taken

    def age_s(self, now_s: float) -> float:
        """Since when somebody's load may have changed without our knowing; 0.0: no peers."""
        return max((now_s - peer.whole_s for peer in self._peers.values()), default=0.0)

    def describe(self, now_s: float) -> list[dict[str, Any]]:
        """One entry per peer, for people."""
        return [
            {
                "name": name,
                "incarnation": f"{peer.sender.incarnation:016x}",
                "born_ms": peer.sender.born_ms,
                "age_s": round(now_s - peer.heard_s, 3),
                "complete": peer.is_whole,
                "endpoints": len(peer.works),
                "in_flight": sum(work[0] for work in peer.works.values()),
            }
            for name, peer in sorted(self._peers.items())
        ]

    def _speaker(self, message: Message, now_s: float) -> _Peer | None:
        """Whose message it is; None: it does not count."""
        sender = message.sender
        if sender.name == self._own_name:
            self.namesakes += 1
            return None
        peer = self._peers.get(sender.name)
        if peer is not None and peer.sender == sender:
            return peer
        if peer is not None and _order(sender) < _order(peer.sender):
            self.stale += 1
            return None
        if isinstance(message, Vector):
            return None  # who wrote it is gone, or will be heard
        if peer is not None:
            self._dirty.update(peer.works)
        elif len(self._peers) >= MAX_PEERS:
            self.refused += 1
            return None
        # As old as can be until it is known completely.
        peer = self._peers[sender.name] = _Peer(sender, now_s, now_s - EXPIRY_S)
        return peer

    def _merge(self, peer: _Peer, delta: Delta, now_s: float) -> None:
        seq = delta.seq
        if seq <= peer.complete or seq in peer.early:
            self.stale += 1
            return
        is_next = seq == peer.complete + 1
        for cell in delta.cells:
            endpoint, work = cell.endpoint, work_of(cell, now_s)
            if peer.stamps and peer.stamps.get(endpoint, 0) > seq:
                continue
            if is_next and work == NOTHING:
                peer.works.pop(endpoint, None)
            elif endpoint not in peer.works and len(peer.works) >= MAX_ENDPOINTS:
                self.refused += 1
                continue
            else:
                peer.works[endpoint] = work
            self._dirty.add(endpoint)
            if not is_next:
                peer.stamps[endpoint] = seq
        if is_next:
            peer.complete = seq
            self._close(peer)
        else:
            if len(peer.early) >= MAX_EARLY:
                peer.early.clear()  # they count as missing; a vector will bring them back
            peer.early.add(seq)
        self._keep(delta.inserts)

    def _replace(self, peer: _Peer, vector: Vector, now_s: float) -> None:
        """By a vector that knows more, but for what later messages have set."""
        later = {e: seq for e, seq in peer.stamps.items() if seq > vector.seq}
        works = {cell.endpoint: work_of(cell, now_s) for cell in vector.cells}
        works.update((e, peer.works[e]) for e in later)
        self._dirty.update(peer.works, works)
        peer.works, peer.stamps = works, later
        peer.complete = vector.seq
        peer.newest = max(peer.newest, vector.seq)
        self._close(peer)
        if peer.is_whole:
            peer.whole_s = peer.heard_s

    def _close(self, peer: _Peer) -> None:
        """Go on to the next gap; let go of what only a message from before it would need."""
        if peer.early:
            while peer.complete + 1 in peer.early:
                peer.complete += 1
            peer.early = {seq for seq in peer.early if seq > peer.complete}
        if peer.stamps:
            peer.stamps = {e: seq for e, seq in peer.stamps.items() if seq > peer.complete}
            for endpoint in [e for e, work in peer.works.items() if work == NOTHING]:
                if endpoint not in peer.stamps:
                    del peer.works[endpoint]

    def _keep(self, inserts: list[Insert]) -> None:
        for insert in inserts:
            n = len(insert.blocks) // 8
            if self._n_blocks + n > MAX_BLOCKS:
                self.dropped_blocks += n
                continue
            self._n_blocks += n
            self._inserts.append(insert)


def _order(sender: Sender) -> tuple[int, int]:
    return sender.born_ms, sender.incarnation
