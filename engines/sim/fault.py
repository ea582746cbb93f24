"""Faults on command: what they are, which are set, and which requests they strike.

Options of every fault:

- `count`: strike that many requests, then vanish; without it, all until healed. Only for faults
  that strike requests.
- `seconds`: how long the fault lasts, then it is healed. For four kinds it is something else, and
  they last until healed or spent: the delay of a request (`delay`), the pause between two pieces
  (`drip`, `endless_head`), the time `/health` answers 503 (`kill_core`).
- `after_events`: for faults in the middle of a stream, how many whole SSE events are sent before
  the fault strikes in the next (default 1); 0 sends the head and then strikes in the first event.
  A response that is no stream is struck in the middle of its body whatever the number. -1 sends
  nothing at all in either case.

Requests are struck on the inference routes only (POST below /v1, /tokenize, /detokenize, /rerank,
/score), never on /health, /metrics, /version, /v1/models or /sim.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

__all__ = ["Active", "Fault", "Faults", "Scope", "Struck"]


class Scope(Enum):
    """What a kind of fault takes hold of."""

    LISTENER = "listener"
    CORE = "core"
    EXIT = "exit"
    READ = "read"
    ANSWER = "answer"
    """Decides a request's whole answer."""
    BODY = "body"
    """Breaks the response after some events."""
    PACE = "pace"
    """Slows a request down; goes together with any other."""


class Fault(Enum):
    """Every kind, by the name used on the wire, with its scope."""

    REFUSE = ("refuse", Scope.LISTENER)
    """The listener is closed: connecting is refused. Open connections go on."""
    FREEZE = ("freeze", Scope.CORE)
    """The core does not step: no tokens, /metrics stands still, /health stays 200."""
    STOP_READING = ("stop_reading", Scope.READ)
    """After an inference request's head the connection is not read any more, nor answered."""
    HANG = ("hang", Scope.ANSWER)
    """The request is read and never answered."""
    ERROR_500 = ("500", Scope.ANSWER)
    """Answered 500 at once."""
    ERROR_503 = ("503", Scope.ANSWER)
    """Answered 503 at once, as by a full queue."""
    ERROR_429 = ("429", Scope.ANSWER)
    """Answered 429 at once, with `Retry-After: 1`."""
    ENDLESS_HEAD = ("endless_head", Scope.ANSWER)
    """The response's head never ends: a header of 1 KB every `seconds` (default 0.005) until the
    client leaves."""
    BAD_STATUS = ("bad_status", Scope.ANSWER)
    """The response begins with a line that is no status line, then the connection closes."""
    CL_TE = ("cl_te", Scope.BODY)
    """The response's head has both Content-Length and Transfer-Encoding: chunked."""
    TWO_RESPONSES = ("two_responses", Scope.BODY)
    """The response is followed at once by a second, whole one nobody asked for."""
    RESET = ("reset", Scope.BODY)
    """The connection is reset in the middle of a chunk."""
    EARLY_CLOSE = ("early_close", Scope.BODY)
    """The connection is closed, in order, in the middle of a chunk."""
    CLEAN_CLOSE = ("clean_close", Scope.BODY)
    """The connection is closed between two events, without the chunk that ends the body."""
    BAD_CHUNK = ("bad_chunk", Scope.BODY)
    """A chunk size that is no number; a response that is no stream turns chunked for it."""
    STALL = ("stall", Scope.BODY)
    """Nothing more is sent, and the connection stays open."""
    DELAY = ("delay", Scope.PACE)
    """The request reaches the engine `seconds` late (default 1)."""
    DRIP = ("drip", Scope.PACE)
    """The response is written in pieces of `bytes` (default 1), `seconds` (default 0.01) apart."""
    SIGTERM_HANG = ("sigterm_hang", Scope.EXIT)
    """SIGTERM at vLLM's defaults: the listener and idle connections close at once; what runs hangs
    with no bytes and no EOF; the engine is gone when the last client has left."""
    SIGTERM_DRAIN = ("sigterm_drain", Scope.EXIT)
    """SIGTERM with --shutdown-timeout: what runs finishes, new requests get 500 `cannot schedule
    new futures after shutdown` while /health stays 200; then the engine is gone."""
    SIGTERM_QUIT = ("sigterm_quit", Scope.EXIT)
    """Gone at once: listener and every connection closed."""
    KILL_CORE = ("kill_core", Scope.EXIT)
    """The engine process dies under its server: streams get an error event and [DONE], other
    requests 500; /health is 503 for `seconds` (default 0.05), then connecting is refused; the
    server is gone `exit_s` (default 2.3) after the kill."""

    def __init__(self, label: str, scope: Scope) -> None:
        self.label = label
        self.scope = scope

    @classmethod
    def named(cls, label: str) -> Fault:
        """The kind of that name. Raises ValueError naming the known ones."""
        for kind in cls:
            if kind.label == label:
                return kind
        known = ", ".join(kind.label for kind in cls)
        raise ValueError(f"unknown fault {label!r}; known faults: {known}")


_EACH_REQUEST = (Scope.READ, Scope.ANSWER, Scope.BODY, Scope.PACE)
_SECONDS_ARE_PACE = (Fault.DELAY, Fault.DRIP, Fault.ENDLESS_HEAD, Fault.KILL_CORE)


@dataclass(slots=True)
class Active:
    """One fault that is set."""

    kind: Fault
    count: int | None = None
    """Requests it will still strike; None: without end."""
    seconds: float | None = None
    after_events: int = 1
    bytes: int = 1
    exit_s: float = 2.3

    def __post_init__(self) -> None:
        if self.count is not None and (self.count < 1 or self.kind.scope not in _EACH_REQUEST):
            raise ValueError(f"count={self.count} makes no sense for {self.kind.label}")
        if self.bytes < 1 or self.after_events < -1 or (self.seconds or 0) < 0:
            raise ValueError("bytes, after_events or seconds is out of range")

    @property
    def lasts_s(self) -> float | None:
        """After how long it heals by itself, if it does."""
        return None if self.kind in _SECONDS_ARE_PACE else self.seconds


@dataclass(frozen=True, slots=True)
class Struck:
    """The faults that strike one request."""

    answer: Active | None = None
    body: Active | None = None
    delay: Active | None = None
    drip: Active | None = None


@dataclass(slots=True)
class Faults:
    """The faults that are set, at most one of each kind."""

    active: dict[Fault, Active] = field(default_factory=dict)

    def set(self, fault: Active) -> None:
        """Set it, in place of an earlier one of its kind."""
        self.active[fault.kind] = fault

    def drop(self, fault: Active) -> bool:
        """Heal exactly this one. False if it is not set any more."""
        if self.active.get(fault.kind) is not fault:
            return False
        del self.active[fault.kind]
        return True

    def has(self, kind: Fault) -> bool:
        """Whether a fault of that kind is set."""
        return kind in self.active

    def strike(self) -> Struck:
        """What strikes the request that has just come: the oldest fault of each scope, and both
        kinds of pace. Their counts go down."""
        if not self.active:
            return Struck()
        return Struck(
            answer=self._first(Scope.ANSWER),
            body=self._first(Scope.BODY),
            delay=self._spend(self.active.get(Fault.DELAY)),
            drip=self._spend(self.active.get(Fault.DRIP)),
        )

    def strike_read(self) -> bool:
        """Whether the request whose head has just come is not to be read."""
        return bool(self.active) and self._first(Scope.READ) is not None

    def _first(self, scope: Scope) -> Active | None:
        found = (fault for fault in self.active.values() if fault.kind.scope is scope)
        return self._spend(next(found, None))

    def _spend(self, fault: Active | None) -> Active | None:
        if fault is not None and fault.count is not None:
            fault.count -= 1
            if not fault.count:
                self.drop(fault)
        return fault
