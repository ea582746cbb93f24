"""Which path is whose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from engines.sim.admin import Admin
from engines.sim.errors import Detail
from engines.sim.generate import Generator
from engines.sim.http import Request
from engines.sim.plain import Plain
from engines.sim.response import Response
from engines.sim.responses import ResponseStore
from engines.sim.sleep import SleepRoutes

if TYPE_CHECKING:
    from engines.sim.server import SimEngine

__all__ = ["Routes"]

Handler = Callable[[Request, Response], None]


class Routes:
    """The routes of one start of an engine; responses stored here are lost with it."""

    def __init__(self, engine: SimEngine) -> None:
        self._engine = engine
        self._generator = Generator(engine.config, engine.models, ResponseStore(), engine)
        self._plain = Plain(engine.config, engine.models, self._generator)
        self._table = self._paths(Admin(engine))

    def route(self, request: Request, response: Response) -> None:
        """Answer, now or through an exchange. Raises ApiError for what is to be refused."""
        methods = self._table.get(request.path) or self._with_name(request.path)
        if methods is None:
            raise Detail(404, "Not Found")
        if request.method not in methods:
            # HEAD as well: FastAPI does not add it to a GET route.
            raise Detail(405, "Method Not Allowed", (("allow", ", ".join(methods)),))
        methods[request.method](request, response)

    def _with_name(self, path: str) -> Mapping[str, Handler] | None:
        match path.strip("/").split("/"):
            case ["v1", "models", *name] if name:
                return {"GET": lambda _, response: self._plain.model(response, "/".join(name))}
            case ["v1", "responses", id]:
                return {"GET": lambda _, response: self._generator.retrieve(response, id)}
            case ["v1", "responses", id, "cancel"]:
                return {"POST": lambda _, response: self._generator.cancel(response, id)}
        return None

    def _paths(self, admin: Admin) -> Mapping[str, Mapping[str, Handler]]:
        generator, plain = self._generator, self._plain
        config = self._engine.config
        rerank, score = {"POST": plain.rerank}, {"POST": plain.score}
        return {
            "/v1/chat/completions": {"POST": generator.chat},
            "/v1/completions": {"POST": generator.completions},
            "/v1/responses": {"POST": generator.responses},
            "/v1/messages": {"POST": generator.messages},
            "/v1/messages/count_tokens": {"POST": generator.count_tokens},
            "/v1/models": {"GET": plain.list_models},
            "/v1/embeddings": {"POST": plain.embeddings},
            "/v1/rerank": rerank,
            "/v2/rerank": rerank,
            "/rerank": rerank,
            "/v1/score": score,
            "/score": score,
            "/v1/audio/transcriptions": {"POST": plain.transcriptions},
            **(self._adapter_paths() if config.runtime_adapters else {}),
            "/tokenize": {"POST": plain.tokenize},
            "/detokenize": {"POST": plain.detokenize},
            "/version": {"GET": plain.version},
            "/health": {"GET": admin.health},
            "/ping": {"GET": admin.health, "POST": admin.health},
            "/load": {"GET": admin.load},
            "/metrics": {"GET": admin.metrics},
            "/kv_event_sources": {"GET": admin.kv_event_sources},
            **(_sleep_paths(SleepRoutes(self._engine)) if config.dev_mode else {}),
            "/pause": {"POST": admin.pause},
            "/resume": {"POST": admin.resume},
            "/is_paused": {"GET": admin.is_paused},
            "/reset_prefix_cache": {"POST": admin.reset_prefix_cache},
        }

    def _adapter_paths(self) -> Mapping[str, Mapping[str, Handler]]:
        return {
            "/v1/load_lora_adapter": {"POST": self._plain.load_adapter},
            "/v1/unload_lora_adapter": {"POST": self._plain.unload_adapter},
        }


def _sleep_paths(sleep: SleepRoutes) -> Mapping[str, Mapping[str, Handler]]:
    return {
        "/sleep": {"POST": sleep.sleep},
        "/wake_up": {"POST": sleep.wake_up},
        "/is_sleeping": {"GET": sleep.is_sleeping},
        "/collective_rpc": {"POST": sleep.collective_rpc},
    }
