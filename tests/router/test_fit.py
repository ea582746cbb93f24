"""Engine profiles learned from what dispatches took."""

from array import array
from collections.abc import Sequence
from random import Random

import pytest

from router import Fit, State, Table, make_policy
from router._demand import Demand
from router._router import Router

PRIOR = (0.02, 1e-4, 1e-9, 1e-4, 1e-7, 1e6)
TRUE = (0.03, 2e-4, 3e-9, 3e-4, 4e-8, 1e6)
NAMES = ("base_s", "chunk_token_s", "chunk_token_ctx_s", "decode_seq_s", "decode_ctx_s")
SLOT = 5


def prefill_s(profile: Sequence[float], tokens: int) -> float:
    return profile[0] + tokens * (profile[1] + profile[2] * tokens / 2)


class Engine:
    """One endpoint of a table, and requests to it that take what `true` says."""

    def __init__(self, prior: tuple[float, ...] = PRIOR, n_workers: int = 2) -> None:
        self.table = Table(bytearray(Table.size(n_workers)), n_workers)
        self.table.set_row(SLOT, state=State.READY, share=1.0, profile=prior)
        self.routers = [
            Router(self.table, worker, make_policy("round-robin"), None)
            for worker in range(n_workers)
        ]
        self.random = Random(3)
        self.now_s = 100.0

    def noise(self) -> float:
        return self.random.uniform(0.9, 1.1)

    def prefill(self, true: tuple[float, ...], n: int) -> None:
        for _ in range(n):
            tokens = self.random.choice((200, 1000, 4000, 16000))
            took_s = prefill_s(true, tokens)
            dispatch = self.random.choice(self.routers).send(
                Demand(), [SLOT], array("Q"), tokens, 16, self.now_s
            )
            assert dispatch is not None
            self.now_s += took_s * self.noise()
            dispatch.first_token(self.now_s)
            dispatch.release(self.now_s)

    def decode(self, true: tuple[float, ...], n: int) -> None:
        """Batches whose requests are of several workers; all of them count for a step."""
        for _ in range(n):
            batch = self.random.choice((1, 4, 16, 64))
            tokens = self.random.choice((500, 4000))
            sent = [
                self.routers[at % len(self.routers)].send(
                    Demand(), [SLOT], array("Q"), tokens, 16, self.now_s
                )
                for at in range(batch)
            ]
            # The first of them is alone, so its time to first token is learned from, too.
            self.now_s += prefill_s(true, tokens)
            for dispatch in sent:
                assert dispatch is not None
                dispatch.first_token(self.now_s)
                dispatch.grow(20)
            for left, dispatch in zip(range(batch, 0, -1), sent, strict=True):
                assert dispatch is not None
                step_s = true[0] + left * (true[3] + true[4] * (tokens + 21))
                dispatch.release(self.now_s + 20 * step_s * self.noise())
            self.now_s += 10

    def profile(self) -> list[float]:
        found = self.table.profile(SLOT)
        return [found[name] for name in NAMES]


def test_coefficients_are_found_from_noisy_observations() -> None:
    engine = Engine()
    fit = Fit(engine.table, SLOT)
    for _ in range(60):
        engine.prefill(TRUE, 20)
        engine.decode(TRUE, 3)
        assert fit.update()
    found = engine.profile()
    # What counts is what they predict: noise may shift one part of a line against another.
    for tokens in (1000, 4000, 16000):
        assert prefill_s(found, tokens) == pytest.approx(prefill_s(TRUE, tokens), rel=0.1)
    for requests in (4, 64):
        steps = [requests * (one[3] + 2000 * one[4]) for one in (found, TRUE)]
        assert steps[0] == pytest.approx(steps[1], rel=0.1)
    assert engine.table.profile(SLOT)["kv_tokens"] == TRUE[5]


def test_without_observations_the_profile_stays() -> None:
    engine = Engine()
    engine.prefill(TRUE, 50)  # before: of another endpoint in the slot, maybe
    fit = Fit(engine.table, SLOT)
    assert not fit.update()
    assert engine.profile() == list(PRIOR[:5])


def test_few_observations_move_it_little() -> None:
    engine = Engine()
    fit = Fit(engine.table, SLOT)
    engine.prefill(tuple(10 * one for one in PRIOR), 1)
    assert fit.update()
    for found, prior in zip(engine.profile(), PRIOR, strict=False):
        assert prior / 1.7 < found < 1.7 * prior


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_estimates_stay_within_reach_of_the_starting_profile(factor: float) -> None:
    engine = Engine()
    fit = Fit(engine.table, SLOT)
    for _ in range(100):
        engine.prefill(tuple(factor * one for one in PRIOR), 20)
        engine.decode(tuple(factor * one for one in PRIOR), 2)
        fit.update()
    for found, prior in zip(engine.profile(), PRIOR, strict=False):
        assert prior / 30.01 <= found <= 30.01 * prior


def test_a_profile_of_zeros_stays_one() -> None:
    engine = Engine((0.0,) * 6)
    fit = Fit(engine.table, SLOT)
    engine.prefill(TRUE, 50)
    fit.update()
    assert engine.profile() == [0.0] * 5


def test_a_lost_worker_takes_no_observation_back() -> None:
    engine = Engine()
    fit = Fit(engine.table, SLOT)
    engine.prefill(TRUE, 20)
    engine.table.lose_worker(0)
    assert fit.update()
    assert not fit.update()
    engine.prefill(TRUE, 1)
    assert fit.update()


def test_prompts_behind_others_are_not_observed() -> None:
    """Whichever worker sent what is before them: their time to first token is not their own."""
    engine = Engine()
    fit = Fit(engine.table, SLOT)
    for is_seen in (True, False):
        before = engine.routers[0].send(
            Demand(), [SLOT], array("Q"), 9000, 16, engine.now_s, is_seen=is_seen
        )
        behind = engine.routers[1].send(Demand(), [SLOT], array("Q"), 100, 16, engine.now_s)
        assert before is not None
        assert behind is not None
        behind.first_token(engine.now_s + 5)
        behind.release(engine.now_s + 5)
        before.release(engine.now_s + 5)
        engine.now_s += 10
    assert not fit.update()


@pytest.mark.parametrize("slot", [-1, 1024])
def test_a_slot_that_is_none_is_refused(slot: int) -> None:
    with pytest.raises(IndexError, match=f"slot {slot}"):
        Fit(Engine().table, slot)
