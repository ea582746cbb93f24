"""The servers of one test session: made when first asked for, reused, ended together.

A start costs half a minute to a minute and a half and 1.6 GB, so a test names what it needs and
gets servers that earlier tests left alive; only what is missing is started, all of it at once.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.vllm.server import (
    ADAPTERS,
    CACHING_ARGS,
    EMBED_ARGS,
    EMBEDDING_MODEL,
    GENERATE_ARGS,
    MODEL,
    Server,
)

# How long a server started with it lets running requests finish after SIGTERM.
GRACE_S = 60
PLAIN, GRACEFUL, EMBEDDING, CACHING = "plain", "graceful", "embedding", "caching"
_ARGS = {
    PLAIN: GENERATE_ARGS,
    GRACEFUL: [*GENERATE_ARGS, f"--shutdown-timeout={GRACE_S}"],
    EMBEDDING: EMBED_ARGS,
    CACHING: CACHING_ARGS,
}


class Fleet:
    """Not thread-safe; `stop` ends every server, also those a test has harmed.

    `caching_model`: that of caching servers, whose token ids can be made here; its adapters lie
    beside it.
    """

    def __init__(
        self, python: Path, model: Path, caching_model: Path, progress: Callable[[str], None]
    ) -> None:
        self.model = model
        self.caching_model = caching_model
        self._python = python
        self._progress = progress
        self._servers: dict[str, list[Server]] = {kind: [] for kind in _ARGS}

    def require(
        self, *, plain: int = 0, graceful: int = 0, embedding: int = 0, caching: int = 0
    ) -> list[Server]:
        """That many healthy servers of each kind, in this order."""
        wanted = {PLAIN: plain, GRACEFUL: graceful, EMBEDDING: embedding, CACHING: caching}
        chosen = {kind: self._healthy(kind)[:count] for kind, count in wanted.items()}
        fresh = [
            self._start(kind)
            for kind, count in wanted.items()
            for _ in range(count - len(chosen[kind]))
        ]
        for kind, server in fresh:
            server.wait_ready()
            self._progress(f"{server.name} is up after {server.start_s:.0f} s")
            chosen[kind].append(server)
        return [server for servers in chosen.values() for server in servers]

    def stop(self) -> None:
        for servers in self._servers.values():
            for server in servers:
                server.stop()

    def logs(self) -> list[str]:
        return [
            server.log_tail()
            for servers in self._servers.values()
            for server in servers
            if server.started
        ]

    def _healthy(self, kind: str) -> list[Server]:
        return [server for server in self._servers[kind] if not server.leaving and server.healthy()]

    def _start(self, kind: str) -> tuple[str, Server]:
        served = EMBEDDING_MODEL if kind == EMBEDDING else MODEL
        name = f"{kind}-{len(self._servers[kind])}"
        model, args = self.model, _ARGS[kind]
        if kind == CACHING:
            model = self.caching_model
            args = [*args, "--lora-modules", *(f"{a}={model.with_name(a)}" for a in ADAPTERS)]
        server = Server(self._python, model, name, args, served)
        if kind == CACHING:
            server.environment = {**server.environment, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
        self._servers[kind].append(server)
        self._progress(f"starting vLLM {name} on port {server.port}")
        server.start()
        return kind, server
