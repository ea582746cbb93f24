"""Is this endpoint to get requests? The state machine of one endpoint, without clock or sockets.

    UNKNOWN --answered--> READY --failures, ill, silent, dead, stalled--> OPEN
    OPEN --trial due--> TRIAL --trial won--> READY (its share grows: slow start)
                        TRIAL --trial lost, ill, silent, dead, stalled--> OPEN, longer backoff
    any --drain--> DRAINING --undrain--> UNKNOWN
    any but DRAINING --asleep--> ASLEEP --awake--> READY

DEAD (nobody listens) and STALLED (the engine hangs) also condemn what runs there. Whoever owns
the machine reads counts and clock, tells it, and carries out the `Transition` that comes back.
"""

from dataclasses import dataclass
from enum import Enum, auto

from engines.load import EngineLoad
from router import DYING, State

__all__ = ["TRANSITIONS", "Cause", "Health", "Outcome", "Rules", "Transition"]


class Outcome(Enum):
    """What a probe met."""

    GOOD = auto()
    """Health route and model list answered."""
    ILL = auto()
    """It answered, and not well."""
    FATAL = auto()
    """500 or 503 on the health route: it says itself that its engine is dead."""
    SILENT = auto()
    """No answer in time."""
    REFUSED = auto()
    """Nobody listens there."""


class Cause(Enum):
    """Why a state changes."""

    ANSWERED = auto()
    FAILURES = auto()
    ILL = auto()
    SILENT = auto()
    DEAD = auto()
    STALLED = auto()
    TRIAL_DUE = auto()
    TRIAL_WON = auto()
    TRIAL_LOST = auto()
    DRAIN = auto()
    UNDRAIN = auto()
    ASLEEP = auto()
    AWAKE = auto()


_OPENING = (Cause.ILL, Cause.SILENT, Cause.DEAD, Cause.STALLED)
_CONDEMNING = (Cause.DEAD, Cause.STALLED)

# What is not in the table does not happen.
TRANSITIONS: dict[tuple[State, Cause], State] = {
    (State.UNKNOWN, Cause.ANSWERED): State.READY,
    (State.OPEN, Cause.TRIAL_DUE): State.TRIAL,
    (State.TRIAL, Cause.TRIAL_WON): State.READY,
    (State.TRIAL, Cause.TRIAL_LOST): State.OPEN,
    (State.READY, Cause.FAILURES): State.OPEN,
    **{(state, cause): State.OPEN for state in (State.READY, State.TRIAL) for cause in _OPENING},
    **{
        (state, Cause.ASLEEP): State.ASLEEP
        for state in (State.UNKNOWN, State.READY, State.TRIAL, State.OPEN)
    },
    (State.ASLEEP, Cause.AWAKE): State.READY,
    # What runs there waits for it to wake; only one that is not there at all is out of service.
    (State.ASLEEP, Cause.DEAD): State.OPEN,
    # Already out of service, but what still runs there has to be told.
    **{(state, cause): state for state in (State.OPEN, State.DRAINING) for cause in _CONDEMNING},
    **{
        (state, Cause.DRAIN): State.DRAINING
        for state in (State.UNKNOWN, State.READY, State.TRIAL, State.OPEN, State.ASLEEP)
    },
    (State.DRAINING, Cause.UNDRAIN): State.UNKNOWN,
}

FIRST_SHARE = 0.1
# A host that vanished sends no refusal: so many silent probes in a row mean dead.
SILENT_IS_DEAD = 5


@dataclass(frozen=True, slots=True)
class Rules:
    """The numbers of `config.Health`; see there."""

    failures_in_row: int = 5
    backoff_s: float = 1.0
    backoff_max_s: float = 30.0
    slow_start_s: float = 10.0
    stall_s: float = 5.0
    stuck_s: float = 120.0


@dataclass(frozen=True, slots=True)
class Transition:
    """A change to carry out: write the row first, then send what is condemned."""

    old: State
    new: State
    cause: Cause
    reason: str
    """For people."""

    @property
    def condemns(self) -> bool:
        """Whether requests that run there must be told."""
        return self.cause in _CONDEMNING

    @property
    def hung(self) -> bool:
        """Of those condemned: the engine hangs (not: its listener is gone)."""
        return self.cause is Cause.STALLED


class Health:
    """One endpoint's state. Counts are sums over the workers; times are monotonic seconds."""

    def __init__(
        self, rules: Rules, now_s: float, failures: int = 0, dials: int = 0, successes: int = 0
    ) -> None:
        """The counts are those that stand in the slot already: they are not this endpoint's."""
        self.rules = rules
        self.state = State.UNKNOWN
        self.reason = "not probed yet"
        self.since_s = now_s
        self.backoff_s = rules.backoff_s
        self._slow_from_s = -1.0e9
        self._gone = False  # condemned as dead, and no good probe since
        self._hung = False  # condemned as stalled; neither progress nor a trial won since
        self._bad_probes = 0
        self._silent_probes = 0
        self._failures = _Row(failures)
        self._dials = _Row(dials)
        self._successes = successes
        self._successes_at_trial = successes
        self._begun = self._begun_at_trial = 0
        self._last_tokens: float | None = None
        self._still_loads = 0
        self._progress: tuple[float | None, ...] = ()
        self._progress_s = now_s  # when it last got on with something, or had nothing to do

    def share(self, now_s: float) -> float:
        """Of a full load, 0.1..1: grows after a trial."""
        if self.rules.slow_start_s <= 0:
            return 1.0
        grown = (now_s - self._slow_from_s) / self.rules.slow_start_s
        return min(1.0, max(FIRST_SHARE, FIRST_SHARE + (1.0 - FIRST_SHARE) * grown))

    def is_unsettled(self, now_s: float) -> bool:
        """Whether `on_counts` wants to be told the counts often: trial, slow start or trouble."""
        return (
            self.state is State.TRIAL
            or self._failures.new > 0
            or self._dials.new > 0
            or (self.state is State.READY and self.share(now_s) < 1.0)
        )

    @property
    def doubts_listener(self) -> bool:
        """A dial failed: only a probe can tell whether anybody listens, and soon."""
        return self._dials.new > 0 and not self._gone

    @property
    def awaits_confirmation(self) -> bool:
        """A first probe failed; a second one decides."""
        return self.state in (State.READY, State.TRIAL) and self._bad_probes > 0

    def trial_due_s(self) -> float:
        """When the backoff of an open circuit is over.

        One that hung and has not moved since waits for `stuck_s`. Not for ever: where only one of
        several models hung, its counters may stand still for good, and the others can serve.
        """
        wait_s = max(self.backoff_s, self.rules.stuck_s) if self._hung else self.backoff_s
        return self.since_s + wait_s

    def on_probe(self, now_s: float, outcome: Outcome, text: str) -> Transition | None:
        """A probe ended; `text` says how, for people."""
        if outcome is Outcome.GOOD:
            return self._on_good_probe(now_s)
        self._bad_probes += 1
        self._silent_probes = self._silent_probes + 1 if outcome is Outcome.SILENT else 0
        if self.state is State.UNKNOWN:
            self.reason = text
            return None
        if self._is_dead(outcome):
            if self._gone:
                return None
            self._gone = True
            return self._go(now_s, Cause.DEAD, f"dead: {text}")
        if outcome is Outcome.FATAL or self._bad_probes >= 2:
            cause = Cause.SILENT if outcome is Outcome.SILENT else Cause.ILL
            return self._go(now_s, cause, text)
        return None

    def on_counts(
        self, now_s: float, failures: int, dials: int, successes: int, begun: int = 0
    ) -> Transition | None:
        """The load cells' failures and failed dials in a row, and dispatches answered and begun.

        A trial is won when its answer begins: a stream may go on for minutes. Only a whole answer
        forgives failures: an engine that breaks every stream begins them all.
        """
        succeeded = successes > self._successes
        self._successes = successes
        self._begun = begun
        failed = self._failures.see(failures, succeeded)
        self._dials.see(dials, succeeded)
        if self.state is State.TRIAL:
            if failed or self._dials.new:
                return self._go(now_s, Cause.TRIAL_LOST, "the trial request failed")
            if successes > self._successes_at_trial or begun > self._begun_at_trial:
                return self._go(now_s, Cause.TRIAL_WON, "the trial request was answered")
        elif self._failures.new >= DYING:
            return self._go(now_s, Cause.FAILURES, "answered as a dying engine does")
        elif self._failures.new >= self.rules.failures_in_row:
            return self._go(now_s, Cause.FAILURES, f"{self._failures.new} requests failed in a row")
        return None

    def on_load(
        self,
        now_s: float,
        load: EngineLoad,
        producing: int,
        last_event_s: float,
        in_flight: int = 0,
    ) -> Transition | None:
        """The engine's own numbers beside what our requests saw. None known: do not call."""
        stuck = self._see_progress(now_s, load, last_event_s, in_flight)
        if stuck is not None:
            return stuck
        tokens, last = load.generation_tokens, self._last_tokens
        self._last_tokens = tokens
        if tokens is None or load.running is None:
            self._still_loads = 0
            return None
        if last is None or tokens != last or load.running == 0:
            self._still_loads = 0
            self._hung = False
            return None
        self._still_loads += 1
        silent_s = now_s - last_event_s
        if self._still_loads < 2 or producing <= 0 or silent_s <= self.rules.stall_s:
            return None
        if self._hung:
            return None
        self._hung = True
        return self._go(
            now_s,
            Cause.STALLED,
            f"stalled: no event on {producing} streams for {silent_s:.1f} s, and its token counter "
            f"stands still with {load.running:g} requests running",
        )

    def _see_progress(
        self, now_s: float, load: EngineLoad, last_event_s: float, in_flight: int
    ) -> Transition | None:
        """An engine that froze while it was idle reports nothing as running, and no stream stops.

        What tells it is that it has requests of ours and gets on with nothing at all.
        """
        progress = (
            load.generation_tokens,
            load.prompt_tokens,
            last_event_s,
            float(self._successes),
        )
        unknown = load.generation_tokens is None or load.prompt_tokens is None
        if unknown or in_flight <= 0 or progress != self._progress:
            self._progress, self._progress_s = progress, now_s
            return None
        idle_s = now_s - self._progress_s
        if idle_s <= self.rules.stuck_s:
            return None
        self._progress_s = now_s
        return self._go(
            now_s,
            Cause.STALLED,
            f"stuck: it has had {in_flight} requests for {idle_s:.0f} s, and neither its counters "
            "nor any answer moved",
        )

    def drain(self, now_s: float) -> Transition | None:
        """Operator's order: no more requests. None if it drains already."""
        return self._go(now_s, Cause.DRAIN, "drained by order")

    def undrain(self, now_s: float) -> Transition | None:
        """Operator's order: back to service after a good probe. None if it was not draining."""
        return self._go(now_s, Cause.UNDRAIN, "drain taken back")

    def on_sleep(self, now_s: float, asleep: bool) -> Transition | None:
        """Its engine sleeps, or does not; None if that is known."""
        if asleep:
            return None if self.state is State.ASLEEP else self._go(now_s, Cause.ASLEEP, "asleep")
        return self._go(now_s, Cause.AWAKE, "awake")

    def _on_good_probe(self, now_s: float) -> Transition | None:
        self._bad_probes = self._silent_probes = 0
        self._gone = False
        if self.state is not State.TRIAL:
            self._dials.forgive()
        if self.state is State.UNKNOWN:
            return self._go(now_s, Cause.ANSWERED, "answers probes")
        if self.state is State.OPEN and now_s >= self.trial_due_s():
            return self._go(now_s, Cause.TRIAL_DUE, "answers probes again")
        return None

    def _is_dead(self, outcome: Outcome) -> bool:
        """Nobody listens: a refused probe confirms a failed dial, or a second one the first."""
        if outcome is Outcome.REFUSED:
            return self._dials.new > 0 or self._bad_probes >= 2
        if outcome is Outcome.SILENT:
            return self._silent_probes >= (2 if self._dials.new >= 2 else SILENT_IS_DEAD)
        return False

    def _go(self, now_s: float, cause: Cause, reason: str) -> Transition | None:
        old = self.state
        new = TRANSITIONS.get((old, cause))
        if new is None:
            return None
        self.reason = reason
        if new is not old:
            self.since_s = now_s
            self.state = new
            self._enter(now_s, old, new)
        return Transition(old, new, cause, reason)

    def _enter(self, now_s: float, old: State, new: State) -> None:
        self._failures.forgive()
        self._dials.forgive()
        if new is State.OPEN:
            steady = old is State.READY and self.share(now_s) >= 1.0
            doubled = min(2 * self.backoff_s, self.rules.backoff_max_s)
            self.backoff_s = self.rules.backoff_s if steady else doubled
        elif new is State.TRIAL:
            self._successes_at_trial = self._successes
            self._begun_at_trial = self._begun
        elif new is State.READY and old is State.TRIAL:
            self._slow_from_s = now_s
            self._hung = False


class _Row:
    """A count 'in a row' that each worker keeps for itself and resets for itself alone.

    What one worker saw must not outlive another's success: `base` is what is forgiven.
    """

    __slots__ = ("_base", "_last")

    def __init__(self, count: int) -> None:
        self._base = count
        self._last = count

    @property
    def new(self) -> int:
        """In a row, as far as not forgiven."""
        return self._last - self._base

    def see(self, count: int, succeeded: bool) -> bool:
        """Take the present sum; `succeeded`: a request did since the last look. True: it grew."""
        grew = count > self._last
        self._base = min(self._base, count)
        if succeeded and not grew:
            self._base = count
        self._last = count
        return grew

    def forgive(self) -> None:
        self._base = self._last
