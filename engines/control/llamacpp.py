"""llama.cpp's server: started without a model it is a router, which loads and unloads them."""

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
    Talk,
    Unable,
    expect,
    no_options,
)

__all__ = ["LLAMACPP"]

ONE_MODEL = Able(
    False, "llama-server loads and unloads models only if it was started without one (router mode)"
)
NO_ADAPTERS = Able(False, "llama-server knows the adapters that it was started with")
NO_SLEEP = Able(False, "llama-server sleeps by itself (--sleep-idle-seconds)")
STATES = {
    "loaded": ModelState.READY,
    "loading": ModelState.LOADING,
    "downloading": ModelState.LOADING,
    # the next request wakes it
    "sleeping": ModelState.READY,
}


class LlamacppDriver(Driver):
    """See Driver."""

    def discover(self) -> Talk[Capabilities]:
        able = YES if (yield from self._states()) is not None else ONE_MODEL
        return Capabilities(able, able, NO_ADAPTERS, NO_ADAPTERS, NO_SLEEP, NO_SLEEP)

    def list_models(self) -> Talk[list[ListedModel]]:
        states = yield from self._states()
        if states is None:
            return (yield from Driver.list_models(self))
        return list(states.values())

    def load(self, model: str, options: Mapping[str, Any]) -> Talk[Done]:
        no_options(options)
        found = yield from self._settled(model)
        if found.state is ModelState.READY:
            return Done(False, f"'{model}' is loaded already")
        yield from self._switch("/models/load", model)
        yield Pause()
        found = yield from self._settled(model)
        if found.state is not ModelState.READY:
            raise Refused(502, f"'{model}' was to be loaded and is not ready", found.reason)
        return Done(True, f"'{model}' is loaded", forgets=True)

    def unload(self, model: str, options: Mapping[str, Any]) -> Talk[Done]:
        no_options(options)
        found = yield from self._settled(model)
        if found.state is not ModelState.READY:
            return Done(False, f"'{model}' is not loaded")
        yield from self._switch("/models/unload", model)
        return Done(True, f"'{model}' is unloaded", forgets=True)

    def _states(self) -> Talk[dict[str, ListedModel] | None]:
        """By name; None: it is no router."""
        reply = yield Call("GET", "/models")
        answer = reply.json if reply.status == 200 else None
        entries = answer.get("data") if isinstance(answer, dict) else None
        found = {}
        for entry in entries if isinstance(entries, list) else []:
            status = entry.get("status") if isinstance(entry, dict) else None
            if isinstance(status, dict) and isinstance(name := entry.get("id"), str):
                found[name] = _listed(name, status)
        return found or None

    def _settled(self, model: str) -> Talk[ListedModel]:
        while True:
            states = yield from self._states()
            if states is None:
                raise Unable(ONE_MODEL.why)
            if model not in states:
                raise Refused(404, f"it has no model '{model}'")
            if states[model].state is not ModelState.LOADING:
                return states[model]
            yield Pause()

    def _switch(self, path: str, model: str) -> Talk[None]:
        reply = yield Call("POST", path, {"model": model}, changes=True)
        expect(reply, f"'{model}' stays as it was")


def _listed(name: str, status: Mapping[str, Any]) -> ListedModel:
    state = STATES.get(str(status.get("value")), ModelState.UNLOADED)
    if state is ModelState.UNLOADED and status.get("failed"):
        return ListedModel(name, ModelState.FAILED, f"exit code {status.get('exit_code')}")
    return ListedModel(name, state)


LLAMACPP = LlamacppDriver("llama.cpp")
