"""Triton: models come and go by its repository API, if it was started to let them.

Its index says where each model stands; a load blocks until it ends, an unload returns while
requests that run there still finish.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

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
    Unable,
    expect,
    said,
)
from engines.triton.kind import header_to_set

__all__ = ["TRITON"]

INDEX = "/v2/repository/index"
NO_SUCH_MODEL = "headgate-asks-whether-it-may"
"""Unloading what is not there changes nothing, and is refused where nothing may be changed."""
NO_CONTROL = (
    "Triton loads and unloads only if started with --model-control-mode=explicit (mode none, as on "
    "the first node of a multi-node TensorRT-LLM, and mode poll do not)"
)
NO_ADAPTERS = Able(False, "Triton's backends know their adapters from when a model is loaded")
NO_SLEEP = Able(False, "Triton does not sleep: unload its models")
LOAD_OPTIONS = "config, file:PATH (base64) and reload (true or false)"
STATES = {
    "READY": ModelState.READY,
    "LOADING": ModelState.LOADING,
    "UNLOADING": ModelState.UNLOADING,
}


class TritonDriver(Driver):
    """See Driver. Options of `load`: `config` (a mapping, or its JSON text) in place of the
    repository's own, `file:PATH` (base64) in place of its files, and `reload` (bool): let Triton
    look itself, for files that are new or have changed. Of `unload`: `dependents` (bool): an
    ensemble's steps go with it, also where another ensemble has them too."""

    def discover(self) -> Talk[Capabilities]:
        index = yield Call("POST", INDEX)
        if b'"LOADING"' in index.body:
            able = YES  # any further order would wait for the end of that load
        else:
            reply = yield Call("POST", f"/v2/repository/models/{NO_SUCH_MODEL}/unload")
            able = YES if reply.status == 200 else Able(False, _barred(reply))
        return Capabilities(able, able, NO_ADAPTERS, NO_ADAPTERS, NO_SLEEP, NO_SLEEP)

    def list_models(self) -> Talk[list[ListedModel]]:
        reply = yield Call("POST", INDEX)
        if reply.status in (401, 403):
            raise Unable(_barred(reply))
        expect(reply, "it does not list its models")
        listed = reply.json
        if not isinstance(listed, list):
            raise Refused(502, f"{INDEX} answers something that is no list of models")
        found: dict[str, ListedModel] = {}
        for entry in listed:
            if isinstance(entry, dict) and isinstance(name := entry.get("name"), str):
                found[name] = _better(found.get(name), _listed(name, entry))
        return list(found.values())

    def is_ready(self, model: str) -> Talk[bool]:
        # The server's own readiness is false while any model loads, and after any that failed.
        reply = yield Call("GET", f"/v2/models/{quote(model, safe='')}/ready")
        return reply.status == 200

    def load(self, model: str, options: Mapping[str, Any]) -> Talk[Done]:
        parameters = _load_parameters(options)
        anyway = bool(parameters or options.get("reload"))
        found = yield from self._settled(model)
        if not anyway:
            if found is None:
                raise Refused(404, f"there is no model '{model}' in its repository")
            if found.state is ModelState.READY:
                return Done(False, f"'{model}' is loaded already")
        yield from self._switch(model, "load", parameters)
        found = yield from self._settled(model)
        if found is None or found.state is not ModelState.READY:
            why = found.reason if found is not None else ""
            raise Refused(502, f"'{model}' was loaded and is not ready", why)
        return Done(True, f"'{model}' is loaded", forgets=True)

    def unload(self, model: str, options: Mapping[str, Any]) -> Talk[Done]:
        parameters = _unload_parameters(options)
        found = yield from self._settled(model)
        if found is None:
            return Done(False, f"there is no model '{model}' in its repository")
        if found.state is not ModelState.READY:
            return Done(False, f"'{model}' is not loaded")
        yield from self._switch(model, "unload", parameters)
        yield from self._settled(model)
        return Done(True, f"'{model}' is unloaded", forgets=True)

    def _settled(self, model: str) -> Talk[ListedModel | None]:
        """Where it stands, once it is neither being loaded nor unloaded; None: it is not known."""
        while True:
            listed = yield from self.list_models()
            found = next((one for one in listed if one.name == model), None)
            if found is None or found.state not in (ModelState.LOADING, ModelState.UNLOADING):
                return found
            yield Pause()

    def _switch(self, model: str, verb: str, parameters: Mapping[str, Any]) -> Talk[None]:
        path = f"/v2/repository/models/{quote(model, safe='')}/{verb}"
        body = {"parameters": parameters} if parameters else None
        reply = yield Call("POST", path, body, changes=True)
        if reply.status in (401, 403) or _is_uncontrolled(reply):
            raise Unable(_barred(reply))
        expect(reply, f"'{model}' could not be {verb}ed")


def _listed(name: str, entry: dict[str, Any]) -> ListedModel:
    reason = entry.get("reason")
    words = reason.strip() if isinstance(reason, str) else ""
    state = STATES.get(str(entry.get("state")))
    if state is None:
        # One that was never loaded has no state; "unloaded" is no failure.
        words = "" if words == "unloaded" else words
        state = ModelState.FAILED if words else ModelState.UNLOADED
    return ListedModel(name, state, words)


# Of a model's versions the one that is furthest on says how it stands.
_ORDER = (
    ModelState.READY,
    ModelState.LOADING,
    ModelState.UNLOADING,
    ModelState.FAILED,
    ModelState.UNLOADED,
)


def _better(one: ListedModel | None, other: ListedModel) -> ListedModel:
    if one is None or _ORDER.index(other.state) < _ORDER.index(one.state):
        return other
    return one


def _barred(reply: Reply) -> str:
    words = said(reply)
    if header := header_to_set(words):
        return f"its repository wants a header: {header} ({words})"
    return f"{NO_CONTROL} ({words})"


def _is_uncontrolled(reply: Reply) -> bool:
    return reply.status == 503 and "not allowed" in said(reply)


def _load_parameters(options: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name, value in options.items():
        if name == "config":
            found[name] = value if isinstance(value, str) else json.dumps(value)
        elif name.startswith("file:") and isinstance(value, str):
            found[name] = value
        elif name != "reload" or not isinstance(value, bool):
            raise Refused(400, f"option '{name}' is not taken so; there are {LOAD_OPTIONS}")
    return found


def _unload_parameters(options: Mapping[str, Any]) -> dict[str, bool]:
    for name, value in options.items():
        if name != "dependents" or not isinstance(value, bool):
            raise Refused(
                400, f"option '{name}' is not taken so; there is dependents (true or false)"
            )
    return {"unload_dependents": True} if options.get("dependents") else {}


TRITON = TritonDriver("Triton")
