"""The facts that differ from engine to engine, as data."""

from dataclasses import dataclass, field

__all__ = ["Kind", "MetricNames"]


@dataclass(frozen=True, slots=True)
class MetricNames:
    """Names of the samples to read, newest first: the first that is present counts.

    Samples of one name are summed over their labels (vLLM labels by data-parallel engine), but
    for `kv_usage`, of which the largest counts.
    """

    running: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    kv_usage: tuple[str, ...] = ()
    generation_tokens: tuple[str, ...] = ()
    prompt_tokens: tuple[str, ...] = ()
    cache_info: tuple[tuple[str, str, str], ...] = ()
    """(name, label with tokens per block, label with blocks): the size of the KV cache."""
    adapters: tuple[str, str, tuple[str, ...]] | None = None
    """(name, label with how many LoRA adapters are kept, labels that list those in use, with
    commas): the sample with the largest value holds."""


@dataclass(frozen=True, slots=True)
class Kind:
    """An engine as the gateway sees it from outside."""

    name: str
    health_path: str = "/health"
    """200: alive. 404 and 405: there is no such route, and the model list decides alone."""
    models_path: str = "/v1/models"
    blames_engine: bool = True
    """A 500 is the engine's fault, and several in a row are its end. Not where it is the answer to
    a bad request, or one of many models has failed."""
    metrics_path: str | None = None
    """Prometheus text; None: the engine has none."""
    metrics: MetricNames = field(default_factory=MetricNames)
    keep_alive_s: float = 4.0
    """Our idle connections close after this. uvicorn closes after 5 s, and a request written at
    that moment is lost: stay below it."""
    dying_answers: tuple[tuple[int, bytes], ...] = ()
    """(status, a piece of the body): an engine that answers so does not recover by itself, and
    the request may be asked elsewhere."""
    cut_short: bytes | None = None
    """A piece of a 200 that is not the whole answer, because the engine goes down or to sleep.
    Seen in what the client would get first (all of a short answer, a stream's first event), it
    counts as a dying answer; seen later, it is passed on as the engine's own word."""
