"""Bodies of what is not generated token by token: embeddings, rerank, score, transcriptions."""

from __future__ import annotations

from array import array
from base64 import b64encode
from collections.abc import Sequence
from hashlib import blake2b
from math import sqrt
from struct import pack, unpack

from engines.sim.reply import compact

__all__ = ["embeddings_body", "rerank_body", "score_body", "similarity", "vector"]


def vector(tokens: array[int], dims: int) -> list[float]:
    """A unit vector: the sum of one fixed vector per token, so that common words mean nearness."""
    total = [0.0] * dims
    for token in set(tokens):
        seed = blake2b(token.to_bytes(4, "big"), digest_size=32).digest()
        for at, value in enumerate(unpack("32b", seed)):
            total[(at + token) % dims] += value
    length = sqrt(sum(value * value for value in total)) or 1.0
    return [value / length for value in total]


def similarity(one: array[int], other: array[int]) -> float:
    """Between 0 and 1: how many of the tokens two texts share."""
    left, right = set(one), set(other)
    return round(len(left & right) / (len(left | right) or 1), 6)


def _usage(tokens: int) -> dict[str, object]:
    return {
        "prompt_tokens": tokens,
        "total_tokens": tokens,
        "completion_tokens": 0,
        "prompt_tokens_details": None,
    }


def embeddings_body(
    id: str, created: int, model: str, inputs: Sequence[array[int]], dims: int, base64: bool
) -> bytes:
    """`/v1/embeddings`: one vector per input, as numbers or as base64 of little-endian float32."""
    data: list[dict[str, object]] = []
    for at, tokens in enumerate(inputs):
        values = vector(tokens, dims)
        shown = b64encode(pack(f"<{dims}f", *values)).decode() if base64 else values
        data.append({"index": at, "object": "embedding", "embedding": shown})
    body = {"id": f"embd-{id}", "object": "list", "created": created, "model": model, "data": data}
    return compact({**body, "usage": _usage(sum(map(len, inputs)))})


def rerank_body(
    id: str,
    model: str,
    query: array[int],
    documents: Sequence[array[int]],
    texts: Sequence[str],
    top_n: int,
) -> bytes:
    """`/v1/rerank`: the documents, best first."""
    scores = [(similarity(query, document), at) for at, document in enumerate(documents)]
    scores.sort(key=lambda item: (-item[0], item[1]))
    results = [
        {
            "index": at,
            "document": {"text": texts[at], "multi_modal": None},
            "relevance_score": score,
        }
        for score, at in scores[: top_n or len(scores)]
    ]
    total = sum(len(query) + len(document) for document in documents)
    usage = {"prompt_tokens": total, "total_tokens": total}
    return compact({"id": f"rerank-{id}", "model": model, "usage": usage, "results": results})


def score_body(
    id: str,
    created: int,
    model: str,
    pairs: Sequence[tuple[array[int], array[int]]],
) -> bytes:
    """`/v1/score`: one similarity per pair."""
    data = [
        {"index": at, "object": "score", "score": similarity(*pair)}
        for at, pair in enumerate(pairs)
    ]
    total = sum(len(one) + len(other) for one, other in pairs)
    body = {"id": f"score-{id}", "object": "list", "created": created, "model": model, "data": data}
    return compact({**body, "usage": _usage(total)})
