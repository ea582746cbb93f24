"""Read the few samples that matter out of an engine's Prometheus text, and nothing else.

A vLLM page has 700 lines and more, of which five are wanted: they are searched for, and nothing
else is looked at. What is missing or malformed is None, never 0.
"""

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from engines.habits import MetricNames

__all__ = ["AdaptersInUse", "Scrape", "read_metrics"]


# Of one name; a page may have been made to hold up whoever reads it.
MAX_SAMPLES = 1000


# LoRA adapters that an engine keeps at once, at most.
MAX_LORAS = 1 << 20


@dataclass(frozen=True, slots=True)
class AdaptersInUse:
    """LoRA adapters that have requests, running or waiting."""

    max_loras: int
    """How many the engine keeps loaded."""
    names: tuple[str, ...]


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
    kv_tokens: float | None = None
    """Size of its KV cache."""
    adapters: AdaptersInUse | None = None


def read_metrics(text: str, names: MetricNames) -> Scrape:
    """The samples of `names` in a Prometheus or OpenMetrics page. Never raises."""
    return Scrape(
        running=_first(text, names.running),
        waiting=_first(text, names.waiting),
        kv_usage=_first(text, names.kv_usage, largest=True),
        generation_tokens=_first(text, names.generation_tokens),
        prompt_tokens=_first(text, names.prompt_tokens),
        kv_tokens=_cache_size(text, names),
        adapters=_adapters(text, names),
    )


def _first(text: str, names: Iterable[str], *, largest: bool = False) -> float | None:
    for name in names:
        found = [value for line in _lines(text, name) if (value := _value(line)) is not None]
        if found:
            return max(found) if largest else sum(found)
    return None


def _cache_size(text: str, names: MetricNames) -> float | None:
    """Tokens per block times blocks, summed over what has a cache of its own."""
    for name, block_label, blocks_label in names.cache_info:
        found = []
        for line in _lines(text, name):
            labels = [
                re.search(rf'[{{,]{label}="(\d+)"', line) for label in (block_label, blocks_label)
            ]
            if all(labels):
                found.append(math.prod(int(label[1]) for label in labels if label))
        if found:
            return float(sum(found)) or None
    return None


def _adapters(text: str, names: MetricNames) -> AdaptersInUse | None:
    if names.adapters is None:
        return None
    name, max_label, labels = names.adapters
    newest = max(
        ((value, line) for line in _lines(text, name) if (value := _value(line)) is not None),
        default=None,
    )
    room = newest and _label(newest[1], max_label)
    if not newest or not room or not room.isdecimal() or not 0 < int(room) <= MAX_LORAS:
        return None
    listed = [adapter for label in labels for adapter in _label(newest[1], label).split(",")]
    return AdaptersInUse(int(room), tuple(dict.fromkeys(filter(None, listed))))


def _label(line: str, name: str) -> str:
    found = re.search(rf'[{{,]{name}="((?:[^"\\]|\\.)*)"', line)
    return re.sub(r"\\(.)", r"\1", found[1]) if found else ""


def _lines(text: str, name: str) -> Iterator[str]:
    """The lines whose sample has this very name."""
    start, left = 0, MAX_SAMPLES
    while left and (start := text.find(name, start)) >= 0:
        end = start + len(name)
        if (start == 0 or text[start - 1] == "\n") and text[end : end + 1] in ("{", " "):
            stop = text.find("\n", end)
            left -= 1
            yield text[start:] if stop < 0 else text[start:stop]
        start = end


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
