"""The retry table, case by case, and the budget as a property."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy.retry import Budget, Cause, Verdict, decide

CASES = [
    # cause, refreshed, redispatched, deaths, verdict
    (Cause.DIAL, False, False, 0, Verdict.ELSEWHERE),
    (Cause.DIAL, True, False, 0, Verdict.ELSEWHERE),
    (Cause.DIAL, False, True, 0, Verdict.ELSEWHERE_IN_BUDGET),
    (Cause.LOST_REUSED, False, False, 0, Verdict.SAME_FRESH),
    (Cause.LOST_REUSED, True, False, 0, Verdict.ELSEWHERE_IN_BUDGET),
    (Cause.LOST, False, False, 1, Verdict.ELSEWHERE_IN_BUDGET),
    (Cause.LOST, False, False, 2, Verdict.GIVE_UP),
    (Cause.CONDEMNED, False, False, 1, Verdict.ELSEWHERE),
    (Cause.CONDEMNED, False, True, 1, Verdict.ELSEWHERE_IN_BUDGET),
    (Cause.CONDEMNED, False, False, 2, Verdict.GIVE_UP),
    (Cause.STATUS, False, False, 0, Verdict.ELSEWHERE_IN_BUDGET),
    (Cause.DYING, False, False, 1, Verdict.ELSEWHERE_IN_BUDGET),
    (Cause.DYING, False, False, 2, Verdict.GIVE_UP),
    (Cause.MALFORMED, False, False, 0, Verdict.GIVE_UP),
    (Cause.TIMEOUT, False, False, 0, Verdict.GIVE_UP),
]


@pytest.mark.parametrize(("cause", "refreshed", "redispatched", "deaths", "verdict"), CASES)
def test_the_table(
    cause: Cause, refreshed: bool, redispatched: bool, deaths: int, verdict: Verdict
) -> None:
    got = decide(cause, refreshed=refreshed, redispatched=redispatched, deaths=deaths)
    assert got == verdict


@given(
    share=st.floats(0, 1),
    floor=st.integers(0, 50),
    seconds=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 80)), max_size=40),
)
def test_no_window_holds_more_retries_than_its_budget(
    share: float, floor: int, seconds: list[tuple[int, int]]
) -> None:
    window = 10
    budget = Budget(share, floor, window)
    accepted = 0
    granted: list[int] = []
    requests: list[int] = []
    for new_requests, wanted in seconds:
        accepted += new_requests
        granted.append(sum(budget.spend(accepted) for _ in range(wanted)))
        requests.append(new_requests)
        # One window back, and the second that is only partly in it.
        in_window = sum(requests[-window - 1 :])
        assert not granted[-1] or sum(granted[-window:]) <= max(floor, share * in_window) + 1
        budget.tick(accepted)


def test_a_quiet_gateway_may_spend_its_floor_and_gets_it_back() -> None:
    budget = Budget(0.1, 3, 10)
    assert [budget.spend(0) for _ in range(5)] == [True, True, True, False, False]
    for _ in range(10):
        budget.tick(0)
    assert budget.spend(0)


def test_a_budget_counts_from_what_was_accepted_before_it() -> None:
    """A worker that is respawned goes on in the column of the one before."""
    budget = Budget(0.1, 1, 10, accepted=1_000_000)
    assert [budget.spend(1_000_000) for _ in range(2)] == [True, False]
