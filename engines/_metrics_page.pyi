"""A Prometheus or OpenMetrics text page, read for a few wanted figures."""

from collections.abc import Iterable
from typing import Any

class PageScanner:
    def __init__(
        self, wanted: Iterable[tuple[str, tuple[tuple[str, str], ...], str, str]]
    ) -> None: ...
    def scan(self, page: bytes, start: int = 0) -> list[Any]: ...
