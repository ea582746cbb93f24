"""Engines and gateways on one virtual clock.

Each engine is the simulated engine's own core; each gateway is the product's router with a table,
an index and assumed caches of its own. What the network adds is left out.
"""

import heapq
from array import array
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from random import Random

import msgspec

from bench.lab.traces import BLOCK_TOKENS, Arrival
from engines.profile import Profile, profile_named
from engines.sim.core import Core, Limits
from engines.sim.job import Job
from router import State, Table, make_policy
from router._assumed import AssumedCache
from router._booking import Booker
from router._demand import Demand
from router._index import Index
from router._router import Dispatch, Router

__all__ = ["Plan", "Served", "World"]

Work = tuple[int, int, float, float, float, int, int]
"""See Table.work."""

# Spreads small block numbers over 64 bits, as hashes are.
SPREAD = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1
MAX_PODS = 1024
"""The endpoint table's slots."""


class Plan(msgspec.Struct, frozen=True):
    """What is run, but for the trace."""

    policy: str = "marginal-cost"
    options: dict[str, float] = {}
    """The policy's own."""
    profile: str = "70b-h100-tp4"
    pods: int = 8
    cache_tokens: int = 2_000_000
    """KV cache of each pod."""
    seed: int = 0
    gateways: int = 1
    bus_delay_s: float = 0.0
    """How old what gateways know of each other is; below 0: they know nothing."""
    exact: bool = False
    """Caches are known by the engines' events instead of being assumed."""
    poll_s: float = 0.0
    """Policies see the load as it was at the last poll, this far apart; 0: as it is booked."""
    cost_factor: float = 1.0
    """The router's prompt times are wrong by this factor."""
    cost_noise: float = 0.0
    """Sigma of a lognormal error of each endpoint's prompt times."""

    def __post_init__(self) -> None:
        if not 1 <= self.pods <= MAX_PODS or self.gateways < 1:
            raise ValueError(f"there are 1 to {MAX_PODS} pods, and at least 1 gateway")
        if self.cache_tokens < BLOCK_TOKENS:
            raise ValueError(f"a cache holds at least {BLOCK_TOKENS} tokens")


@dataclass(slots=True)
class Served:
    """How a request was served."""

    arrival: Arrival
    pod: int
    hit_tokens: float = 0.0
    """As the router expected."""
    cached_tokens: int = 0
    """As the engine found."""
    first_s: float = -1.0
    end_s: float = -1.0

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.arrival.at_s

    @property
    def tpot_s(self) -> float:
        """Time per output token after the first; 0 for answers of one token."""
        n = self.arrival.output_tokens - 1
        return (self.end_s - self.first_s) / n if n else 0.0

    @property
    def total_s(self) -> float:
        return self.end_s - self.arrival.at_s


@dataclass(slots=True)
class _Running:
    served: Served
    dispatch: Dispatch
    gateway: "_Gateway"


class _Gateway:
    """A router with what it knows: own load in column 0, the other gateways' in column 1."""

    def __init__(self, plan: Plan, index: int, profiles: list[Profile]) -> None:
        self.plan = plan
        self.number = index
        self.table = Table(bytearray(Table.size(2)), 2)
        self.seen = self.table
        capacity = plan.pods * (plan.cache_tokens // BLOCK_TOKENS) + 1
        self.index = Index(bytearray(Index.size(capacity)), capacity)
        self.caches = [
            AssumedCache(self.index, pod, plan.cache_tokens // BLOCK_TOKENS)
            for pod in range(plan.pods)
        ]
        self.demand = Demand()
        self.slots = range(plan.pods)
        self.peers: list[dict[int, Work]] = [{} for _ in range(plan.pods)]
        self.inserts: deque[tuple[float, int, array[int]]] = deque()
        """Of the other gateways: (from when it is known here, pod, keys)."""
        if plan.poll_s:
            self.seen = Table(bytearray(Table.size(2)), 2)
        policy = make_policy(plan.policy, plan.seed + index, **plan.options)
        booker = Booker(self.table, 0)
        self.router = Router(self.seen, 0, policy, self.index, float(plan.gateways), booker)
        for pod, profile in enumerate(profiles):
            for table in {id(self.table): self.table, id(self.seen): self.seen}.values():
                table.set_row(
                    pod,
                    state=State.READY,
                    share=1.0,
                    generation=1,
                    identity=(pod + 1) * SPREAD & MASK,
                    profile=(
                        profile.base_s,
                        profile.chunk_token_s,
                        profile.chunk_token_ctx_s,
                        profile.decode_seq_s,
                        profile.decode_ctx_s,
                        plan.cache_tokens,
                    ),
                )

    def send(self, arrival: Arrival, keys: "array[int]", now_s: float) -> Dispatch:
        while self.inserts and self.inserts[0][0] <= now_s:
            _, pod, known = self.inserts.popleft()
            self.caches[pod].sent(known)
        doubt = 0.0
        if self.plan.gateways > 1:
            delay_s = self.plan.bus_delay_s
            doubt = min(0.3, 0.3 * delay_s) if delay_s >= 0 else 0.3
        dispatch = self.router.send(
            self.demand, self.slots, keys, arrival.prompt_tokens, BLOCK_TOKENS, now_s, doubt=doubt
        )
        assert dispatch is not None
        if not self.plan.exact:
            self.caches[dispatch.slot].sent(keys)
        return dispatch

    def note_full(self, pod: int, is_full: bool) -> None:
        for table in (self.table, self.seen):
            table.set_row(pod, full=is_full)


class World:
    """Runs one plan over one trace."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        profile = replace(profile_named(plan.profile), kv_tokens=plan.cache_tokens)
        limits = Limits(
            block_size=BLOCK_TOKENS,
            num_blocks=plan.cache_tokens // BLOCK_TOKENS,
            max_num_seqs=256,
            max_num_batched_tokens=8192,
        )
        self.cores = [
            Core(profile, limits, record_kv=plan.exact, leaps=True) for _ in range(plan.pods)
        ]
        random = Random(plan.seed)
        assumed = [
            replace(
                profile,
                chunk_token_s=profile.chunk_token_s * factor,
                chunk_token_ctx_s=profile.chunk_token_ctx_s * factor,
            )
            for factor in (
                plan.cost_factor * random.lognormvariate(0.0, plan.cost_noise)
                for _ in range(plan.pods)
            )
        ]
        self.gateways = [_Gateway(plan, index, assumed) for index in range(plan.gateways)]
        self._choice = Random(plan.seed + 1)
        self._heap: list[tuple[float, int]] = []
        self._due = [float("inf")] * plan.pods
        self._bus: deque[tuple[float, int, int, Work]] = deque()
        self._next_poll_s = 0.0

    def run(self, arrivals: list[Arrival]) -> list[Served]:
        """Serve them all, in order of arrival. ValueError: one is larger than a cache."""
        most = max((a.prompt_tokens + a.output_tokens for a in arrivals), default=0)
        if most > self.cores[0].capacity_tokens:
            raise ValueError(f"a request of {most} tokens needs a larger cache than there is")
        done: list[Served] = []
        for arrival in arrivals:
            self._advance(arrival.at_s)
            done.append(self._submit(arrival))
        self._advance(float("inf"))
        return done

    def _advance(self, until_s: float) -> None:
        heap = self._heap
        while heap and heap[0][0] <= until_s:
            at_s, pod = heapq.heappop(heap)
            if at_s == self._due[pod]:
                self._step(pod, at_s)

    def _step(self, pod: int, now_s: float) -> None:
        core = self.cores[pod]
        step = core.step(now_s)
        for event in step.events:
            running = event.job.owner
            assert isinstance(running, _Running)
            if event.job.first_token_s == now_s and running.served.first_s < 0:
                running.served.first_s = now_s
                running.served.cached_tokens = event.job.cached_tokens
                running.dispatch.first_token(now_s)
                self._publish(running.gateway, pod, now_s)
            else:
                running.dispatch.grow(event.n)
            if event.finish_reason is not None:
                running.served.end_s = now_s
                running.dispatch.release(now_s)
                self._publish(running.gateway, pod, now_s)
                running.gateway.demand.note_end(running.served.arrival.output_tokens)
        if self.plan.exact:
            self._tell(pod)
        self._expect(pod, step.next_at_s)

    def _expect(self, pod: int, at_s: float | None) -> None:
        if at_s is None:
            self._due[pod] = float("inf")
        elif at_s != self._due[pod]:
            self._due[pod] = at_s
            heapq.heappush(self._heap, (at_s, pod))

    def _submit(self, arrival: Arrival) -> Served:
        now_s = arrival.at_s
        self._sync(now_s)
        keys = array("Q", [(block + 1) * SPREAD & MASK for block in arrival.blocks])
        gateway = self._choice.choice(self.gateways) if self.plan.gateways > 1 else self.gateways[0]
        dispatch = gateway.send(arrival, keys, now_s)
        pod = dispatch.slot
        self._publish(gateway, pod, now_s)
        if self.plan.bus_delay_s >= 0 and not self.plan.exact:
            for other in self.gateways:
                if other is not gateway:
                    other.inserts.append((now_s + self.plan.bus_delay_s, pod, keys))
        served = Served(arrival, pod, dispatch.hit_tokens)
        core = self.cores[pod]
        job = Job(
            id=None,
            prompt=array("I", bytes(4 * arrival.prompt_tokens)),
            output=array("I", bytes(4 * arrival.output_tokens)),
            owner=_Running(served, dispatch, gateway),
        )
        # The trace says what the tokens would: which blocks are the same.
        job.hashes = list(keys)
        was_idle = core.next_at_s is None
        core.submit(job, now_s)
        if was_idle:
            self._step(pod, now_s)
        else:
            self._expect(pod, core.next_at_s)
        full = core.pool.untouched < 0.05 * core.limits.num_blocks
        for each in self.gateways:
            each.note_full(pod, full)
        return served

    def _sync(self, now_s: float) -> None:
        """What gateways know of each other, and of a load that is polled."""
        plan = self.plan
        while self._bus and self._bus[0][0] <= now_s - plan.bus_delay_s:
            _, sender, pod, work = self._bus.popleft()
            for gateway in self.gateways:
                if gateway.number != sender:
                    gateway.peers[pod][sender] = work
                    gateway.table.set_work(1, pod, _sum(gateway.peers[pod].values()))
        if plan.poll_s and now_s >= self._next_poll_s:
            self._next_poll_s = now_s + plan.poll_s
            for gateway in self.gateways:
                for pod in range(plan.pods):
                    for column in (0, 1):
                        gateway.seen.set_work(column, pod, gateway.table.work(column, pod))

    def _publish(self, gateway: _Gateway, pod: int, now_s: float) -> None:
        """Its load on a pod has changed."""
        if self.plan.gateways > 1 and self.plan.bus_delay_s >= 0:
            work = gateway.table.work(0, pod)
            self._bus.append((now_s, gateway.number, pod, work))

    def _tell(self, pod: int) -> None:
        """An engine's events reach every gateway."""
        core = self.cores[pod]
        cached = core.pool.hashes()
        removed = array("Q", [key for key in core.pool.removed if key not in cached])
        core.pool.removed.clear()
        for gateway in self.gateways:
            gateway.index.forget(removed, pod)
            for stored in core.kv_stored:
                gateway.index.note(array("Q", stored.hashes), pod)
        core.kv_stored.clear()


def _sum(works: Iterable[Work]) -> Work:
    """Several gateways' work on one pod as one: numbers add up, the newest anchor counts."""
    in_flight, prefilling, prefill_s, anchor_s, unseen_s, tokens, kv_tokens = zip(
        *works, strict=True
    )
    return (
        sum(in_flight),
        sum(prefilling),
        sum(prefill_s),
        max(anchor_s),
        max(unseen_s),
        sum(tokens),
        sum(kv_tokens),
    )
