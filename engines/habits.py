"""The facts that differ from engine to engine, as data."""

from dataclasses import dataclass, field

import msgspec

__all__ = ["Kind", "MetricNames", "Series", "Tell"]


@dataclass(frozen=True, slots=True)
class Series:
    """Samples of a metrics page."""

    name: str
    """As it stands there, with `_total` and its kind."""
    having: tuple[tuple[str, str], ...] = ()
    """Labels that they must have."""
    label: str = ""
    """The label whose value is the figure; empty: the sample's own value is."""
    scale: float = 1.0
    """From the page's unit to ours."""


One = str | Series
Names = tuple[One | tuple[One, ...], ...]


@dataclass(frozen=True, slots=True)
class MetricNames:
    """Where each field of `EngineLoad` stands on an engine's page, newest names first: the first
    that is there and can be read counts. A plain name is a `Series` of this name; those of a tuple
    count together."""

    running: Names = ()
    waiting: Names = ()
    kv_usage: Names = ()
    kv_capacity_tokens: Names = ()
    kv_blocks: Names = ()
    """Blocks in the cache: with `block_size` they tell its capacity where nothing else does."""
    block_size: Names = ()
    gpu_utilisation: Names = ()
    generation_tokens: Names = ()
    prompt_tokens: Names = ()
    requests: Names = ()
    request_s: Names = ()
    adapters: Names = ()
    """The sample with the largest value holds; `adapter_labels` has what it tells."""
    adapter_labels: tuple[str, ...] = ()
    """The label with how many LoRA adapters are kept, then those that list adapters in use, with
    commas."""
    sleep_state: Names = ()
    """The sample with value 1 has the state in its label `sleep_state`."""
    rank_label: str = ""
    """Names the data-parallel rank; empty: the page does not tell them apart."""


@dataclass(frozen=True, slots=True)
class Tell:
    """By what an engine gives itself away: 200 with a JSON object that has these keys."""

    path: str
    keys: tuple[str, ...]
    value: str = ""
    """What stands at the first of the keys begins so."""

    def is_met(self, body: bytes) -> bool:
        """Whether a body says it. Never raises."""
        try:
            told = msgspec.json.decode(body)
        except (ValueError, RecursionError):
            return False
        if not isinstance(told, dict) or any(key not in told for key in self.keys):
            return False
        return str(told[self.keys[0]]).startswith(self.value)


@dataclass(frozen=True, slots=True)
class Kind:
    """An engine as the gateway sees it from outside."""

    name: str
    owned_by: tuple[str, ...] = ()
    """What the entries of its model list say under `owned_by`, where it says that of itself."""
    tells: tuple[Tell, ...] = ()
    """Where else it says who it is; one is enough."""
    health_path: str = "/health"
    """200: alive. 404 and 405: there is no such route, and the model list decides alone."""
    models_path: str = "/v1/models"
    models_body: bytes | None = None
    """POSTed to it, where that is how the list is asked for."""
    blames_engine: bool = True
    """A 500 is the engine's fault, and several in a row are its end. Not where it is the answer to
    a bad request, or one of many models has failed."""
    metrics_path: str | None = None
    """Prometheus text; None: the engine has none."""
    metrics_port_after: int = 0
    """Where the page has a port of its own: how far behind the engine's, unless configured."""
    metrics: MetricNames = field(default_factory=MetricNames)
    keep_alive_s: float = 4.0
    """Our idle connections close after this. uvicorn closes after 5 s, and a request written at
    that moment is lost: stay below it."""
    ends_with_connection: bool = True
    """Whether closing a connection ends what runs for it, in all versions; else the engine may
    work on what nobody waits for."""
    dying_answers: tuple[tuple[int, bytes], ...] = ()
    """(status, a piece of the body): an engine that answers so does not recover by itself, and
    the request may be asked elsewhere."""
    cut_short: bytes | None = None
    """A piece of a 200 that is not the whole answer, because the engine goes down or to sleep.
    Seen in what the client would get first (all of a short answer, a stream's first event), it
    counts as a dying answer; seen later, it is passed on as the engine's own word."""
