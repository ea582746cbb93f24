"""Whole decisions from a prompt's JSON to its booking, and lookups in the prefix index."""

import json
from array import array
from random import Random

import pytest

from bench import _micro
from bench.micro.conftest import Measure
from router._hash import namespace_root
from router._index import Index, Matcher
from router._keying import text_keys
from router._router import Router
from router._table import State, Table
from router.policy import make_policy

PROFILE = (0.015, 1e-4, 1.5e-9, 3e-5, 2e-8, 2e6)
N_SETS = 65_536


def conversation(random: Random, size: int) -> bytes:
    """Messages of up to 4 KB, as clients write them: spaces, and escapes in strings."""
    messages: list[dict[str, str]] = []
    left = size - 2
    while left > 60:
        words = " ".join(random.choices(WORDS, k=min(600, max(1, (left - 50) // 8))))
        messages.append({"role": ("user", "assistant")[len(messages) % 2], "content": words})
        left -= len(json.dumps(messages[-1])) + 2
    return json.dumps(messages).encode()


WORDS = [f"{Random(at).getrandbits(28):07x}" for at in range(2000)] + ['a "q"', "line\n"] * 20


def fleet(n_endpoints: int, index: Index, policy: str) -> Router:
    table = Table(bytearray(Table.size(1)), 1)
    for slot in range(n_endpoints):
        table.set_row(slot, state=State.READY, share=1.0, generation=1, profile=PROFILE)
    return Router(table, 0, make_policy(policy), index)


@pytest.mark.parametrize("policy", ["marginal-cost", "least-requests"])
@pytest.mark.parametrize(
    ("n_endpoints", "kilobytes", "n_texts"),
    [(64, 1, 256), (64, 16, 256), (1000, 16, 256), (1000, 512, 32)],
)
def test_decide(
    measure: Measure, policy: str, n_endpoints: int, kilobytes: int, n_texts: int
) -> None:
    """Of each prompt, half of it is cached somewhere, a third of that on three endpoints."""
    random = Random(5)
    texts = [conversation(random, kilobytes * 1024) for _ in range(n_texts)]
    capacity = 1_000_000
    index = Index(bytearray(Index.size(capacity, N_SETS)), capacity, N_SETS)
    for at, text in enumerate(texts):
        keys = text_keys(b"x", [text])
        for copy in range(3):
            index.note(keys[: len(keys) // (2 if copy == 0 else 6)], (at + copy) % n_endpoints)
    router = fleet(n_endpoints, index, policy)
    name = f"{policy}, {n_endpoints} endpoints, {kilobytes} KB"

    def mean(n: int) -> float:
        return sum(_micro.decisions_ns(router, b"x", texts, n_endpoints, n)) / n

    measure(f"decision:{name}", mean)


@pytest.mark.parametrize(("n_endpoints", "kilobytes"), [(64, 16), (1000, 512)])
def test_decide_p99(measure: Measure, n_endpoints: int, kilobytes: int) -> None:
    random = Random(5)
    texts = [conversation(random, kilobytes * 1024) for _ in range(32)]
    capacity = 1_000_000
    index = Index(bytearray(Index.size(capacity, N_SETS)), capacity, N_SETS)
    for at, text in enumerate(texts):
        index.note(text_keys(b"x", [text]), at % n_endpoints)
    router = fleet(n_endpoints, index, "marginal-cost")

    def p99(n: int) -> float:
        times = sorted(_micro.decisions_ns(router, b"x", texts, n_endpoints, max(n, 200)))
        return float(times[len(times) * 99 // 100])

    measure(f"decision p99:marginal-cost, {n_endpoints} endpoints, {kilobytes} KB", p99)


@pytest.mark.parametrize("n_held", [100_000, 4_000_000])
@pytest.mark.parametrize("n_indexes", [1, 3])
def test_match(measure: Measure, n_held: int, n_indexes: int) -> None:
    """Prompts of 2,000 blocks that one of 64 endpoints holds; in the last of so many indexes."""
    random = Random(9)
    indexes = [Index(bytearray(Index.size(131_072, 4096)), 131_072, 4096) for _ in range(2)]
    held = Index(bytearray(Index.size(n_held + 1, 64)), n_held + 1, 64)
    root = namespace_root(b"m")
    prompts = []
    for at in range(n_held // 2000):
        keys = array("Q", (random.getrandbits(64) ^ root | 1 for _ in range(2000)))
        held.note(keys, at % 64)
        prompts.append(keys)
    for index in indexes:
        index.note(prompts[0][:1], 70)  # not empty
    random.shuffle(prompts)
    matcher = Matcher([*indexes[: n_indexes - 1], held])
    measure(
        f"match:{n_held:,} blocks held, {n_indexes} indexes",
        lambda n: _micro.match_ns(matcher, prompts, 64, n),
    )
