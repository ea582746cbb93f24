"""Request traces: who asks when, how long its prompt is, what of it was seen before, how long the
answer is.

A trace is a list of `Arrival`s in order of time. Blocks stand for their content: two prompts that
begin with the same block numbers begin with the same tokens.
"""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from random import Random

__all__ = ["BLOCK_TOKENS", "MADE_UP", "Arrival", "arrivals_of", "made_up", "read_trace"]

BLOCK_TOKENS = 512
"""Of the Mooncake traces; smaller shared beginnings do not show in them."""

MADE_UP: dict[str, dict[str, float]] = {
    # About ten turns of prose over a short common prompt.
    "chat": {},
    # About 25 short steps each over a context that grows: nearly all of a prompt is cached, and
    # the answers are most of the work.
    "agents": {
        "conversations": 0.04,
        "shared_blocks": 8,
        "turn_tokens": 400,
        "output_tokens": 400,
    },
}
"""Kinds of requests to be made up: what `made_up` gets for each."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...]
    """Of BLOCK_TOKENS tokens each, whole ones only."""


def arrivals_of(trace: str, *, rate: float = 1.0, seed: int = 0, limit: int = 0) -> list[Arrival]:
    """A file's (see `read_trace`), or `limit` requests of a kind in MADE_UP at `rate` per second.

    ValueError: it is no trace, or has no request. OSError: the file cannot be read.
    """
    if trace in MADE_UP:
        if limit < 1:
            raise ValueError(f"requests of {trace!r} are made up without end: say how many")
        return made_up(requests=limit, per_s=rate, seed=seed, **MADE_UP[trace])
    found = read_trace(Path(trace), rate=rate, seed=seed, limit=limit)
    if not found:
        raise ValueError(f"{trace}: no requests in it")
    return found


def read_trace(path: Path, *, rate: float = 1.0, seed: int = 0, limit: int = 0) -> list[Arrival]:
    """A trace from its file, by the file's kind: Mooncake's JSON lines or Azure's CSV.

    `rate`: how much faster it is played. Mooncake's times are whole multiples of 3 s: each request
    is put at random within its 3 s. `limit`: its first requests only; 0: all. ValueError names the
    line that is not of that kind.
    """
    kinds: dict[str, Callable[[Path, Random], Iterator[Arrival]]] = {
        ".jsonl": _mooncake,
        ".csv": _azure,
    }
    if path.suffix not in kinds:
        raise ValueError(
            f"{path}: a trace is a .jsonl in Mooncake's format, a .csv in Azure's, or one of "
            f"{', '.join(MADE_UP)}"
        )
    found = sorted(kinds[path.suffix](path, Random(seed)), key=lambda arrival: arrival.at_s)
    return [
        Arrival(a.at_s / rate, a.prompt_tokens, a.output_tokens, a.blocks)
        for a in found[: limit or None]
    ]


def _mooncake(path: Path, random: Random) -> Iterator[Arrival]:
    with path.open() as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
                tokens = max(1, int(entry["input_length"]))
                yield Arrival(
                    entry["timestamp"] / 1000 + random.uniform(0.0, 3.0),
                    tokens,
                    max(1, int(entry["output_length"])),
                    tuple(map(int, entry["hash_ids"][: tokens // BLOCK_TOKENS])),
                )
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{path}, line {number}: not a request in Mooncake's format (timestamp, "
                    f"input_length, output_length, hash_ids): {error!r}"
                ) from None


def _azure(path: Path, random: Random) -> Iterator[Arrival]:
    """No prompt shares anything with another: the trace does not say."""
    start = None
    block = 0
    with path.open(newline="") as lines:
        rows = csv.DictReader(lines)
        for row in rows:
            try:
                # Seven digits of a second; datetime takes six.
                at = datetime.fromisoformat(row["TIMESTAMP"][:26])
                tokens = max(1, int(row["ContextTokens"]))
                output_tokens = max(1, int(row["GeneratedTokens"]))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(
                    f"{path}, line {rows.line_num}: not a request in Azure's format (TIMESTAMP, "
                    f"ContextTokens, GeneratedTokens): {error!r}"
                ) from None
            start = start or at
            n = tokens // BLOCK_TOKENS
            blocks = tuple(range(block, block + n))
            block += n
            yield Arrival((at - start).total_seconds(), tokens, output_tokens, blocks)


def made_up(
    *,
    requests: int,
    per_s: float,
    seed: int = 0,
    conversations: float = 0.1,
    shared_blocks: float = 2,
    turn_tokens: float = 1500,
    output_tokens: float = 250,
) -> list[Arrival]:
    """Conversations made on the spot: Poisson arrivals, `conversations` of which are new ones.

    All begin with the same `shared_blocks`; each turn adds an exponential `turn_tokens` to its
    conversation. A conversation is over at 60,000 tokens, or when newer ones have taken its place
    among those of 50 s. For tests, and for runs larger than any trace.
    """
    random = Random(seed)
    shared = list(range(int(shared_blocks)))
    open_ones: list[tuple[int, list[int]]] = []
    next_block = len(shared)
    at_s = 0.0
    made = []
    for _ in range(requests):
        at_s += random.expovariate(per_s)
        if not open_ones or random.random() < conversations:
            open_ones.append((len(shared) * BLOCK_TOKENS, shared.copy()))
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
