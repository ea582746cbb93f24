from collections.abc import Sequence
from typing import Any

from router._table import Table

class Policy:
    name: str
    reads_prompts: bool
    counts_seconds: bool
    terms: tuple[str, ...]
    def __init__(self, name: str, seed: int = 0) -> None: ...
    def choose(
        self, table: Table, slots: Sequence[int], tried: Sequence[int] = (), **ask: Any
    ) -> int | None: ...
    def explain(
        self, table: Table, slots: Sequence[int], tried: Sequence[int] = (), **ask: Any
    ) -> dict[int, dict[str, Any]]: ...
