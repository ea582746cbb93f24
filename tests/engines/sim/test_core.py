"""The batching core on a virtual clock."""

from __future__ import annotations

from array import array
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.sim import PROFILES, Core, Event, Job, Limits, Phase, Profile

TICK = Profile("tick", 1.0, 0.0, 0.0, 0.0, 0.0, 0)


def job(name: str, prompt: int, output: int, start: int = 0, **fields: object) -> Job:
    ids = array("I", range(start, start + prompt))
    return Job(name, ids, array("I", range(1000, 1000 + output)), **fields)


def run(core: Core, arrivals: list[tuple[float, Job]]) -> list[tuple[float, Event]]:
    """Every event with its time, on a clock that jumps from one thing to the next."""
    seen: list[tuple[float, Event]] = []
    pending = sorted(arrivals, key=lambda arrival: arrival[0])
    next_at: float | None = None
    while pending or next_at is not None:
        now = min(x for x in (pending[0][0] if pending else None, next_at) if x is not None)
        while pending and pending[0][0] <= now:
            core.submit(pending.pop(0)[1], now)
        step = core.step(now)
        seen += [(now, event) for event in step.events]
        next_at = step.next_at_s
    return seen


def shown(events: list[tuple[float, Event]]) -> list[tuple[float, object, int, str | None]]:
    return [(at, event.job.id, event.token, event.finish_reason) for at, event in events]


def test_one_request_gets_its_tokens_step_by_step():
    core = Core(TICK, Limits())
    assert shown(run(core, [(5.0, job("a", 20, 3))])) == [
        (6.0, "a", 0, None),
        (7.0, "a", 1, None),
        (8.0, "a", 2, "length"),
    ]
    assert core.idle


def test_a_step_takes_as_long_as_the_profile_says():
    profile = PROFILES["8b-h100"]
    core = Core(profile, Limits(num_blocks=8192))
    (first, _), (second, _) = run(core, [(0.0, job("a", 2048, 2))])
    assert first == pytest.approx(8e-3 + 33e-6 * 2048 + 1.3e-9 * 2048 * 1024)
    assert second - first == pytest.approx(8e-3 + 20e-6 + 55e-9 * 2049)


def test_a_long_prompt_is_computed_in_chunks_and_decodes_go_on_beside_it():
    core = Core(TICK, Limits(max_num_batched_tokens=64, max_num_seqs=4))
    events = shown(run(core, [(0.0, job("a", 10, 6)), (1.5, job("b", 150, 1, start=500))]))
    assert [at for at, name, *_ in events if name == "a"] == [1, 2, 3, 4, 5, 6]
    assert [at for at, name, *_ in events if name == "b"] == [5]


def test_admission_is_first_come_first_served_even_if_a_later_one_would_fit():
    core = Core(TICK, Limits(block_size=1, num_blocks=12))
    big, small = job("big", 8, 2, start=100), job("small", 1, 1, start=200)
    events = run(core, [(0.0, job("first", 8, 3)), (0.0, big), (0.0, small)])
    firsts = [event.job.id for _, event in events if event.token == 0]
    assert firsts == ["first", "big", "small"]


def test_no_more_sequences_than_allowed():
    core = Core(TICK, Limits(max_num_seqs=2))
    for at in range(5):
        core.submit(job(str(at), 4, 2, start=at * 100), 0.0)
    core.step(0.0)
    assert (len(core.running), len(core.waiting)) == (2, 3)


def test_a_prompt_seen_before_is_cached_but_for_its_last_token():
    core = Core(TICK, Limits(block_size=32))
    run(core, [(0.0, job("a", 96, 1))])
    again, longer = job("b", 96, 1), job("c", 100, 1)
    run(core, [(10.0, again), (20.0, longer)])
    assert (again.cached_tokens, longer.cached_tokens) == (64, 96)
    assert (core.totals.query_tokens, core.totals.hit_tokens) == (292, 160)
    assert (core.totals.prompt_tokens, core.totals.cached_tokens) == (292, 160)


def test_an_answer_is_found_when_it_comes_back_in_a_prompt():
    core = Core(TICK, Limits(block_size=4))
    first = job("a", 6, 10)
    run(core, [(0.0, first)])
    follow_up = Job("b", first.tokens + array("I", [7, 8]), array("I", [1]))
    run(core, [(50.0, follow_up)])
    # The last token delivered was never computed itself.
    assert follow_up.cached_tokens == 12


def test_namespaces_do_not_share():
    core = Core(TICK, Limits(block_size=4))
    other = job("b", 40, 1, namespace=b"lora")
    run(core, [(0.0, job("a", 40, 1)), (5.0, other)])
    assert other.cached_tokens == 0


def test_equal_prompts_in_one_step_share_blocks():
    core = Core(TICK, Limits(block_size=4, num_blocks=64))
    first, second = job("a", 40, 1), job("b", 40, 1)
    run(core, [(0.0, first), (0.0, second)])
    assert (first.cached_tokens, second.cached_tokens) == (0, 36)


def test_when_blocks_run_out_the_youngest_starts_again_and_loses_no_token():
    core = Core(TICK, Limits(block_size=1, num_blocks=20))
    events = run(core, [(0.0, job("a", 6, 10)), (0.0, job("b", 6, 10, start=50))])
    assert core.totals.preemptions > 0
    for name in ("a", "b"):
        tokens = [event.token for _, event in events if event.job.id == name]
        assert tokens == list(range(10))
    ends = [event.job.id for _, event in events if event.finish_reason]
    assert ends == ["a", "b"]


def test_a_job_without_output_ends_with_its_prompt():
    core = Core(TICK, Limits())
    assert shown(run(core, [(0.0, job("a", 50, 0, finish_reason="stop"))])) == [
        (1.0, "a", -1, "stop")
    ]


def test_aborting_frees_at_once_and_no_event_follows():
    core = Core(TICK, Limits(max_num_seqs=1))
    running, waiting = job("a", 40, 5), job("b", 40, 5, start=90)
    core.submit(running, 0.0)
    core.submit(waiting, 0.0)
    core.step(0.0)
    assert core.abort(running)
    assert core.abort(waiting)
    assert not core.abort(running)
    assert core.pool.held == 0
    step = core.step(1.0)
    assert (step.events, step.next_at_s) == ([], None)
    assert core.idle


def test_calls_between_the_named_times_do_nothing():
    core = Core(TICK, Limits())
    core.submit(job("a", 4, 2), 0.0)
    assert core.step(0.0).next_at_s == 1.0
    assert core.step(0.4) == ([], 1.0, 0)


def test_a_late_caller_does_not_stretch_the_next_step():
    core = Core(TICK, Limits())
    core.submit(job("a", 4, 3), 0.0)
    core.step(0.0)
    assert core.step(1.004).next_at_s == 2.0
    assert core.step(2.5).next_at_s == pytest.approx(3.49)


def test_what_could_never_be_served_is_refused():
    core = Core(TICK, Limits(block_size=4, num_blocks=2))
    for hopeless in (job("long", 6, 3), job("empty", 0, 1)):
        with pytest.raises(ValueError, match="cannot be served"):
            core.submit(hopeless, 0.0)


def test_cache_changes_are_recorded_for_those_who_ask():
    core = Core(TICK, Limits(block_size=4, num_blocks=8), record_kv=True)
    first = job("a", 9, 1)
    run(core, [(0.0, first)])
    (stored,) = core.kv_stored
    assert stored.hashes == first.hashes
    assert (stored.parent, stored.tokens) == (None, first.tokens[:8])
    run(core, [(5.0, job("b", 31, 1, start=900))])
    assert sorted(core.pool.removed) == sorted(first.hashes)


@dataclass
class Ask:
    at: float
    prompt: int
    output: int
    family: int
    abort_after: int


asks = st.lists(
    st.builds(
        Ask,
        at=st.floats(0, 20),
        prompt=st.integers(1, 40),
        output=st.integers(0, 12),
        family=st.integers(0, 3),
        abort_after=st.integers(0, 25),
    ),
    min_size=1,
    max_size=14,
)
sizes = st.builds(
    Limits,
    block_size=st.sampled_from([1, 4, 16]),
    num_blocks=st.integers(52, 80),
    max_num_seqs=st.integers(1, 6),
    max_num_batched_tokens=st.integers(6, 64),
)


def play(limits: Limits, given_asks: list[Ask]) -> tuple[Core, list[Job], list[object], list[Job]]:
    """A run with aborts, checked at every step."""
    core = Core(PROFILES["70b-h100-tp4"].scaled(20), limits)
    jobs = [
        job(str(at), ask.prompt, ask.output, start=ask.family * 100)
        for at, ask in enumerate(given_asks)
    ]
    order = sorted(range(len(jobs)), key=lambda at: given_asks[at].at)
    log: list[object] = []
    admitted: list[Job] = []
    now, calls = 0.0, 0
    next_at: float | None = None
    while order or next_at is not None:
        arrival = given_asks[order[0]].at if order else None
        now = max(now, min(x for x in (arrival, next_at) if x is not None))
        while order and given_asks[order[0]].at <= now:
            core.submit(jobs[order.pop(0)], now)
        step = core.step(now)
        next_at = step.next_at_s
        calls += 1
        log += [(now, event.job.id, event.token, event.finish_reason) for event in step.events]
        admitted += [j for j in core.running if j not in admitted]
        for at, ask in enumerate(given_asks):
            if ask.abort_after == calls:
                core.abort(jobs[at])
        if next_at is None and not core.idle:
            next_at = now
        check(core, limits)
    return core, jobs, log, admitted


def check(core: Core, limits: Limits) -> None:
    assert len(core.running) <= limits.max_num_seqs
    assert core.pool.held + core.pool.free == limits.num_blocks
    held = {block for running in core.running for block in running.blocks}
    assert core.pool.held == len(held)
    for running in core.running:
        assert len(running.blocks) * limits.block_size >= running.computed
    totals = core.totals
    alive = len(core.running) + len(core.waiting)
    assert totals.submitted == totals.finished + totals.aborted + alive


@settings(max_examples=150, deadline=None)
@given(sizes, asks)
def test_any_traffic_ends_every_request_once_and_leaks_nothing(limits, given_asks):
    core, jobs, log, admitted = play(limits, given_asks)
    ended = [name for _, name, _, reason in log if reason]
    assert len(ended) == len(set(ended)) == core.totals.finished
    assert all(j.phase is Phase.ENDED for j in jobs)
    assert core.pool.held == 0
    for j in jobs:
        tokens = [token for _, name, token, _ in log if name == j.id and token >= 0]
        assert tokens == list(range(j.emitted))
        assert (str(j.id) in ended) <= (j.emitted == len(j.output))
    # First come, first served: within what was admitted, arrival times never go back.
    arrivals = [j.arrived_s for j in admitted]
    assert arrivals == sorted(arrivals)


@settings(max_examples=40, deadline=None)
@given(sizes, asks)
def test_the_same_traffic_gives_the_same_events(limits, given_asks):
    assert play(limits, given_asks)[2] == play(limits, given_asks)[2]
