"""Request traces: who asks when, how long its prompt is, what of it was seen before, how long the
answer is.

A trace is a list of `Arrival`s in order of time. Blocks stand for their content: two prompts that
begin with the same block numbers begin with the same tokens.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from random import Random

__all__ = ["BLOCK_TOKENS", "Arrival", "made_up", "read_trace"]

BLOCK_TOKENS = 512
"""Of the Mooncake traces; smaller shared beginnings do not show in them."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    """Of BLOCK_TOKENS tokens each, whole ones only."""


def read_trace(path: Path, *, rate: float = 1.0, seed: int = 0, limit: int = 0) -> list[Arrival]:
    """A trace from its file, by the file's kind: Mooncake's JSON lines or Azure's CSV.

    `rate`: how much faster it is played. Mooncake's times are whole multiples of 3 s: each request
    is put at random within its 3 s. `limit`: its first requests only; 0: all. ValueError if the
    file is neither.
    """
    random = Random(seed)
    if path.suffix == ".jsonl":
        found = [_mooncake(line, random) for line in path.open() if line.strip()]
    elif path.suffix == ".csv":
        found = list(_azure(path))
    else:
        raise ValueError(f"{path}: a trace is a .jsonl of Mooncake or a .csv of Azure")
    found.sort(key=lambda arrival: arrival.at_s)
    return [
        Arrival(a.at_s / rate, a.prompt_tokens, a.output_tokens, a.blocks)
        for a in found[: limit or None]
    ]


def _mooncake(line: str, random: Random) -> Arrival:
    entry = json.loads(line)
    tokens = max(1, entry["input_length"])
    return Arrival(
        entry["timestamp"] / 1000 + random.uniform(0.0, 3.0),
        tokens,
        max(1, entry["output_length"]),
        tuple(entry["hash_ids"][: tokens // BLOCK_TOKENS]),
    )


def _azure(path: Path) -> Iterator[Arrival]:
    """No prompt shares anything with another: the trace does not say."""
    start = None
    block = 0
    with path.open(newline="") as lines:
        for row in csv.DictReader(lines):
            # Seven digits of a second; datetime takes six.
            at = datetime.fromisoformat(row["TIMESTAMP"][:26])
            start = start or at
            tokens = max(1, int(row["ContextTokens"]))
            n = tokens // BLOCK_TOKENS
            blocks = tuple(range(block, block + n))
            block += n
            yield Arrival(
                (at - start).total_seconds(), tokens, max(1, int(row["GeneratedTokens"])), blocks
            )


def made_up(
    *,
    requests: int,
    per_s: float,
    seed: int = 0,
    conversations: float = 0.1,
    shared_blocks: int = 2,
    turn_tokens: int = 1500,
    output_tokens: int = 250,
) -> list[Arrival]:
    """Conversations made on the spot: Poisson arrivals, `conversations` of which are new ones.

    All begin with the same `shared_blocks`; each turn adds an exponential `turn_tokens` to its
    conversation. For tests, and for runs larger than any trace.
    """
    random = Random(seed)
    open_ones: list[tuple[int, list[int]]] = []
    next_block = shared_blocks
    at_s = 0.0
    made = []
    for _ in range(requests):
        at_s += random.expovariate(per_s)
        if not open_ones or random.random() < conversations:
            open_ones.append((shared_blocks * BLOCK_TOKENS, list(range(shared_blocks))))
            if len(open_ones) > 50 * max(1, int(per_s)):
                open_ones.pop(0)
        which = random.randrange(len(open_ones))
        tokens, blocks = open_ones[which]
        tokens += 1 + int(random.expovariate(1 / turn_tokens))
        while len(blocks) < tokens // BLOCK_TOKENS:
            blocks.append(next_block)
            next_block += 1
        answer = 1 + int(random.expovariate(1 / output_tokens))
        made.append(Arrival(at_s, tokens, answer, tuple(blocks)))
        open_ones[which] = (tokens + answer, blocks)
        if tokens > 60_000:
            open_ones.pop(which)
    return made
