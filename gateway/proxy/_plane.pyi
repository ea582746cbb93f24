import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from gateway import messages
from gateway._shared import Shared
from gateway.proxy._pool import Pool
from gateway.proxy.retry import Budget
from gateway.tokenizing import Tokenizing

def keep_freed_memory(n_bytes: int) -> None: ...

class Plane:
    # asyncio's and uvloop's loops alike.
    loop: Any
    column: int
    settings: messages.Settings
    budget: Budget
    access: list[Any]
    empty: asyncio.Event
    fetch_metrics: Callable[[], Awaitable[bytes]] | None
    change_repository: Callable[[bytes, bytes, bytes], Awaitable[tuple[int, bytes]]] | None
    tokenizing: Tokenizing | None
    on_made: Callable[[str, int, int, str], None] | None
    def __init__(
        self,
        loop: Any,
        shared: Shared,
        column: int,
        make_pool: Callable[[Plane, messages.Endpoint], Pool],
    ) -> None: ...
    def apply(self, fleet: messages.Fleet) -> None: ...
    @property
    def has_keys(self) -> bool: ...
    def tick(self) -> None: ...
    def condemn(self, slot: int, generation: int, why: str, hung: bool) -> None: ...
    def drain(self) -> None: ...
    def cut(self) -> None: ...
    def made(self, response: str, slot: int, generation: int, holder: str) -> None: ...
    def take_sent(self) -> bytes: ...
    def count_ids(self, how: str) -> None: ...
    def take_access(self) -> list[bytes]: ...
