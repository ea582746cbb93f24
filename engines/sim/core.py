"""The batching core: continuous batching, chunked prefill, preemption, on whatever clock.

Pure: no clock, no randomness, no I/O. Time comes in as `now_s`, in seconds from any origin, and
must not go backwards. The same calls with the same times give the same events, so a server can run
it on real time and a laboratory on a virtual clock.

Usage: `submit` and `abort` at any time; `step(now_s)` whenever work was submitted to an idle core
and then at each `next_at_s` it names. A call between those times does nothing. One batch runs at a
time; what is submitted meanwhile is considered when it ends, as in a real engine.

Admission order is strictly first come, first served: a request that does not fit holds up those
behind it. `running` is in order of admission, and at most its last member is in the middle of its
prompt, because a new one is admitted only with token budget to spare. Going through it in order
therefore serves decodes before prompt chunks.
"""

from __future__ import annotations

from array import array
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

from engines.profile import Profile
from engines.sim.blocks import BlockPool, chain_hash, root_hash
from engines.sim.job import Job, Phase

__all__ = ["Core", "Event", "KvStored", "Limits", "Step", "Totals"]

# A caller on real time is always a little late. Starting the next batch up to this much in the past
# keeps the mean step at the profile's length instead of adding each timer's lateness to it.
_CATCH_UP_S = 0.01


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes of the engine: vLLM's options of the same names."""

    block_size: int = 16
    num_blocks: int = 4096
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192

    def __post_init__(self) -> None:
        if min(self.block_size, self.num_blocks, self.max_num_seqs) < 1:
            raise ValueError("block_size, num_blocks and max_num_seqs must be at least 1")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ValueError("max_num_batched_tokens must not be below max_num_seqs")


class Event(NamedTuple):
    """One output token is there, or a job without output is done."""

    job: Job
    token: int
    """Which output token; -1 for a job without output."""
    finish_reason: str | None
    """Set on the job's last event."""
    gap_s: float
    """Time since the job's previous token, or since its arrival for the first."""
    n: int = 1
    """Tokens that it stands for, of which `token` is the last; above 1 only if the core leaps, and
    never for a job's first. `gap_s` is then their mean."""


class Step(NamedTuple):
    """What a call of `step` brought."""

    events: list[Event]
    next_at_s: float | None
    """When to call again; None: not before the next submit."""
    batch_tokens: int
    """Tokens computed by the batch that ended; 0 if none did."""


class KvStored(NamedTuple):
    """Consecutive blocks became findable by their hashes."""

    hashes: list[int]
    parent: int | None
    tokens: array[int]
    adapter: str
    salt: str = ""


@dataclass(slots=True)
class Totals:
    """Counts since the start. submitted = finished + aborted + waiting + running."""

    submitted: int = 0
    finished: int = 0
    aborted: int = 0
    preemptions: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    """Of jobs whose prompt has been computed, cached tokens included."""
    cached_tokens: int = 0
    """Part of prompt_tokens that came from the prefix cache."""
    output_tokens: int = 0
    query_tokens: int = 0
    """Tokens looked up in the prefix cache; counted when a job is first admitted."""
    hit_tokens: int = 0


class _Batch(NamedTuple):
    plan: list[tuple[Job, int]]
    start_s: float
    end_s: float
    tokens: int
    steps: int = 1
    """Of equal plans, one after the other."""
    first_s: float = 0.0
    """Duration of the first of them; each later one takes `growth_s` more than the one before."""
    growth_s: float = 0.0

    def until(self, steps: int) -> float:
        """When so many of its steps have ended."""
        return self.start_s + steps * self.first_s + self.growth_s * steps * (steps - 1) / 2

    def cut_at(self, now_s: float) -> _Batch:
        """The same without the steps that would begin after `now_s`."""
        low, high = 1, self.steps
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self.until(middle) >= now_s else (middle + 1, high)
        return self._replace(steps=low, end_s=self.until(low))


class Core:
    """One engine's scheduler and cache. Not for use from several threads.

    With `leaps` it computes many decode steps at once while nothing but a `submit` could come
    between them: the same times and caches from a fraction of the calls, for who does not need to
    see each token. A submit may then bring `next_at_s` forward.
    """

    def __init__(
        self, profile: Profile, limits: Limits, *, record_kv: bool = False, leaps: bool = False
    ) -> None:
        self.profile = profile
        self.limits = limits
        self.pool = BlockPool(limits.num_blocks)
        self.totals = Totals()
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.kv_stored: list[KvStored] = []
        """Cache additions since the caller last cleared it; filled if `record_kv`. Removals
        stand in `pool.removed`; within a step they precede the additions."""
        self._record_kv = record_kv
        self._leaps = leaps
        self._batch: _Batch | None = None

    def __repr__(self) -> str:
        return f"<Core {len(self.running)} running, {len(self.waiting)} waiting, {self.pool!r}>"

    @property
    def capacity_tokens(self) -> int:
        """Tokens the whole cache holds: the most one job may need."""
        return self.limits.num_blocks * self.limits.block_size

    @property
    def next_at_s(self) -> float | None:
        """End of the running batch, if one runs."""
        return None if self._batch is None else self._batch.end_s

    @property
    def idle(self) -> bool:
        """Nothing to do: no batch runs and nothing waits for one."""
        return self._batch is None and not self.running and not self.waiting

    def submit(self, job: Job, now_s: float) -> None:
        """Queue a new job. ValueError if the cache could never hold it, or the prompt is empty."""
        need = len(job.prompt) + len(job.output)
        if job.phase is not Phase.NEW or not job.prompt or need > self.capacity_tokens:
            raise ValueError(f"job {job.id!r} of {need} tokens cannot be served")
        job.phase = Phase.WAITING
        job.arrived_s = job.last_token_s = now_s
        job.tokens = job.prompt + job.output
        self.waiting.append(job)
        self.totals.submitted += 1
        if self._batch is not None and self._batch.steps > 1:
            self._batch = self._batch.cut_at(now_s)

    def abort(self, job: Job) -> bool:
        """Drop a job and free its blocks at once. False if it had ended. No event follows."""
        if job.phase is Phase.WAITING:
            self.waiting.remove(job)
        elif job.phase is Phase.RUNNING:
            self.running.remove(job)
        else:
            return False
        self._end(job)
        self.totals.aborted += 1
        return True

    def step(self, now_s: float) -> Step:
        """Deliver the batch that has ended by now, and start the next."""
        events: list[Event] = []
        start_s, tokens, done = now_s, 0, self._batch
        if done is not None:
            if now_s < done.end_s:
                return Step(events, done.end_s, 0)
            late_s = min(now_s - done.end_s, done.end_s - done.start_s, _CATCH_UP_S)
            start_s = now_s - late_s
            self._complete(done, events)
            tokens = done.tokens * done.steps
            self._batch = None
        plan = self._schedule(start_s)
        if not plan:
            return Step(events, None, tokens)
        self._batch = self._launch(plan, start_s)
        return Step(events, self._batch.end_s, tokens)

    def _launch(self, plan: list[tuple[Job, int]], start_s: float) -> _Batch:
        chunk_tokens = decodes = decode_ctx = 0
        chunk_ctx = 0.0
        for job, n in plan:
            if job.emitted and job.computed == job.known - 1:
                decodes += 1
                decode_ctx += job.known
            else:
                chunk_tokens += n
                chunk_ctx += n * (job.computed + n / 2)
        self.totals.steps += 1
        step_s = self.profile.step_s(chunk_tokens, chunk_ctx, decodes, decode_ctx)
        batch = _Batch(plan, start_s, start_s + step_s, chunk_tokens + decodes, 1, step_s)
        if self._leaps and not chunk_tokens:
            steps = self._steps_ahead(plan)
            batch = batch._replace(steps=steps, growth_s=self.profile.decode_ctx_s * decodes)
            batch = batch._replace(end_s=batch.until(steps))
        return batch

    def _steps_ahead(self, plan: list[tuple[Job, int]]) -> int:
        """How often these decodes can go on before one ends or blocks run short."""
        steps = min(len(job.output) - job.emitted for job, _ in plan)
        size = self.limits.block_size
        fresh = sum(-(-(job.computed + steps) // size) - len(job.blocks) for job, _ in plan)
        return steps if fresh <= self.pool.free else 1

    def _complete(self, batch: _Batch, events: list[Event]) -> None:
        ended = False
        self.totals.steps += batch.steps - 1
        for job, n in batch.plan:
            if job.phase is not Phase.RUNNING:
                continue  # aborted while the batch ran
            job.computed += n + batch.steps - 1
            if job.computed == job.known + batch.steps - 1:
                event = self._emit(job, batch.end_s, batch.steps)
                events.append(event)
                ended = ended or event.finish_reason is not None
        if ended:
            self.running = [job for job in self.running if job.phase is Phase.RUNNING]

    def _emit(self, job: Job, at_s: float, n: int) -> Event:
        gap_s = max(0.0, at_s - job.last_token_s) / n  # see _CATCH_UP_S
        job.last_token_s = at_s
        if job.first_token_s < 0:
            job.first_token_s = at_s
            self.totals.prompt_tokens += len(job.prompt)
            self.totals.cached_tokens += job.cached_tokens
        token = -1
        if job.output:
            token = job.emitted + n - 1
            job.emitted += n
            job.known += n
            self.totals.output_tokens += n
        if job.emitted < len(job.output):
            return Event(job, token, None, gap_s, n)
        self._end(job)
        self.totals.finished += 1
        return Event(job, token, job.finish_reason, gap_s, n)

    def _end(self, job: Job) -> None:
        job.phase = Phase.ENDED
        self.pool.release(job.blocks)
        job.blocks = []

    def _schedule(self, now_s: float) -> list[tuple[Job, int]]:
        plan: list[tuple[Job, int]] = []
        budget = self.limits.max_num_batched_tokens
        preemptions = self.totals.preemptions
        at = 0
        while at < len(self.running) and budget:
            job = self.running[at]
            n = min(job.known - job.computed, budget)
            if not self._make_room(job, job.computed + n):
                break  # it was the last one, and has been preempted itself
            plan.append((job, n))
            budget -= n
            at += 1
        if self.totals.preemptions == preemptions:
            self._admit(plan, budget, now_s)
        return plan

    def _make_room(self, job: Job, tokens: int) -> bool:
        fresh = -(-tokens // self.limits.block_size) - len(job.blocks)
        if fresh > 0:
            blocks = self.pool.take((), fresh)
            while blocks is None:
                victim = self.running.pop()
                self._preempt(victim)
                if victim is job:
                    return False
                blocks = self.pool.take((), fresh)
            job.blocks += blocks
        if tokens // self.limits.block_size > job.sealed:
            self._seal(job, tokens)
        return True

    def _preempt(self, job: Job) -> None:
        """Back to the head of the queue, to be computed anew: vLLM's only way of preempting."""
        self.pool.release(job.blocks)
        job.blocks = []
        job.computed = job.sealed = 0
        job.phase = Phase.WAITING
        job.preemptions += 1
        self.totals.preemptions += 1
        self.waiting.appendleft(job)

    def _admit(self, plan: list[tuple[Job, int]], budget: int, now_s: float) -> None:
        while self.waiting and budget and len(self.running) < self.limits.max_num_seqs:
            job = self.waiting[0]
            n = self._place(job, budget)
            if not n:
                break
            self.waiting.popleft()
            self.running.append(job)
            job.phase = Phase.RUNNING
            if job.scheduled_s < 0:
                job.scheduled_s = max(now_s, job.arrived_s)
                job.cached_tokens = job.computed
                self.totals.query_tokens += len(job.prompt)
                self.totals.hit_tokens += job.computed
            plan.append((job, n))
            budget -= n

    def _place(self, job: Job, budget: int) -> int:
        """Give the job its cached blocks and room for a first chunk; the chunk's size, or 0."""
        size = self.limits.block_size
        self._extend_hashes(job, job.known)
        # The last token is computed even if its block is cached: its logits are what is wanted.
        cached = self.pool.match(job.hashes, (job.known - 1) // size)
        hit = len(cached) * size
        n = min(job.known - hit, budget)
        blocks = self.pool.take(cached, -(-(hit + n) // size) - len(cached))
        if blocks is None:
            return 0
        job.blocks = blocks
        job.computed = hit
        job.sealed = len(cached)
        self._seal(job, hit + n)
        return n

    def _seal(self, job: Job, tokens: int) -> None:
        """Make the blocks findable that the coming batch fills; vLLM does so when it schedules."""
        size = self.limits.block_size
        full = tokens // size
        if full <= job.sealed:
            return
        self._extend_hashes(job, tokens)
        first = job.sealed
        for at in range(first, full):
            self.pool.seal(job.blocks[at], job.hashes[at])
        job.sealed = full
        if self._record_kv:
            parent = job.hashes[first - 1] if first else None
            tokens_in = job.tokens[first * size : full * size]
            hashes = job.hashes[first:full]
            self.kv_stored.append(KvStored(hashes, parent, tokens_in, job.adapter, job.salt))

    def _extend_hashes(self, job: Job, tokens: int) -> None:
        size = self.limits.block_size
        hashes = job.hashes
        for at in range(len(hashes), tokens // size):
            parent = hashes[-1] if hashes else root_hash(job.namespace)
            hashes.append(chain_hash(parent, job.tokens[at * size : (at + 1) * size]))
