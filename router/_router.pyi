from array import array
from collections.abc import Sequence

from router._adapters import Adapters
from router._booking import Booker
from router._demand import Demand
from router._index import Index
from router._policy import Policy
from router._sessions import Sessions
from router._table import Table

class Router:
    table: Table
    booker: Booker
    policy: Policy
    reads_prompts: bool
    def __init__(
        self,
        table: Table,
        worker: int,
        policy: Policy,
        index: Index | None,
        scale: float = 1.0,
        booker: Booker | None = None,
        sessions: Sessions | None = None,
        adapters: Adapters | None = None,
    ) -> None: ...
    def forget_recent(self) -> None: ...
    def send(
        self,
        demand: Demand,
        slots: Sequence[int],
        keys: array[int],
        n_tokens: float,
        block_tokens: float,
        now_s: float,
        *,
        is_seen: bool = True,
        doubt: float = 0.0,
        out_tokens: float = 0.0,
        session: int = 0,
        is_bound: bool = False,
        home_s: float = 0.0,
        adapter: str = "",
        labels: int = 0,
        max_wait_s: float = 0.0,
        minds_others: bool = False,
        since_s: float = 0.0,
        priority: int = 0,
    ) -> Dispatch | None: ...

class Dispatch:
    slot: int
    hit_tokens: float
    def first_token(self, now_s: float) -> None: ...
    def grow(self, n: int) -> None: ...
    def release(self, now_s: float) -> None: ...
    def found(self, cached_tokens: float) -> None: ...
