"""Between a load table and the bus: tells others the own columns, writes theirs into the last."""

from collections.abc import Callable, Mapping
from typing import Protocol

from gateway.bus._columns import OwnColumns
from gateway.bus.bus import Bus
from gateway.bus.peers import EXPIRY_S
from gateway.bus.work import NOTHING, Work

__all__ = ["Columns", "Sharer"]

MAX_INT32 = 2**31 - 1


class Columns(Protocol):
    """What is used here of a `router.Table` (it must be one)."""

    def set_work(self, worker: int, slot: int, work: Work) -> None:
        """Write a cell."""
        ...


class Sharer:
    """Runs in the control process's event loop; no call blocks. Sole writer of the last column.

    The table has a column per worker and one more, the last, for the peers.

    `places` gives endpoint hash -> slot of all endpoints: the same object as long as nothing
    changed, another one when something did. `on_insert` gets (slot, blocks) of prompts that peers
    sent to an endpoint we have too. `gateways`: how many there should be; 0: as many as are seen.
    """

    def __init__(
        self,
        table: Columns,
        bus: Bus,
        places: Callable[[], Mapping[int, int]],
        on_insert: Callable[[int, bytes], None],
        gateways: int = 0,
    ) -> None:
        self._table = table
        self._bus = bus
        self._get_places = places
        self._on_insert = on_insert
        self._expected = gateways
        self._seen = 1
        self._places: Mapping[int, int] = {}
        self._endpoints: dict[int, int] = {}
        self._own = OwnColumns(table)

    def tick(self, now_s: float) -> None:
        """One exchange; call it every 20 ms with `time.monotonic()`."""
        bus = self._bus
        if bus.alone:
            return
        changes: dict[int, Work] = {}
        places = self._get_places()
        if places is not self._places:
            self._move(places, changes, now_s)
        for slot, work in self._own.changed(now_s):
            endpoint = self._endpoints.get(slot)
            if endpoint is not None:
                changes[endpoint] = work
        bus.share(changes, now_s)
        for endpoint, work in bus.peers.take_sums(now_s).items():
            if endpoint in places:
                self._write(places[endpoint], work)
        for insert in bus.peers.take_inserts():
            if insert.endpoint in places:
                self._on_insert(places[insert.endpoint], insert.blocks)
        self._count(now_s)

    def insert(self, slot: int, blocks: bytes) -> None:
        """A worker sent a prompt of these blocks (8 bytes each, little-endian) to a slot."""
        endpoint = self._endpoints.get(slot)
        if endpoint is not None:
            self._bus.insert(endpoint, blocks)

    def n_gateways(self) -> int:
        """Gateways that share the engines, this one included, as last known for sure."""
        return self._seen

    def scale(self, now_s: float) -> float:
        """What own load is to be multiplied by, to stand for that of all gateways.

        1.0 while peers' load is in the table, and when there are none. Else, without a bus to
        hear of them, as many as there were: they go on, and balance as we do.
        """
        if self._bus.alone or len(self._bus.peers) or self._is_settled(now_s):
            return 1.0
        return float(self._expected or self._seen)

    def doubt_s(self, now_s: float) -> float:
        """The age of what we know of peers; 0.0: there are none.

        The router's share of near-ties that it decides by chance is min(0.3, 0.3 * doubt_s).
        """
        bus = self._bus
        age_s = bus.peers.age_s(now_s)
        return age_s if bus.alone or bus.state.connected else max(age_s, now_s - bus.state.since_s)

    def _is_settled(self, now_s: float) -> bool:
        """Whether every living peer must have been heard by now."""
        state = self._bus.state
        return state.connected and now_s - state.since_s >= EXPIRY_S

    def _count(self, now_s: float) -> None:
        # Peers vanish from us too when it is we who are cut off: fewer are believed only while
        # the bus is known to work.
        found = 1 + len(self._bus.peers)
        if found > self._seen or self._is_settled(now_s):
            self._seen = found

    def _move(self, places: Mapping[int, int], changes: dict[int, Work], now_s: float) -> None:
        """Endpoints came, went or changed slots."""
        for endpoint, slot in self._places.items():
            if places.get(endpoint) != slot:
                self._write(slot, NOTHING)
                changes[endpoint] = NOTHING
        for endpoint, slot in places.items():
            if self._places.get(endpoint) != slot:
                self._own.forget(slot)
                self._write(slot, self._bus.peers.sum(endpoint, now_s))
        self._places = places
        self._endpoints = {slot: endpoint for endpoint, slot in places.items()}

    def _write(self, slot: int, work: Work) -> None:
        if work[0] > MAX_INT32 or work[1] > MAX_INT32:  # the cell's are 32 bits
            work = (min(work[0], MAX_INT32), min(work[1], MAX_INT32), *work[2:])
        self._table.set_work(self._own.n_own, slot, work)
