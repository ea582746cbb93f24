"""The endpoint state machine: every transition of the table, and what holds whatever happens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engines.load import EngineLoad
from gateway.health import TRANSITIONS, Cause, Health, Outcome, Rules
from router import DYING, State

GOOD, ILL, FATAL, SILENT, REFUSED = Outcome


class Bench:
    """A machine with a clock and counts of its own."""

    def __init__(self, **rules):
        self.now_s = 1000.0
        self.failures = self.dials = self.successes = 0
        self.health = Health(Rules(**rules), self.now_s)
        self.transitions = []

    def probe(self, outcome, after_s=2.0):
        self.now_s += after_s
        return self._note(self.health.on_probe(self.now_s, outcome, outcome.name))

    def look(self, after_s=0.1, **counts):
        self.now_s += after_s
        for name, count in counts.items():
            setattr(self, name, count)
        return self._note(
            self.health.on_counts(self.now_s, self.failures, self.dials, self.successes)
        )

    def scrape(self, tokens, running=1.0, producing=1, silent_s=10.0, after_s=2.0):
        self.now_s += after_s
        scrape = EngineLoad(running=running, generation_tokens=tokens)
        return self._note(self.health.on_load(self.now_s, scrape, producing, self.now_s - silent_s))

    def _note(self, transition):
        if transition is not None:
            self.transitions.append(transition)
        return transition

    @property
    def state(self):
        return self.health.state


def ready(**rules):
    bench = Bench(**rules)
    bench.probe(GOOD)
    return bench


def opened(**rules):
    bench = ready(**rules)
    bench.probe(FATAL)
    return bench


def in_trial(**rules):
    bench = opened(**rules)
    bench.probe(GOOD)
    return bench


def draining():
    bench = ready()
    bench.health.drain(bench.now_s)
    return bench


def asleep():
    bench = ready()
    bench.health.on_sleep(bench.now_s, True)
    return bench


def silent(bench):
    return [bench.probe(SILENT), bench.probe(SILENT)][-1]


def dead(bench):
    return next(filter(None, (bench.probe(REFUSED) for _ in range(2))))


def stalled(bench):
    return [bench.scrape(5.0) for _ in range(3)][-1]


START = {
    State.UNKNOWN: Bench,
    State.READY: ready,
    State.OPEN: opened,
    State.TRIAL: in_trial,
    State.DRAINING: draining,
    State.ASLEEP: asleep,
}
DO = {
    Cause.ANSWERED: lambda bench: bench.probe(GOOD),
    Cause.FAILURES: lambda bench: bench.look(failures=5),
    Cause.ILL: lambda bench: bench.probe(FATAL),
    Cause.SILENT: silent,
    Cause.DEAD: dead,
    Cause.STALLED: stalled,
    Cause.TRIAL_DUE: lambda bench: bench.probe(GOOD),
    Cause.TRIAL_WON: lambda bench: bench.look(successes=1),
    Cause.TRIAL_LOST: lambda bench: bench.look(failures=1),
    Cause.DRAIN: lambda bench: bench.health.drain(bench.now_s),
    Cause.UNDRAIN: lambda bench: bench.health.undrain(bench.now_s),
    Cause.ASLEEP: lambda bench: bench.health.on_sleep(bench.now_s, True),
    Cause.AWAKE: lambda bench: bench.health.on_sleep(bench.now_s, False),
}


@pytest.mark.parametrize(("old", "cause"), TRANSITIONS)
def test_each_transition_of_the_table(old, cause):
    bench = START[old]()
    assert bench.state is old
    transition = DO[cause](bench)
    assert transition is not None
    assert (transition.old, transition.cause) == (old, cause)
    assert bench.state is transition.new is TRANSITIONS[old, cause]
    assert transition.condemns == (cause in (Cause.DEAD, Cause.STALLED))
    assert transition.hung == (cause is Cause.STALLED)
    assert bench.health.reason == transition.reason != ""


def test_an_engine_that_sleeps_is_not_judged():
    bench = asleep()
    assert bench.health.on_sleep(bench.now_s, True) is None
    for outcome in (GOOD, ILL, GOOD, FATAL, SILENT, GOOD):
        assert bench.probe(outcome) is None
    assert bench.health.on_sleep(bench.now_s, False) is not None
    assert bench.health.on_sleep(bench.now_s, False) is None


def test_a_drain_outlasts_sleep():
    bench = asleep()
    bench.health.drain(bench.now_s)
    assert bench.health.on_sleep(bench.now_s, False) is None
    assert bench.health.on_sleep(bench.now_s, True) is None
    assert bench.state is State.DRAINING


def test_one_bad_probe_is_no_reason():
    for outcome in (ILL, SILENT, REFUSED):
        bench = ready()
        assert bench.probe(outcome) is None
        assert bench.health.awaits_confirmation
        bench.probe(GOOD)
        assert bench.probe(outcome) is None
        assert bench.state is State.READY


def test_a_failed_dial_and_one_refused_probe_is_death():
    bench = ready()
    assert bench.look(dials=1) is None
    assert bench.health.doubts_listener
    assert bench.probe(REFUSED).cause is Cause.DEAD
    assert bench.probe(REFUSED) is None, "it dies once"


def test_a_failed_dial_and_a_good_probe_is_nothing():
    bench = ready()
    bench.look(dials=3)
    assert bench.probe(GOOD) is None
    assert not bench.health.doubts_listener


def test_a_host_that_vanished_dies_in_silence():
    bench = ready()
    causes = [t.cause for t in (bench.probe(SILENT) for _ in range(9)) if t]
    assert causes == [Cause.SILENT, Cause.DEAD]


def test_an_unknown_endpoint_stays_so_and_says_why():
    bench = Bench()
    for _ in range(9):
        assert bench.probe(REFUSED) is None
    assert (bench.state, bench.health.reason) == (State.UNKNOWN, "REFUSED")


def test_a_dying_answer_opens_at_once():
    bench = ready()
    assert "dying" in bench.look(failures=DYING).reason


def test_failures_of_one_worker_end_with_a_success_of_another():
    bench = ready()
    bench.look(failures=4)
    bench.look(successes=1)
    assert bench.look(failures=5) is None
    assert bench.look(failures=8) is None
    assert bench.look(failures=9).cause is Cause.FAILURES


def test_what_stood_in_the_slot_before_does_not_count():
    health = Health(Rules(), 0.0, failures=DYING, dials=3, successes=7)
    health.on_probe(1.0, GOOD, "")
    assert health.on_counts(1.1, DYING, 3, 7) is None
    assert health.on_counts(1.2, DYING + 5, 3, 7).cause is Cause.FAILURES


def test_a_trial_is_not_lost_by_old_failures_of_an_idle_worker():
    bench = ready()
    bench.look(failures=DYING)
    bench.look()
    assert bench.probe(GOOD).new is State.TRIAL
    assert bench.look() is None
    assert bench.look(successes=1).new is State.READY


def test_backoff_doubles_with_each_lost_trial_up_to_its_limit():
    bench = opened()
    waits = []
    for round_ in range(7):
        waits.append(bench.health.backoff_s)
        assert bench.probe(GOOD, after_s=bench.health.backoff_s * 0.9) is None
        assert bench.probe(GOOD, after_s=bench.health.backoff_s * 0.2).new is State.TRIAL
        bench.look(failures=round_ + 1)
    assert waits == [1, 2, 4, 8, 16, 30, 30]


def test_the_share_grows_after_a_trial_and_a_relapse_waits_longer():
    bench = in_trial()
    bench.look(successes=1)
    start_s = bench.now_s
    shares = [bench.health.share(start_s + s) for s in (0, 5, 10, 99)]
    assert shares == pytest.approx([0.1, 0.55, 1.0, 1.0])
    assert bench.health.is_unsettled(start_s + 9) != bench.health.is_unsettled(start_s + 11)
    bench.probe(FATAL)
    assert bench.health.backoff_s == 2.0


def test_a_new_endpoint_has_its_full_share():
    bench = ready()
    assert bench.health.share(bench.now_s) == 1.0
    assert Bench(slow_start_s=0).health.share(0.0) == 1.0


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": 6.0},
        {"running": 0.0},
        {"running": None},
        {"producing": 0},
        {"silent_s": 4.0},
        {"tokens": None},
    ],
)
def test_no_stall_without_all_signs(change):
    bench = ready()
    for _ in range(2):
        bench.scrape(5.0)
    assert bench.scrape(**{"tokens": 5.0, **change}) is None


def standstill(bench, after_s, tokens=5.0, prompt_tokens=9.0, in_flight=1):
    """A scrape of an engine that runs nothing by its own account, as one that froze while idle."""
    bench.now_s += after_s
    scrape = EngineLoad(running=0.0, generation_tokens=tokens, prompt_tokens=prompt_tokens)
    return bench._note(bench.health.on_load(bench.now_s, scrape, 0, 100.0, in_flight))


def test_an_engine_that_froze_while_idle_is_found_by_its_requests():
    bench = ready(stuck_s=60.0)
    assert [standstill(bench, 10.0) for _ in range(7)] == [None] * 7
    found = standstill(bench, 10.0)
    assert (found.cause, found.hung, bench.state) == (Cause.STALLED, True, State.OPEN)
    assert found.reason == (
        "stuck: it has had 1 requests for 70 s, and neither its counters nor any answer moved"
    )


@pytest.mark.parametrize(
    "change", [{"tokens": 6.0}, {"prompt_tokens": 10.0}, {"in_flight": 0}, {"tokens": None}]
)
def test_any_progress_or_nothing_to_do_is_not_stuck(change):
    bench = ready(stuck_s=60.0)
    for _ in range(6):
        standstill(bench, 10.0)
    assert standstill(bench, 10.0, **change) is None
    assert [standstill(bench, 10.0) for _ in range(6)] == [None] * 6


def test_two_equal_readings_are_not_enough():
    bench = ready()
    assert [bench.scrape(5.0) for _ in range(2)] == [None, None]


def test_a_hung_engine_gets_no_trial_until_it_moves():
    bench = ready(stuck_s=120.0)
    assert stalled(bench).hung
    assert bench.scrape(5.0) is None
    assert bench.probe(GOOD, after_s=60) is None
    bench.scrape(6.0)
    assert bench.probe(GOOD).new is State.TRIAL


def test_an_engine_of_which_one_model_hung_for_good_serves_with_the_others():
    bench = ready(stuck_s=120.0)
    stalled(bench)
    assert bench.probe(GOOD, after_s=119.0) is None
    assert bench.probe(GOOD, after_s=2.0).new is State.TRIAL
    bench.look(successes=1)
    assert bench.state is State.READY
    assert bench.scrape(5.0).hung, "the next time it is found as the first time"


OUTCOMES = st.sampled_from(Outcome)


class AnyOrder(RuleBasedStateMachine):
    """Whatever comes in whatever order."""

    def __init__(self):
        super().__init__()
        self.bench = Bench()
        self.before = State.UNKNOWN

    def _check(self, transition):
        after = self.bench.state
        if transition is None:
            assert after is self.before
        else:
            assert transition.old is self.before
            assert transition.new is after is TRANSITIONS[self.before, transition.cause]
        self.before = after

    @rule(outcome=OUTCOMES, after_s=st.floats(0, 60))
    def probe(self, outcome, after_s):
        trial = self.bench.state is State.TRIAL
        self._check(self.bench.probe(outcome, after_s))
        if outcome is not GOOD:
            assert self.bench.state is not State.TRIAL or trial

    @rule(failures=st.integers(0, 2000), dials=st.integers(0, 9), more=st.integers(0, 3))
    def look(self, failures, dials, more):
        successes = self.bench.successes + more
        self._check(self.bench.look(failures=failures, dials=dials, successes=successes))

    @rule(tokens=st.none() | st.integers(0, 2), running=st.none() | st.integers(0, 1))
    def scrape(self, tokens, running):
        self._check(self.bench.scrape(tokens, running))

    @rule(producing=st.integers(0, 1), silent_s=st.floats(0, 9))
    def stand_still(self, producing, silent_s):
        self._check(self.bench.scrape(1, 1, producing, silent_s))

    @rule(way=st.sampled_from(["drain", "undrain"]))
    def order(self, way):
        self._check(getattr(self.bench.health, way)(self.bench.now_s))

    @invariant()
    def bounds_hold(self):
        health = self.bench.health
        assert 0.1 <= health.share(self.bench.now_s) <= 1.0
        assert health.rules.backoff_s <= health.backoff_s <= health.rules.backoff_max_s
        assert health.reason


TestAnyOrder = AnyOrder.TestCase


@given(st.lists(OUTCOMES, max_size=30))
def test_an_endpoint_that_answers_again_gets_back_to_trial(outcomes):
    bench = ready()
    for outcome in outcomes:
        bench.probe(outcome)
    bench.probe(GOOD, after_s=31)
    bench.probe(GOOD, after_s=31)
    assert bench.state in (State.READY, State.TRIAL)
