"""What stands on one endpoint, as numbers: the tuple of `Table.work` and `Table.set_work`.

(in_flight, prefilling, prefill_s, anchor_s, unseen_until_s, prefill_tokens, kv_tokens); see `Load`
in router/_table.pxd. The two times are monotonic, of this process.
"""

from collections.abc import Sequence

__all__ = ["NOTHING", "Work", "is_nothing", "total"]

Work = tuple[int, int, float, float, float, int, int]

NOTHING: Work = (0, 0, 0.0, 0.0, 0.0, 0, 0)


def total(works: Sequence[Work], now_s: float) -> Work:
    """All of them as if one had put them there, at `now_s`.

    Counts, seconds and tokens add up. As the table reads its columns (`stand`): the newest anchor
    counts, and of the unseen prompts what is left of each.
    """
    if len(works) < 2:
        return works[0] if works else NOTHING
    in_flight = prefilling = prefill_tokens = kv_tokens = 0
    prefill_s = anchor_s = unseen_s = 0.0
    for work in works:
        in_flight += work[0]
        prefilling += work[1]
        prefill_s += work[2]
        anchor_s = max(anchor_s, work[3])
        unseen_s += max(0.0, work[4] - now_s)
        prefill_tokens += work[5]
        kv_tokens += work[6]
    until_s = now_s + unseen_s if unseen_s else 0.0
    return (in_flight, prefilling, prefill_s, anchor_s, until_s, prefill_tokens, kv_tokens)


def is_nothing(work: Work, now_s: float) -> bool:
    """Whether it puts nothing on the endpoint any more."""
    return not (work[0] or work[1] or work[5] or work[6]) and work[2] <= 0.0 and work[4] <= now_s
