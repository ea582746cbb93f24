"""One face for switching what an engine serves: what can be asked of it, and how it answers.

A `Driver` knows the requests of one kind of engine and does none of them: each of its methods is a
`Talk`, which yields what to send or how long to wait, is sent the engine's reply, and returns what
came of it. So it holds no socket and no clock, and whoever has both can carry it out.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar, TypeVar

import msgspec

__all__ = [
    "Able",
    "Call",
    "Capabilities",
    "ControlError",
    "Done",
    "Driver",
    "ListedModel",
    "ModelState",
    "Pause",
    "Refused",
    "Reply",
    "Talk",
    "Unable",
    "said",
]

POLL_S = 0.2
"""Between two looks at an engine that is loading something."""
MAX_WORDS = 2000
"""Characters of an engine's own words that are passed on."""

T = TypeVar("T")


class ModelState(StrEnum):
    """Where a model stands at one engine."""

    READY = "ready"
    LOADING = "loading"
    UNLOADING = "unloading"
    UNLOADED = "unloaded"
    """It could be loaded."""
    FAILED = "failed"
    """It was to be loaded; the reason says what came in between."""
    ASLEEP = "asleep"


@dataclass(frozen=True, slots=True)
class ListedModel:
    """A model or an adapter as an engine knows it."""

    name: str
    state: ModelState
    reason: str = ""
    """The engine's own words, if it has any."""
    parent: str = ""
    """Of an adapter: its base model."""
    path: str = ""
    """Where an adapter came from."""


@dataclass(frozen=True, slots=True)
class Able:
    """Whether an engine can do something now."""

    yes: bool
    why: str = ""
    """Why not, and what would change that."""

    def __bool__(self) -> bool:
        return self.yes


YES = Able(True)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an engine can be asked, as it said itself."""

    load: Able
    unload: Able
    load_adapter: Able
    unload_adapter: Able
    sleep: Able
    wake: Able
    sleep_levels: tuple[int, ...] = ()
    cancel: Able = YES
    """Whether the engine stops work that nobody waits for any more."""

    def described(self) -> dict[str, Any]:
        """As plain data: {"load": {"yes": bool, "why": str}, ..., "sleep_levels": [...]}."""
        found: dict[str, Any] = {
            one.name: {"yes": able.yes, "why": able.why}
            for one in fields(self)
            if isinstance(able := getattr(self, one.name), Able)
        }
        return {**found, "sleep_levels": list(self.sleep_levels)}


@dataclass(frozen=True, slots=True)
class Call:
    """A request to the engine's HTTP port."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None
    """Sent as JSON."""
    changes: bool = False
    """It switches something, so it may take as long as that takes. Others are looks."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing to send for a while; the reply to it says nothing."""

    seconds: float = POLL_S


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back for a `Call`."""

    status: int = 0
    body: bytes = b""

    @property
    def json(self) -> Any:
        """None if the body is no JSON."""
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None


@dataclass(frozen=True, slots=True)
class Done:
    """Something was asked for, and now it is so."""

    changed: bool
    """False: it was so before."""
    message: str
    forgets: bool = False
    """What the engine had cached is gone, or of no use any more."""


Talk = Generator["Call | Pause", Reply, T]


class ControlError(Exception):
    """It was not done; the text says why, for people."""


class Unable(ControlError):
    """This engine cannot do that, as it was started or at all."""


@dataclass(eq=False)
class Refused(ControlError):
    """The engine said no, or what was asked makes no sense for it as it is."""

    status: int
    """HTTP status: the engine's, or one that fits."""
    message: str
    words: str = ""
    """The engine's own."""

    def __str__(self) -> str:
        return f"{self.message}: {self.words}" if self.words else self.message


@dataclass(frozen=True, slots=True)
class Driver:
    """An engine of which nothing is known but that it speaks OpenAI: it lists its models.

    `Unable` and `Refused` come out of a Talk as exceptions.
    """

    name: str = "this engine"
    """As people call the kind of engine."""
    models_path: str = "/v1/models"
    tells_sleep: ClassVar[bool] = False
    """Whether `is_asleep` may have an answer."""

    def discover(self) -> Talk[Capabilities]:
        """What it can be asked, found out without changing anything."""
        no = Able(False, f"{self.name} has no way to do that over HTTP")
        yield from ()
        return Capabilities(no, no, no, no, no, no)

    def list_models(self) -> Talk[list[ListedModel]]:
        """What it has, and what it could load if it says."""
        reply = yield Call("GET", self.models_path)
        expect(reply, "it does not list its models")
        listed = reply.json
        entries = listed.get("data") if isinstance(listed, dict) else None
        if not isinstance(entries, list):
            raise Refused(502, f"{self.models_path} answers something that is no model list")
        return [_listed(one) for one in entries if isinstance(one, dict) and _named(one)]

    def is_ready(self, model: str) -> Talk[bool]:
        """Whether requests for this model would be served."""
        found = yield from self.list_models()
        return any(one.name == model and one.state is ModelState.READY for one in found)

    def is_asleep(self) -> Talk[bool | None]:
        """None: it does not say."""
        yield from ()
        return None

    def load(self, model: str, options: Mapping[str, Any]) -> Talk[Done]:
        """Make it serve a model. What `options` there are, each driver says."""
        no_options(options)
        state = _state_of((yield from self.list_models()), model)
        if state is ModelState.READY:
            return Done(False, f"'{model}' is loaded already")
        if state is ModelState.ASLEEP:
            raise Refused(409, f"'{model}' is there and asleep: wake it")
        able = (yield from self.discover()).load
        raise Unable(able.why)

    def unload(self, model: str, options: Mapping[str, Any]) -> Talk[Done]:
        """Make it serve a model no more."""
        no_options(options)
        if _state_of((yield from self.list_models()), model) is None:
            return Done(False, f"'{model}' is not loaded")
        able = (yield from self.discover()).unload
        raise Unable(able.why)

    def load_adapter(self, name: str, path: str) -> Talk[Done]:
        """Make it serve a LoRA adapter. `path`: where the engine finds it, on its own disk."""
        able = (yield from self.discover()).load_adapter
        raise Unable(able.why)

    def unload_adapter(self, name: str) -> Talk[Done]:
        """Make it serve an adapter no more."""
        able = (yield from self.discover()).unload_adapter
        raise Unable(able.why)

    def sleep(self, level: int) -> Talk[Done]:
        """Free its GPU memory. 1: weights go to host memory; 2: they are dropped, and read anew on
        waking; 0: it only stops."""
        able = (yield from self.discover()).sleep
        raise Unable(able.why)

    def wake(self) -> Talk[Done]:
        """Bring back what `sleep` took."""
        able = (yield from self.discover()).wake
        raise Unable(able.why)


def expect(reply: Reply, otherwise: str) -> None:
    """Refused with the engine's words unless the reply is a 200."""
    if reply.status != 200:
        raise Refused(reply.status, otherwise, said(reply))


def said(reply: Reply) -> str:
    """An engine's own words in an answer, whatever its shape; else its status."""
    answer = reply.json
    text: Any = None
    if isinstance(answer, dict):
        for name in ("error", "message", "error_message", "detail"):
            if text := answer.get(name):
                break
        if isinstance(text, dict):
            text = text.get("message")
    elif answer is None or isinstance(answer, str):
        text = reply.body.decode("utf-8", "replace").strip()
    if not isinstance(text, str) or not text:
        text = f"status {reply.status}"
    return str(text[:MAX_WORDS]).strip()


def route_is_there(reply: Reply) -> bool | None:
    """Of the answer to a GET of a route that takes POST only; None: there is no telling."""
    return {405: True, 404: False}.get(reply.status)


def _listed(entry: dict[str, Any]) -> ListedModel:
    parent, root = entry.get("parent"), entry.get("root")
    is_adapter = isinstance(parent, str) and bool(parent)
    return ListedModel(
        entry["id"],
        ModelState.READY,
        parent=parent if isinstance(parent, str) else "",
        path=root if is_adapter and isinstance(root, str) else "",
    )


def _named(entry: dict[str, Any]) -> bool:
    return isinstance(entry.get("id"), str) and bool(entry["id"])


def _state_of(models: list[ListedModel], name: str) -> ModelState | None:
    return next((one.state for one in models if one.name == name), None)


def no_options(options: Mapping[str, Any]) -> None:
    """Refused if there are any."""
    if options:
        raise Refused(400, f"no options are known here, but {', '.join(sorted(options))} was given")
