"""SGLang: adapters and sleep, which it calls releasing memory.

Its routes are there however it was started, and some of them act on GET: what it can do is read
from its arguments instead, which it tells.
"""

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
    Refused,
    Reply,
    Talk,
    Unable,
    expect,
    said,
)

__all__ = ["SGLANG"]

# Newer name first.
INFO_PATHS = ("/server_info", "/get_server_info")
ONE_MODEL = Able(
    False,
    "SGLang serves the model it was started with: put it to sleep and wake it, or start another",
)
NO_ADAPTERS = Able(False, "SGLang loads adapters only if started with --enable-lora")
NO_SLEEP = Able(False, "SGLang sleeps only if started with --enable-memory-saver")
UNTOLD = "it does not say how it was started (/server_info)"


class SglangDriver(Driver):
    """See Driver. It does not say whether it sleeps."""

    def discover(self) -> Talk[Capabilities]:
        arguments = yield from self._arguments()
        adapters = YES if arguments.get("enable_lora") else NO_ADAPTERS
        levels = _levels(arguments)
        sleep = YES if levels else NO_SLEEP
        return Capabilities(
            ONE_MODEL, ONE_MODEL, adapters, adapters, sleep, sleep, sleep_levels=levels
        )

    def load_adapter(self, name: str, path: str) -> Talk[Done]:
        found = yield from self._adapter(name)
        if found is not None and found.path == path:
            return Done(False, f"adapter '{name}' is loaded already, from {path}")
        if found is not None:
            yield from self._unload(name)
        body = {"lora_name": name, "lora_path": path}
        reply = yield Call("POST", "/load_lora_adapter", body, changes=True)
        _expect_success(reply, f"adapter '{name}' is not loaded")
        return Done(True, f"adapter '{name}' is loaded", forgets=found is not None)

    def unload_adapter(self, name: str) -> Talk[Done]:
        if (yield from self._adapter(name)) is None:
            return Done(False, f"adapter '{name}' is not loaded")
        yield from self._unload(name)
        return Done(True, f"adapter '{name}' is unloaded")

    def sleep(self, level: int) -> Talk[Done]:
        levels = _levels((yield from self._arguments()))
        if not levels:
            raise Unable(NO_SLEEP.why)
        if level not in levels:
            raise Unable(
                f"it sleeps at level {' and '.join(map(str, levels))}, not {level}; for level 1 "
                "SGLang wants --enable-weights-cpu-backup"
            )
        reply = yield Call("POST", "/release_memory_occupation", {}, changes=True)
        expect(reply, "it does not release its memory")
        return Done(True, "its memory is released", forgets=True)

    def wake(self) -> Talk[Done]:
        arguments = yield from self._arguments()
        if not _levels(arguments):
            raise Unable(NO_SLEEP.why)
        yield from self._resume("weights")
        if 1 not in _levels(arguments):
            # Nobody kept them: they come from disk, before anything is computed with them.
            body = {"model_path": arguments.get("model_path")}
            reply = yield Call("POST", "/update_weights_from_disk", body, changes=True)
            _expect_success(reply, "its weights are not read again")
        yield from self._resume("kv_cache")
        return Done(True, "it is awake")

    def _arguments(self) -> Talk[dict[str, Any]]:
        for path in INFO_PATHS:
            reply = yield Call("GET", path)
            answer = reply.json
            if reply.status == 200 and isinstance(answer, dict):
                return answer
        raise Refused(502, UNTOLD, said(reply))

    def _adapter(self, name: str) -> Talk[ListedModel | None]:
        if not (yield from self._arguments()).get("enable_lora"):
            raise Unable(NO_ADAPTERS.why)
        listed = yield from self.list_models()
        found = next((one for one in listed if one.name == name), None)
        if found is not None and not found.parent:
            raise Refused(409, f"'{name}' is a base model there, and no adapter")
        return found

    def _unload(self, name: str) -> Talk[None]:
        reply = yield Call("POST", "/unload_lora_adapter", {"lora_name": name}, changes=True)
        _expect_success(reply, f"adapter '{name}' is not unloaded")

    def _resume(self, what: str) -> Talk[None]:
        body = {"tags": [what]}
        reply = yield Call("POST", "/resume_memory_occupation", body, changes=True)
        expect(reply, f"it does not get its memory back ({what})")


def _levels(arguments: Mapping[str, Any]) -> tuple[int, ...]:
    """1 where the weights are kept in host memory, else 2: it has one way to sleep."""
    if not arguments.get("enable_memory_saver"):
        return ()
    return (1,) if arguments.get("enable_weights_cpu_backup") else (2,)


def _expect_success(reply: Reply, otherwise: str) -> None:
    """Some answers say in the body that they are none."""
    answer = reply.json
    if reply.status == 200 and isinstance(answer, dict) and answer.get("success") is False:
        raise Refused(400, otherwise, said(reply))
    expect(reply, otherwise)


SGLANG = SglangDriver("SGLang")
