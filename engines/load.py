"""`EngineLoad`: what an engine said of itself at one moment, the same of every kind of engine."""

from typing import Any

import msgspec

from engines._metrics_page import PageScanner
from engines.habits import MetricNames, Series

__all__ = ["AdaptersInUse", "EngineLoad", "LoadReader", "Rates"]

# LoRA adapters that an engine keeps at once, at most.
MAX_LORAS = 1 << 20

# How several samples of one name become one figure (vLLM labels by data-parallel engine, Triton by
# model): loads and counters add up, the fullest cache is what counts, sizes must agree.
HOW = {
    "running": "sum",
    "waiting": "sum",
    "kv_usage": "max",
    "kv_capacity_tokens": "sum",
    "kv_blocks": "sum",
    "block_size": "same",
    "gpu_utilisation": "mean",
    "generation_tokens": "sum",
    "prompt_tokens": "sum",
    "requests": "sum",
    "request_s": "sum",
    "adapters": "newest",
    "sleep_state": "newest",
}


class AdaptersInUse(msgspec.Struct, frozen=True):
    """LoRA adapters that have requests, running or waiting."""

    max_loras: int
    """How many the engine keeps loaded."""
    names: tuple[str, ...]


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """What happened between two looks, per second. None: not known."""

    generation_tokens_per_s: float | None
    prompt_tokens_per_s: float | None
    requests_per_s: float | None
    mean_requests: float | None
    """Requests under way on the average, as far as they have ended: seconds of request per second.
    In an ensemble the steps count beside the whole, so it is an upper bound there."""


class EngineLoad(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine said of itself at one moment. None: it did not say; that is never 0."""

    running: float | None = None
    """Requests that the engine works on."""
    waiting: float | None = None
    """Requests in its queue."""
    kv_usage: float | None = None
    """Share of its KV cache that is taken, 0..1; of several caches the fullest."""
    kv_capacity_tokens: float | None = None
    """Size of its KV cache."""
    block_size: float | None = None
    """Tokens in a block of its KV cache."""
    gpu_utilisation: float | None = None
    """0..1, the mean of its GPUs."""
    generation_tokens: float | None = None
    """Counter since the engine's start."""
    prompt_tokens: float | None = None
    """Counter since the engine's start."""
    requests: float | None = None
    """Requests that ended, well or not; counter since the engine's start."""
    request_s: float | None = None
    """Seconds that they took in all; counter since the engine's start."""
    adapters: AdaptersInUse | None = None
    sleep_state: str | None = None
    """In the engine's words; vLLM: awake, weights_offloaded, discard_all."""
    models_ready: tuple[str, ...] | None = None
    """Names, of an engine that has many models and says which are ready (Triton's index, with the
    last look at it); no metrics page does."""

    def rates_since(self, before: "EngineLoad", elapsed_s: float) -> Rates:
        """From what two counters say. A counter that went back was begun anew: not known."""

        def rate(name: str) -> float | None:
            old, new = getattr(before, name), getattr(self, name)
            if old is None or new is None or new < old or elapsed_s <= 0:
                return None
            return float(new - old) / elapsed_s

        return Rates(
            generation_tokens_per_s=rate("generation_tokens"),
            prompt_tokens_per_s=rate("prompt_tokens"),
            requests_per_s=rate("requests"),
            mean_requests=rate("request_s"),
        )


class LoadReader:
    """Reads the loads of one kind of engine; make it once."""

    def __init__(
        self,
        names: MetricNames,
        rank: int | None = None,
        having: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """`rank`: only what this data-parallel rank says of itself. `having`: only samples with
        these labels."""
        if rank is not None and names.rank_label:
            having = (*having, (names.rank_label, str(rank)))
        self._fields: list[tuple[str, list[list[tuple[int, float]]]]] = []
        wanted: list[tuple[str, tuple[tuple[str, str], ...], str, str]] = []
        for field, how in HOW.items():
            # adapters are told of the server as a whole
            more = having if field != "adapters" else ()
            groups = []
            for names_of_one in getattr(names, field):
                together = names_of_one if isinstance(names_of_one, tuple) else (names_of_one,)
                places = []
                for one in together:
                    series = Series(one) if isinstance(one, str) else one
                    places.append((len(wanted), series.scale))
                    wanted.append((series.name, (*series.having, *more), series.label, how))
                groups.append(places)
            if groups:
                self._fields.append((field, groups))
        self._adapter_labels = names.adapter_labels
        self._scanner = PageScanner(wanted)

    def read(self, page: bytes, start: int = 0) -> EngineLoad:
        """The load that a page tells of, which begins at `start`. Never raises; what is malformed
        is as if not there."""
        figures = self._scanner.scan(page, start)
        found: dict[str, Any] = {}
        for field, groups in self._fields:
            for places in groups:
                known = [
                    figures[index] * scale if scale != 1.0 else figures[index]
                    for index, scale in places
                    if figures[index] is not None
                ]
                if known:
                    found[field] = known[0] if len(known) == 1 else _together(known, HOW[field])
                    break
        blocks = found.pop("kv_blocks", None)
        if blocks is not None and found.get("block_size") is not None:
            found.setdefault("kv_capacity_tokens", blocks * found["block_size"])
        if found.get("kv_capacity_tokens") == 0:  # not made yet
            del found["kv_capacity_tokens"]
        if "adapters" in found:
            found["adapters"] = self._adapters(found["adapters"][1])
        if "sleep_state" in found:
            value, labels = found["sleep_state"]
            found["sleep_state"] = labels.get("sleep_state") if value == 1.0 else None
        return EngineLoad(**found)

    def _adapters(self, labels: dict[str, str]) -> AdaptersInUse | None:
        room_label, *name_labels = self._adapter_labels
        room = labels.get(room_label, "")
        if not (room.isascii() and room.isdecimal() and 0 < int(room[:20]) <= MAX_LORAS):
            return None
        listed = [name for label in name_labels for name in labels.get(label, "").split(",")]
        return AdaptersInUse(int(room), tuple(dict.fromkeys(filter(None, listed))))


def _together(figures: list[float], how: str) -> float | None:
    if how == "same":
        return figures[0] if len(set(figures)) == 1 else None
    return max(figures) if how == "max" else sum(figures)
