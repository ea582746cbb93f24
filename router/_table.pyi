from collections.abc import Sequence
from enum import IntEnum
from typing import TypedDict

class State(IntEnum):
    EMPTY = 0
    UNKNOWN = 1
    READY = 2
    TRIAL = 3
    OPEN = 4
    DRAINING = 5

DYING: int

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
    def __init__(self, memory: memoryview | bytearray, n_workers: int) -> None: ...
    @staticmethod
    def size(n_workers: int) -> int: ...
    def set_row(
        self,
        slot: int,
        *,
        state: State | int | None = None,
        share: float | None = None,
        generation: int | None = None,
    ) -> None: ...
    def row(self, slot: int) -> tuple[State, float, int]: ...
    def load(self, slot: int) -> Load: ...
    def troubled(self) -> list[tuple[int, int, int]]: ...
    def lose_worker(self, worker: int) -> None: ...

class Policy:
    name: str
    def __init__(self, name: str, seed: int) -> None: ...
    def choose(
        self, table: Table, slots: Sequence[int], tried: Sequence[int] = (), now_s: float = 0.0
    ) -> int | None: ...
