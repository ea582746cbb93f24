"""What a run comes to, as numbers."""

from collections import Counter
from collections.abc import Sequence

import msgspec

from bench.lab.world import Served

__all__ = ["SLO_TPOT_S", "SLO_TTFT_S", "Figures", "figures_of"]

SLO_TTFT_S = 2.0
SLO_TPOT_S = 0.1


class Figures(msgspec.Struct, frozen=True):
    """Times in seconds; shares in 0..1."""

    requests: int
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p90_s: float
    ttft_p99_s: float
    tpot_mean_s: float
    tpot_p50_s: float
    tpot_p90_s: float
    tpot_p99_s: float
    e2e_mean_s: float
    e2e_p50_s: float
    e2e_p90_s: float
    e2e_p99_s: float
    goodput: float
    """Requests with TTFT <= 2 s and TPOT <= 100 ms."""
    hit_ratio: float
    """Prompt tokens that the engines found cached."""
    hit_error: float
    """Mean difference to what the router expected, as a share of the prompt tokens."""
    imbalance: float
    """Most prompt tokens computed by one pod, to the mean."""


def figures_of(served: Sequence[Served], pods: int) -> Figures:
    """Of a whole run. ValueError: nothing was served.

    A percentile is the least value that so many percent do not exceed.
    """
    if not served:
        raise ValueError("nothing was served")
    ttft = sorted(one.ttft_s for one in served)
    tpot = sorted(one.tpot_s for one in served)
    e2e = sorted(one.total_s for one in served)
    prompt = sum(one.arrival.prompt_tokens for one in served)
    work: Counter[int] = Counter()
    for one in served:
        work[one.pod] += one.arrival.prompt_tokens - one.cached_tokens
    good = sum(one.ttft_s <= SLO_TTFT_S and one.tpot_s <= SLO_TPOT_S for one in served)
    return Figures(
        requests=len(served),
        ttft_mean_s=sum(ttft) / len(ttft),
        ttft_p50_s=_part(ttft, 50),
        ttft_p90_s=_part(ttft, 90),
        ttft_p99_s=_part(ttft, 99),
        tpot_mean_s=sum(tpot) / len(tpot),
        tpot_p50_s=_part(tpot, 50),
        tpot_p90_s=_part(tpot, 90),
        tpot_p99_s=_part(tpot, 99),
        e2e_mean_s=sum(e2e) / len(e2e),
        e2e_p50_s=_part(e2e, 50),
        e2e_p90_s=_part(e2e, 90),
        e2e_p99_s=_part(e2e, 99),
        goodput=good / len(served),
        hit_ratio=sum(one.cached_tokens for one in served) / prompt,
        hit_error=sum(abs(one.hit_tokens - one.cached_tokens) for one in served) / prompt,
        imbalance=max(work.values()) * pods / sum(work.values()),
    )


def _part(ordered: Sequence[float], percent: int) -> float:
    return ordered[-(-percent * len(ordered) // 100) - 1]
