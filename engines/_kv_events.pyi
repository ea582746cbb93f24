from router._reported import ReportedCache

class KvEvents:
    model: str
    cache: ReportedCache
    others: ReportedCache | None
    block_tokens: int
    n_batches: int
    n_stored: int
    n_removed: int
    n_clears: int
    n_skipped: int
    def __init__(
        self, model: str, cache: ReportedCache, others: ReportedCache | None = None
    ) -> None: ...
    def apply(self, payload: bytes) -> int | None: ...
    def forget(self) -> None: ...

def stamp_of(payload: bytes) -> float: ...
