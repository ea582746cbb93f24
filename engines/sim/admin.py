"""The routes of operators and probes: health, metrics, pause, cache reset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.sim.http import Request
from engines.sim.life import Life
from engines.sim.metrics import CONTENT_TYPE
from engines.sim.reply import compact
from engines.sim.response import Response

if TYPE_CHECKING:
    from engines.sim.server import SimEngine

__all__ = ["Admin"]


class Admin:
    """While asleep or paused an engine is healthy to all who ask, and new requests just wait:
    a real one does the same."""

    def __init__(self, engine: SimEngine) -> None:
        self._engine = engine

    def health(self, request: Request, response: Response) -> None:
        """`GET /health`: 200 unless the core is dead; a core that stands still is healthy."""
        response.send(503 if self._engine.life is Life.DYING else 200, b"", "")

    def load(self, request: Request, response: Response) -> None:
        """`GET /load`: requests being served."""
        response.send(200, compact({"server_load": len(self._engine.accounts.open)}))

    def metrics(self, request: Request, response: Response) -> None:
        """`GET /metrics`."""
        engine = self._engine
        response.send(200, engine.metrics.render(engine.core), CONTENT_TYPE)

    def kv_event_sources(self, request: Request, response: Response) -> None:
        """`GET /kv_event_sources`: by data-parallel rank, of which there is one."""
        kv = self._engine.kv
        response.send(200, compact({} if kv is None else {"0": kv.describe()}))

    def pause(self, request: Request, response: Response) -> None:
        """`POST /pause?mode=`: `keep` holds what runs until `/resume`, else it ends."""
        engine = self._engine
        if request.query.get("mode", ["abort"])[0] != "keep":
            engine.interrupt()
            if request.query.get("clear_cache", ["true"])[0] != "false":
                engine.forget_cache()
        engine.paused = True
        response.send(200, compact({"status": "paused"}))

    def resume(self, request: Request, response: Response) -> None:
        """`POST /resume`."""
        self._engine.paused = False
        self._engine.wake()
        response.send(200, compact({"status": "resumed"}))

    def is_paused(self, request: Request, response: Response) -> None:
        """`GET /is_paused`."""
        response.send(200, compact({"is_paused": self._engine.paused}))

    def reset_prefix_cache(self, request: Request, response: Response) -> None:
        """`POST /reset_prefix_cache`: without effect while anything runs."""
        response.send(200, compact({"success": self._engine.forget_cache()}))
