"""Read the few samples that matter out of an engine's Prometheus text, and nothing else.

A vLLM page has 700 lines and more, of which five are wanted: lines are compared by their name
before anything is parsed. What is missing or malformed is None, never 0.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from engines.habits import MetricNames

__all__ = ["Scrape", "read_metrics"]


@dataclass(frozen=True, slots=True)
class Scrape:
    """What an engine said of itself at one moment. None: it did not say."""

    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    """0..1"""
    generation_tokens: float | None = None
    """Counter since the engine's start."""
    prompt_tokens: float | None = None
    """Counter since the engine's start."""


def read_metrics(text: str, names: MetricNames) -> Scrape:
    """The samples of `names` in a Prometheus or OpenMetrics page. Never raises."""
    wanted = {name for field in _FIELDS for name in getattr(names, field)}
    found: dict[str, list[float]] = {}
    for line in text.splitlines():
        name = line[: _name_end(line)]
        if name in wanted:
            value = _value(line)
            if value is not None:
                found.setdefault(name, []).append(value)
    return Scrape(
        running=_first(found, names.running),
        waiting=_first(found, names.waiting),
        kv_usage=_first(found, names.kv_usage, largest=True),
        generation_tokens=_first(found, names.generation_tokens),
        prompt_tokens=_first(found, names.prompt_tokens),
    )


_FIELDS = ("running", "waiting", "kv_usage", "generation_tokens", "prompt_tokens")


def _name_end(line: str) -> int:
    ends = [end for end in (line.find("{"), line.find(" ")) if end >= 0]
    return min(ends, default=len(line))


def _value(line: str) -> float | None:
    """The number behind the labels. A label's value may hold spaces and braces, not a raw '"'."""
    exemplar = line.rfind(" # {")
    line = line if exemplar < 0 else line[:exemplar]
    rest = line[line.rfind('"') + 1 :].lstrip("},") if '"' in line else line.partition(" ")[2]
    try:
        value = float(rest.split()[0])
    except (IndexError, ValueError):
        return None
    return value if value == value and abs(value) != float("inf") else None


def _first(
    found: dict[str, list[float]], names: Iterable[str], *, largest: bool = False
) -> float | None:
    for name in names:
        if name in found:
            return max(found[name]) if largest else sum(found[name])
    return None
