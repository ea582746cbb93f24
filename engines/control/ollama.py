"""Ollama: a model is loaded by the first request for it; asking without a prompt loads it alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engines.control.face import (
    YES,
    Able,
    Call,
    Capabilities,
    Done,
    Driver,
    ListedModel,
    ModelState,
    Pause,
    Refused,
    Reply,
    Talk,
    expect,
    no_options,
    said,
)

__all__ = ["OLLAMA"]

NO_ADAPTERS = Able(False, "Ollama makes adapters part of a model (`ollama create`)")
NO_SLEEP = Able(False, "Ollama does not sleep: unload its models")
FOREVER = -1
"""As `keep_alive`: until it is unloaded. The next request that names another time changes that."""


class OllamaDriver(Driver):
    """See Driver. Option of `load`: `keep_alive`, as Ollama takes it (seconds, or "5m")."""

    def discover(self) -> Talk[Capabilities]:
        yield from ()
        return Capabilities(YES, YES, NO_ADAPTERS, NO_ADAPTERS, NO_SLEEP, NO_SLEEP)

    def list_models(self) -> Talk[list[ListedModel]]:
        known = yield from self._names("/api/tags")
        loaded = yield from self._names("/api/ps")
        ready, rest = ModelState.READY, ModelState.UNLOADED
        return [ListedModel(name, ready if name in loaded else rest) for name in known]

    def load(self, model: str, options: Mapping[str, Any]) -> Talk[Done]:
        keep = _keep_alive(options)
        name, is_loaded = yield from self._find(model)
        if is_loaded and not options:
            return Done(False, f"'{name}' is loaded already")
        yield from self._touch(name, keep)
        return Done(True, f"'{name}' is loaded", forgets=not is_loaded)

    def unload(self, model: str, options: Mapping[str, Any]) -> Talk[Done]:
        no_options(options)
        name, is_loaded = yield from self._find(model)
        if not is_loaded:
            return Done(False, f"'{name}' is not loaded")
        yield from self._touch(name, 0)
        while name in (yield from self._names("/api/ps")):
            yield Pause()
        return Done(True, f"'{name}' is unloaded", forgets=True)

    def _names(self, path: str) -> Talk[list[str]]:
        reply = yield Call("GET", path)
        expect(reply, "it does not list its models")
        answer = reply.json
        entries = answer.get("models") if isinstance(answer, dict) else None
        listed = entries if isinstance(entries, list) else []
        found = [one.get("name") for one in listed if isinstance(one, dict)]
        return [name for name in found if isinstance(name, str)]

    def _find(self, model: str) -> Talk[tuple[str, bool]]:
        """Its full name, and whether it is loaded. Refused: it is not there."""
        name = model if ":" in model.rpartition("/")[2] else f"{model}:latest"
        if name not in (yield from self._names("/api/tags")):
            raise Refused(404, f"it has no model '{name}': `ollama pull {model}` gets it")
        return name, name in (yield from self._names("/api/ps"))

    def _touch(self, name: str, keep_alive: Any) -> Talk[None]:
        body = {"model": name, "keep_alive": keep_alive, "stream": False}
        reply = yield Call("POST", "/api/generate", body, changes=True)
        if reply.status == 400 and _embeds_only(reply):
            body = {"model": name, "keep_alive": keep_alive, "input": []}
            reply = yield Call("POST", "/api/embed", body, changes=True)
        expect(reply, f"'{name}' stays as it was")


def _embeds_only(reply: Reply) -> bool:
    return "does not support generate" in said(reply)


def _keep_alive(options: Mapping[str, Any]) -> Any:
    for name, value in options.items():
        if name != "keep_alive" or not isinstance(value, int | float | str):
            raise Refused(400, f"unknown option '{name}'; there is keep_alive (seconds, or '5m')")
    return options.get("keep_alive", FOREVER)


OLLAMA = OllamaDriver("Ollama")
