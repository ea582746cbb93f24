"""vLLM: adapters and sleep. Its base model is what it was started with.

What a server was started with decides which routes it has, so they are asked for: GET of a route
that takes POST is 405 where it is there, and 404 where it is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
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
    Refused,
    Reply,
    Talk,
    Unable,
    expect,
    route_is_there,
    said,
)
from engines.load import LoadReader
from engines.vllm import VLLM as HABITS

__all__ = ["VLLM"]

LOAD_ADAPTER = "/v1/load_lora_adapter"
UNLOAD_ADAPTER = "/v1/unload_lora_adapter"
ONE_MODEL = Able(
    False,
    "vLLM serves the model it was started with: put it to sleep and wake it, or start another",
)
NO_ADAPTERS = (
    "vLLM loads adapters at run time only if started with --enable-lora and "
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"
)
NO_SLEEP = (
    "vLLM sleeps only if started with --enable-sleep-mode and VLLM_SERVER_DEV_MODE=1 (which opens "
    "other routes too: not for a network with clients)"
)
LOADS = LoadReader(HABITS.metrics)
LEVELS = {"weights_offloaded": 1, "discard_all": 2}
DISCARDED = 2


class VllmDriver(Driver):
    """See Driver."""

    tells_sleep = True

    def discover(self) -> Talk[Capabilities]:
        there = route_is_there((yield Call("GET", LOAD_ADAPTER)))
        adapters = YES if there else Able(False, NO_ADAPTERS)
        sleep = Able(False, NO_SLEEP) if (yield from self.is_asleep()) is None else YES
        levels = (0, 1, 2) if sleep else ()
        return Capabilities(
            ONE_MODEL, ONE_MODEL, adapters, adapters, sleep, sleep, sleep_levels=levels
        )

    def list_models(self) -> Talk[list[ListedModel]]:
        listed = yield from Driver.list_models(self)
        if not (yield from self.is_asleep()):
            return listed
        return [replace(one, state=ModelState.ASLEEP) for one in listed]

    def is_asleep(self) -> Talk[bool | None]:
        reply = yield Call("GET", "/is_sleeping")
        answer = reply.json if reply.status == 200 else None
        asleep = answer.get("is_sleeping") if isinstance(answer, dict) else None
        return asleep if isinstance(asleep, bool) else None

    def load_adapter(self, name: str, path: str) -> Talk[Done]:
        found = yield from self._adapter(name)
        if found is not None and found.path == path:
            return Done(False, f"adapter '{name}' is loaded already, from {path}")
        body: dict[str, Any] = {"lora_name": name, "lora_path": path}
        if found is not None:
            body["load_inplace"] = True
        reply = yield from self._switch(LOAD_ADAPTER, body)
        expect(reply, f"adapter '{name}' is not loaded")
        return Done(True, said(reply), forgets=found is not None)

    def unload_adapter(self, name: str) -> Talk[Done]:
        if (yield from self._adapter(name)) is None:
            return Done(False, f"adapter '{name}' is not loaded")
        reply = yield from self._switch(UNLOAD_ADAPTER, {"lora_name": name})
        expect(reply, f"adapter '{name}' is not unloaded")
        return Done(True, said(reply))

    def sleep(self, level: int) -> Talk[Done]:
        asleep = yield from self.is_asleep()
        if asleep is None:
            raise Unable(NO_SLEEP)
        if level not in (0, 1, 2):
            raise Refused(400, f"there are sleep levels 0, 1 and 2, not {level}")
        if asleep:
            deep = yield from self._level()
            if deep < level:
                raise Refused(409, f"it sleeps at level {deep}: wake it, then ask for {level}")
            return Done(False, f"it sleeps already, at level {deep}")
        reply = yield Call("POST", f"/sleep?level={level}", changes=True)
        expect(reply, "it does not fall asleep")
        return Done(True, f"it sleeps at level {level}", forgets=level > 0)

    def wake(self) -> Talk[Done]:
        asleep = yield from self.is_asleep()
        if asleep is None:
            raise Unable(NO_SLEEP)
        if not asleep:
            return Done(False, "it is awake already")
        if (yield from self._level()) == DISCARDED:
            # Memory for the weights first, which then come from disk; room for the KV cache last,
            # so that both never need more than the engine has.
            yield from self._rouse("/wake_up?tags=weights")
            yield from self._rouse("/collective_rpc", {"method": "reload_weights"})
            yield from self._rouse("/wake_up?tags=kv_cache")
        else:
            yield from self._rouse("/wake_up")
        if (yield from self.is_asleep()):
            raise Refused(502, "it says that it woke, and that it sleeps")
        return Done(True, "it is awake")

    def _adapter(self, name: str) -> Talk[ListedModel | None]:
        """Of that name, if it is there. Refused: a base model has the name, or it is asleep."""
        listed = yield from self.list_models()
        found = next((one for one in listed if one.name == name), None)
        if found is not None and not found.parent:
            raise Refused(409, f"'{name}' is a base model there, and no adapter")
        if any(one.state is ModelState.ASLEEP for one in listed):
            raise Refused(409, "it sleeps: wake it first")
        return found

    def _switch(self, path: str, body: Mapping[str, Any]) -> Talk[Reply]:
        if route_is_there((yield Call("GET", path))) is False:
            raise Unable(NO_ADAPTERS)
        return (yield Call("POST", path, body, changes=True))

    def _rouse(self, path: str, body: Mapping[str, Any] | None = None) -> Talk[None]:
        reply = yield Call("POST", path, body, changes=True)
        expect(reply, f"it does not wake ({path.partition('?')[0]})")

    def _level(self) -> Talk[int]:
        """How deep it sleeps, by its metrics; 0 if they do not say."""
        reply = yield Call("GET", "/metrics")
        return LEVELS.get(LOADS.read(reply.body).sleep_state or "", 0)


VLLM = VllmDriver("vLLM")
