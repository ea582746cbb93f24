"""A worker's routing from a prompt's hashes to a booked endpoint: `Router.send`."""

from array import array
from collections.abc import Sequence

import pytest

from engines.profile import profile_named
from router import Index, State, Table, make_policy
from router._demand import Demand
from router._hash import block_hashes
from router._router import Dispatch, Router

BLOCK_TOKENS = 64.0
# A 70B model over four GPUs, about.
PROFILE = (0.015, 1e-4, 1.5e-9, 3e-5, 2e-8, 1e6)


def prompt(name: int, n_blocks: int = 128) -> "array[int]":
    return block_hashes(b"m", name.to_bytes(8, "little") * n_blocks, 8)


class Gateway:
    """Workers that share a table, and an index unless they have none."""

    def __init__(
        self,
        n_endpoints: int = 8,
        policy: str = "marginal-cost",
        n_workers: int = 1,
        index: Index | None = None,
        profile: Sequence[float] = PROFILE,
    ) -> None:
        self.table = Table(bytearray(Table.size(n_workers)), n_workers)
        self.slots = range(n_endpoints)
        for slot in self.slots:
            self.table.set_row(slot, state=State.READY, share=1.0, generation=1, profile=profile)
        self.demands = [Demand() for _ in range(n_workers)]
        self.routers = [
            Router(self.table, worker, make_policy(policy, worker), index, float(n_workers))
            for worker in range(n_workers)
        ]

    def send(
        self,
        keys: "array[int]",
        now_s: float = 100.0,
        worker: int = 0,
        slots: Sequence[int] | None = None,
    ) -> Dispatch | None:
        return self.routers[worker].send(
            self.demands[worker],
            self.slots if slots is None else slots,
            keys,
            len(keys) * BLOCK_TOKENS,
            BLOCK_TOKENS,
            now_s,
        )

    def sent(self, keys: "array[int]", now_s: float = 100.0, worker: int = 0) -> Dispatch:
        dispatch = self.send(keys, now_s, worker)
        assert dispatch is not None
        return dispatch


@pytest.mark.parametrize("n_workers", [1, 2])
@pytest.mark.parametrize("gap_s", [0.0, 0.003, 0.05])
@pytest.mark.parametrize("profile", ["8b-h100", "70b-h100-tp4"])
def test_a_burst_of_equal_cold_prompts_meets(n_workers: int, gap_s: float, profile: str) -> None:
    """16 prompts of 8k tokens over 8 endpoints, none of which has them."""
    gateway = Gateway(n_workers=n_workers, profile=(*profile_named(profile).times, 2e6))
    burst = [gateway.sent(prompt(1), 100.0 + gap_s * at, worker=at % n_workers) for at in range(16)]
    assert len({dispatch.slot for dispatch in burst}) <= 2


def test_a_burst_meets_where_prompts_alone_decide() -> None:
    gateway = Gateway(policy="lmetric")
    first = gateway.sent(prompt(1))
    first.release(100.0)
    assert {gateway.sent(prompt(1)).slot for _ in range(4)} == {first.slot}


def test_different_cold_prompts_spread() -> None:
    gateway = Gateway()
    assert {gateway.sent(prompt(name)).slot for name in range(8)} == set(gateway.slots)


def test_what_was_sent_is_known_for_one_to_two_lifetimes() -> None:
    for passed_s, is_known in ((0.0, True), (0.9, True), (2.1, False), (60.0, False)):
        gateway = Gateway()
        first = gateway.sent(prompt(1), 100.0)
        first.release(100.0)
        again = gateway.sent(prompt(1), 100.0 + passed_s)
        assert (again.hit_tokens > 0) == is_known, passed_s


def test_what_was_sent_is_forgotten_when_a_slot_has_another_endpoint() -> None:
    gateway = Gateway()
    gateway.sent(prompt(1), 100.0).release(100.0)
    gateway.routers[0].forget_recent()
    assert gateway.sent(prompt(1), 100.0).hit_tokens == 0


def test_what_was_sent_is_known_to_its_worker_alone_until_the_index_has_it() -> None:
    index = Index(bytearray(Index.size(1000)), 1000)
    gateway = Gateway(n_workers=2, index=index)
    first = gateway.sent(prompt(1))
    first.release(100.0)
    assert gateway.sent(prompt(1), worker=1).hit_tokens == 0
    index.note(prompt(2), 5)
    second = gateway.sent(prompt(2), worker=1)
    assert (second.slot, second.hit_tokens) == (5, 128 * BLOCK_TOKENS - 1)


def test_hits_end_at_the_first_block_that_is_missing() -> None:
    index = Index(bytearray(Index.size(1000)), 1000)
    keys = prompt(1)
    index.note(keys[:100], 3)
    index.note(keys[101:], 3)
    dispatch = Gateway(index=index).sent(keys)
    assert (dispatch.slot, dispatch.hit_tokens) == (3, 100 * BLOCK_TOKENS)


def test_an_endpoint_gets_no_more_than_it_takes() -> None:
    gateway = Gateway(2)
    for slot in gateway.slots:
        gateway.table.set_row(slot, max_in_flight=2)
    sent = [gateway.sent(prompt(1)) for _ in range(4)]
    assert sorted(dispatch.slot for dispatch in sent) == [0, 0, 1, 1]
    assert gateway.send(prompt(1)) is None
    sent[0].release(101.0)
    assert gateway.sent(prompt(1)).slot == sent[0].slot


def test_an_endpoint_on_trial_gets_one_request_at_a_time_from_all_workers() -> None:
    gateway = Gateway(1, n_workers=2)
    gateway.table.set_row(0, state=State.TRIAL)
    first = gateway.sent(prompt(1))
    assert gateway.send(prompt(1), worker=0) is None
    assert gateway.send(prompt(1), worker=1) is None
    first.release(101.0)
    assert gateway.sent(prompt(1), worker=1).slot == 0


def test_a_full_cache_is_spared_new_blocks_while_hits_are_common() -> None:
    index = Index(bytearray(Index.size(1000)), 1000)
    index.note(prompt(1), 0)
    index.note(prompt(1), 1)
    for name, full in ((2, 0), (3, 1)):
        gateway = Gateway(2, index=index)
        for _ in range(8):
            gateway.sent(prompt(1)).release(100.0)
        gateway.table.set_row(full, full=True)
        assert gateway.sent(prompt(name)).slot == 1 - full


def test_a_prompt_without_blocks_is_sent_too() -> None:
    dispatch = Gateway().send(array("Q"))
    assert dispatch is not None
    assert dispatch.hit_tokens == 0


@pytest.mark.parametrize("policy", ["least-requests", "round-robin", "power-of-two"])
def test_policies_that_read_no_prompts_know_of_no_hits(policy: str) -> None:
    index = Index(bytearray(Index.size(1000)), 1000)
    for slot in range(8):
        index.note(prompt(1), slot)
    gateway = Gateway(policy=policy, index=index)
    assert [gateway.sent(prompt(1)).hit_tokens for _ in range(3)] == [0, 0, 0]


def test_slots_that_are_none_are_refused() -> None:
    gateway = Gateway()
    with pytest.raises(ValueError, match="more than 1024"):
        gateway.send(prompt(1), slots=[0] * 1025)
    for slot in (-1, 1024):
        with pytest.raises(IndexError, match=f"slot {slot}"):
            gateway.send(prompt(1), slots=[slot])
