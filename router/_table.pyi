from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import TypedDict

class State(IntEnum):
    EMPTY = 0
    UNKNOWN = 1
    READY = 2
    TRIAL = 3
    OPEN = 4
    DRAINING = 5
    ASLEEP = 6

DYING: int

Work = tuple[int, int, float, float, float, int, int]

class Load(TypedDict):
    in_flight: int
    producing: int
    failures_in_row: int
    dials_in_row: int
    last_event_s: float
    begun: int
    successes: int

class Table:
    n_workers: int
    n_own: int
    def __init__(
        self, memory: memoryview | bytearray, n_workers: int, n_own: int | None = None
    ) -> None: ...
    def set_common(self, scale: float, doubt: float) -> None: ...
    @staticmethod
    def size(n_workers: int) -> int: ...
    def set_row(
        self,
        slot: int,
        *,
        state: State | int | None = None,
        share: float | None = None,
        generation: int | None = None,
        full: bool | None = None,
        overloaded: bool | None = None,
        max_in_flight: int | None = None,
        missing: float | None = None,
        labels: int | None = None,
        identity: int | None = None,
        max_loras: int | None = None,
        profile: Sequence[float] | None = None,
    ) -> None: ...
    def row(self, slot: int) -> tuple[State, float, int]: ...
    def load(self, slot: int) -> Load: ...
    def hits(self, slot: int) -> tuple[float, float]: ...
    def profile(self, slot: int) -> dict[str, float]: ...
    def standing(self, slot: int, now_s: float) -> dict[str, float]: ...
    def work(self, worker: int, slot: int) -> Work: ...
    def set_work(self, worker: int, slot: int, work: Work) -> None: ...
    def set_held(
        self, worker: int, slot: int, noted_s: float, since_s: float, priority: int
    ) -> None: ...
    def troubled(self, slots: Iterable[int]) -> list[int]: ...
    def lose_worker(self, worker: int) -> None: ...
