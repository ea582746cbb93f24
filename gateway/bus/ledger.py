"""What this gateway has put on the engines, and what of that the others have not been told."""

from collections.abc import Mapping

from gateway.bus.frame import (
    MAX_CELLS,
    MAX_INSERT_BLOCKS,
    Beat,
    Delta,
    Insert,
    Sender,
    Vector,
    cell_of,
)
from gateway.bus.work import Work, is_nothing

__all__ = ["Ledger"]


class Ledger:
    """Makes the messages of one incarnation. Pure: no I/O, no clock.

    What is not taken is merged, not queued: as long as nobody can be told, it holds a value for
    each of some thousand endpoints and MAX_INSERT_BLOCKS block hashes, no more.
    """

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self.seq = 0
        """Of the last Delta taken."""
        self.dropped_blocks = 0
        """Block hashes that were more than a message takes."""
        self._works: dict[int, Work] = {}
        self._untold: dict[int, Work] = {}
        self._inserts: list[Insert] = []
        self._n_blocks = 0

    def put(self, changes: Mapping[int, Work], now_s: float) -> None:
        """These endpoints have these values now."""
        self._works.update(changes)
        self._untold.update(changes)
        if len(self._untold) > MAX_CELLS:
            # More than a message takes: it counts as lost, and the others read the vector.
            self._untold.clear()
            self.seq += 1
        if len(self._works) > 2 * MAX_CELLS:
            self._drop_idle(now_s)

    def insert(self, endpoint: int, blocks: bytes) -> None:
        """A prompt of these block hashes went there; the first blocks matter most."""
        n = len(blocks) // 8
        taken = min(n, MAX_INSERT_BLOCKS - self._n_blocks)
        self.dropped_blocks += n - taken
        if taken > 0:
            self._n_blocks += taken
            self._inserts.append(Insert(endpoint, blocks[: 8 * taken]))

    def take(self, now_s: float) -> Delta | None:
        """What changed since the last call, as one message; None: nothing did."""
        if not self._untold and not self._inserts:
            return None
        cells = [cell_of(endpoint, work, now_s) for endpoint, work in self._untold.items()]
        self._untold = {}
        self.seq += 1
        delta = Delta(self.sender, self.seq, cells, self._inserts)
        self._inserts = []
        self._n_blocks = 0
        return delta

    def beat(self) -> Beat:
        """The sign of life."""
        return Beat(self.sender, self.seq)

    def vector(self, now_s: float) -> Vector:
        """Everything. What no Delta has told yet may be in it, and is told again."""
        self._drop_idle(now_s)
        told = list(self._works.items())[:MAX_CELLS]
        return Vector(self.sender, self.seq, [cell_of(e, work, now_s) for e, work in told])

    def _drop_idle(self, now_s: float) -> None:
        self._works = {e: work for e, work in self._works.items() if not is_nothing(work, now_s)}
