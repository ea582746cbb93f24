"""What is expected of an endpoint's cache, against what its engine says it found."""

from array import array

import pytest

from router import Index, Missing, State, Table, make_policy
from router._demand import Demand
from router._router import Router

KEYS = range(1, 101)
BLOCK_TOKENS = 64.0


def make():
    table = Table(bytearray(Table.size(1)), 1)
    index = Index(bytearray(Index.size(1024)), 1024)
    keys = array("Q", KEYS)
    index.note(keys, 0)
    profile = (0.001, 1e-5, 0.0, 1e-4, 0.0, 1e6)
    table.set_row(0, state=State.READY, share=1.0, generation=1, profile=profile)
    router = Router(table, 0, make_policy("marginal-cost"), index)
    return table, keys, router


def ask(router, keys, found_share, n=1):
    """`n` prompts, all of which are expected to be cached."""
    for _ in range(n):
        dispatch = router.send(Demand(), [0], keys, len(keys) * BLOCK_TOKENS + 1, BLOCK_TOKENS, 1.0)
        dispatch.release(1.0)
        dispatch.found(found_share * len(keys) * BLOCK_TOKENS)
    return dispatch.hit_tokens


@pytest.mark.parametrize("share", [1.0, 0.7, 0.3])
def test_the_expectation_comes_down_to_what_is_found(share):
    table, keys, router = make()
    missing = Missing(table, 0)
    for _ in range(100):
        ask(router, keys, share, 3)
        assert not missing.update()
    assert ask(router, keys, share) == pytest.approx(share * 6400, rel=0.03)
    for _ in range(300):
        ask(router, keys, 1.0, 3)
        missing.update()
    assert ask(router, keys, 1.0) == pytest.approx(6400, rel=0.03)


def test_one_prompt_decides_nothing():
    table, keys, router = make()
    missing = Missing(table, 0)
    ask(router, keys[:20], 0.0)
    assert not missing.update()
    assert ask(router, keys, 1.0) > 0.7 * 6400


def test_a_cache_of_which_nothing_is_left_is_told():
    table, keys, router = make()
    missing = Missing(table, 0)
    ask(router, keys, 0.0)
    assert missing.update()
    # From here on it is as good as new.
    assert ask(router, keys, 1.0) == 6400
    assert not missing.update()


def test_more_than_expected_makes_up_for_nothing():
    table, keys, router = make()
    Missing(table, 0)
    ask(router, keys, 5.0)
    assert table.hits(0) == (6400, 6400)
