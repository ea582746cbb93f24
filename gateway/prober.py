"""Watches the endpoints: one task each for probes, one tick for all shared counts, and scrapes.

The rules stand in `health`; here they meet the clock, the sockets and the shared table.
"""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from engines.kind import AUTO
from engines.load import EngineLoad
from engines.profile import PROFILES
from engines.triton.kind import TRITON
from gateway.bus import endpoint_hash
from gateway.caches import Caches
from gateway.config.schema import Health as HealthConfig
from gateway.config.schema import Overload
from gateway.conversation import driver_for
from gateway.fleet import Fleet, Member
from gateway.health import Health, Outcome, Rules, Transition
from gateway.kv_following import KvFollowing
from gateway.messages import Condemn
from gateway.probe import Probe
from gateway.scraping import Scraping
from gateway.sleep_look import SleepLook
from router import State, Table

__all__ = ["Prober", "Watch"]

log = logging.getLogger("headgate.health")

TICK_S = 0.1
# How often engine profiles are corrected by what was observed.
LEARN_S = 1.0
COMPLAINT_S = 60.0
# Names in a log line.
SHOWN = 20
FAST_S = 0.15
"""Between probes that confirm trouble: one refused probe may be a restart's blink."""
IMPATIENT_S = 5.0
"""A new endpoint is probed every FAST_S for so long, then once a second until it answers."""


@dataclass(slots=True, eq=False)
class Watch:
    """What is known of one endpoint's health."""

    member: Member
    health: Health
    started_s: float
    load: EngineLoad | None = None
    """As the engine said last; None: it did not say."""
    load_s: float = -1.0e9
    load_fault: str = ""
    """Why it did not say, if it has metrics at all."""
    before: EngineLoad | None = None
    """What it had said the time before, and when."""
    before_s: float = -1.0e9
    models_s: float = -1.0e9
    models_fault: str = ""
    """Why its model list could not be read the last time."""
    resolved_s: float = -1.0e9
    last_outcome: Outcome | None = None
    last_probe: str = ""
    history: deque[tuple[float, Transition]] = field(default_factory=lambda: deque(maxlen=20))
    """Newest last; wall-clock time of each."""
    share: float = 0.0
    """As last written to the table."""
    nudge: asyncio.Event = field(default_factory=asyncio.Event)
    task: "asyncio.Task[None] | None" = None
    asleep: bool = False
    """As it said last; what an engine that does not say was last told."""
    n_switches: int = 0
    """Grows when it is told to sleep or to wake, and when that is done; odd in between."""


class Prober:
    """Runs inside one event loop. It alone writes the rows of the shared table.

    `on_change`: the fleet differs from before. `on_condemn`: tell the workers.
    `on_left(member)`: a leaving member has no load any more.
    """

    def __init__(
        self,
        table: Table,
        fleet: Fleet,
        caches: Caches,
        config: HealthConfig,
        overload: Overload,
        on_change: Callable[[], None],
        on_condemn: Callable[[Condemn], None],
        on_left: Callable[[Member], None],
        following: KvFollowing,
    ) -> None:
        self.watches: dict[int, Watch] = {}
        self._table = table
        self._fleet = fleet
        self._caches = caches
        self._learned_s = 0.0
        self._complained_s = -1.0e9
        self._config = config
        self._overload = overload
        self._on_change = on_change
        self._on_condemn = on_condemn
        self._on_left = on_left
        self._following = following
        self._sleep_look = SleepLook()
        self._probe = Probe(config.timeout_s)
        self._scraping = Scraping(config, self._probe.context, self._on_load)
        self._restless: set[int] = set()
        """Slots of endpoints that want something at every tick."""
        self._loop = asyncio.get_running_loop()
        self._ticker = self._loop.call_later(TICK_S, self._tick_again)

    def configure(self, config: HealthConfig, overload: Overload) -> None:
        """Take other intervals and rules; states stay."""
        self._config = config
        self._overload = overload
        self._probe.timeout_s = config.timeout_s
        self._scraping.configure(config)
        for watch in self.watches.values():
            watch.health.rules = _rules(config)
        self._restless.update(self.watches)

    def add(self, member: Member) -> None:
        """Begin to watch; the row becomes UNKNOWN."""
        now_s = time.monotonic()
        watch = Watch(member, self._new_health(member, now_s), now_s)
        self.watches[member.slot] = watch
        self._write_new_row(member)
        watch.task = asyncio.create_task(self._watch_forever(watch))

    def remove(self, member: Member) -> None:
        """Stop watching; the row becomes EMPTY."""
        watch = self.watches.pop(member.slot)
        if watch.task is not None:
            watch.task.cancel()
        self._scraping.stop(member.slot)
        self._table.set_row(member.slot, state=State.EMPTY)
        self._caches.close(member.slot)
        self._following.forget(member)

    def drain(self, member: Member) -> None:
        """No more requests for it."""
        watch = self.watches[member.slot]
        self._restless.add(member.slot)  # it may be leaving
        self._carry_out(watch, watch.health.drain(time.monotonic()))

    def undrain(self, member: Member) -> None:
        """Requests again, after a good probe."""
        watch = self.watches[member.slot]
        self._carry_out(watch, watch.health.undrain(time.monotonic()))
        watch.nudge.set()

    def refit(self, member: Member) -> None:
        """Its labels, how much it takes, or where its metrics are have changed."""
        self._table.set_row(
            member.slot, labels=member.labels, max_in_flight=member.engine.max_in_flight
        )
        self._scraping.refit(member)

    def relearn(self, member: Member) -> None:
        """Its profile, or where its KV events are, have changed: nothing is known of its cache."""
        self._following.forget(member)
        self._caches.open(member, PROFILES[member.engine.profile])

    @property
    def probe(self) -> Probe:
        """For questions and orders of others."""
        return self._probe

    def watch(self, member: Member) -> Watch | None:
        """Of a member; None: it has left, or is another one by now."""
        watch = self.watches.get(member.slot)
        return watch if watch is not None and watch.member is member else None

    def mark_asleep(self, watch: Watch, asleep: bool) -> None:
        """Its engine sleeps, or is about to; or it has woken."""
        watch.asleep = asleep
        self._carry_out(watch, watch.health.on_sleep(time.monotonic(), asleep))

    def release_from(self, member: Member, why: str) -> None:
        """What waits there for an answer will get none: it is asked elsewhere, or ended."""
        if self._table.load(member.slot)["in_flight"]:
            self._on_condemn(Condemn(member.slot, member.generation, why, hung=True))

    async def reread(self, watch: Watch) -> None:
        """Read its model list now."""
        watch.models_s = -1.0e9
        await self._read_models(watch, "")

    async def close(self) -> None:
        """Stop everything."""
        self._ticker.cancel()
        tasks = [w.task for w in self.watches.values() if w.task is not None]
        for task in tasks:
            task.cancel()
        self._scraping.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._probe.close()

    async def _watch_forever(self, watch: Watch) -> None:
        while True:
            try:
                await self._round(watch)
            except OSError as error:
                self._complain(f"probes cannot be made: {error.strerror}")
            except Exception:  # a bug must not end the watching of an endpoint for good
                log.exception("%s: probing failed", watch.member.name)
            watch.nudge.clear()
            delay_s = self._delay_s(watch, time.monotonic())
            try:
                async with asyncio.timeout(delay_s * random.uniform(0.8, 1.2)):
                    await watch.nudge.wait()
                await asyncio.sleep(FAST_S / 2)
            except TimeoutError:
                pass

    async def _round(self, watch: Watch) -> None:
        """Resolve, probe, ask the kind, read models: each as far as it is due."""
        member = watch.member
        await self._resolve(watch)
        if not member.address:
            outcome, text = Outcome.SILENT, f"the name {member.url.host} has no address"
        elif watch.asleep and not driver_for(member).tells_sleep:
            # Its health route may compute a token, with weights that are not there.
            _, outcome, text = await self._probe.models(member)
        else:
            outcome, text = await self._probe.health(member)
        if outcome is Outcome.GOOD:
            outcome, text = await self._ask_kind(watch, text)
        if outcome is Outcome.GOOD:
            outcome, text = await self._read_models(watch, text)
        if outcome is Outcome.GOOD:
            # Before it can become ready: what it is sent while it sleeps hangs.
            await self._look_for_sleep(watch)
        if (
            outcome is not Outcome.GOOD
            and watch.health.state is State.UNKNOWN
            and text != watch.last_probe
        ):
            log.warning("%s: not ready: %s", member.name, text)
        watch.last_outcome, watch.last_probe = outcome, text
        # The counts first: a trial that begins must not win by what was answered before.
        self._look(watch)
        self._carry_out(watch, watch.health.on_probe(time.monotonic(), outcome, text))
        if outcome is Outcome.GOOD:
            if not self._scraping.is_on(member.slot):
                self._scraping.start(member)
            await self._following.look(self._probe, member)

    async def _look_for_sleep(self, watch: Watch) -> None:
        """Others may put it to sleep, and it answers probes all the while."""
        before = watch.n_switches
        asleep = await self._sleep_look.look(self._probe, watch.member)
        if watch.n_switches % 2 or watch.n_switches != before:
            return  # what it said may be over
        if asleep is None:
            asleep = watch.asleep
        elif asleep and not watch.asleep:
            self.release_from(watch.member, "its engine was put to sleep")
            self._caches.lost(watch.member.slot)
        self.mark_asleep(watch, asleep)

    def _complain(self, text: str) -> None:
        """Of something that meets every probe: once a minute."""
        if time.monotonic() - self._complained_s >= COMPLAINT_S:
            self._complained_s = time.monotonic()
            log.error("%s", text)

    async def _resolve(self, watch: Watch) -> None:
        """Keep to the first address as long as the name has it and it answers."""
        member = watch.member
        ill = watch.last_outcome not in (None, Outcome.GOOD)
        interval_s = self._config.interval_s if ill else self._config.dns_interval_s
        if member.address and not self._is_due(watch.resolved_s, interval_s):
            return
        found = await self._probe.resolve(member)
        watch.resolved_s = time.monotonic()
        if not found or (member.address in found and not (ill and len(found) > 1)):
            return
        self._move(watch, _next_address(member.address, found), ill)

    def _move(self, watch: Watch, address: str, ill: bool) -> None:
        """The name leads elsewhere: to the workers that is another endpoint in the same slot."""
        member, drained = watch.member, watch.health.state is State.DRAINING
        if member.address:
            log.info("%s: moves from %s to %s", member.name, member.address, address)
            if ill:
                why = f"moved from {member.address} to {address}"
                self._on_condemn(Condemn(member.slot, member.generation, why, hung=False))
        self._fleet.move(member, address)
        watch.health = self._new_health(member, time.monotonic())
        watch.models_s = -1.0e9
        watch.load = watch.before = None
        watch.asleep = False
        self._scraping.stop(member.slot)
        self._write_new_row(member)
        if drained:
            self.drain(member)
        self._on_change()

    async def _ask_kind(self, watch: Watch, text: str) -> tuple[Outcome, str]:
        """Once in an engine's life: what comes up after a failure may be another one."""
        member = watch.member
        if member.engine.kind != AUTO or watch.last_outcome is Outcome.GOOD:
            return Outcome.GOOD, text
        kind, outcome, said = await self._probe.kind(member)
        if kind is None:
            return outcome, said
        if kind == member.kind:
            return Outcome.GOOD, text
        log.info("%s: is %s", member.name, kind)
        member.kind = kind
        self._scraping.stop(member.slot)
        self._on_change()
        return await self._probe.health(member)

    async def _read_models(self, watch: Watch, text: str) -> tuple[Outcome, str]:
        """Read the list if it is due or decides alone. An old list outlives a failed reading."""
        member = watch.member
        decides = text.endswith(("404", "405")) or member.models is None
        back = watch.last_outcome is not Outcome.GOOD
        if not (decides or back or self._is_due(watch.models_s, self._config.models_interval_s)):
            return Outcome.GOOD, text
        entries, outcome, why = await self._probe.models(member)
        fault, watch.models_fault = watch.models_fault, why if entries is None else ""
        if entries is None:  # it stays due
            if decides:
                return outcome, why
            if why != fault:
                log.warning("%s: its models stay as they were known: %s", member.name, why)
            return Outcome.GOOD, text
        watch.models_s = time.monotonic()
        if self._fleet.set_models(member, entries):
            names = list(member.models or {})
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            log.info("%s: serves %s%s", member.name, ", ".join(names[:SHOWN]) or "none", more)
            self._on_change()
        return Outcome.GOOD, text

    def _on_load(self, slot: int, load: EngineLoad | None) -> bool:
        """What a scrape brought. True: there is work for the engine."""
        watch, now_s = self.watches[slot], time.monotonic()
        if load is not None and watch.member.kind == TRITON.name:
            # No metrics page says so; its index has what is ready.
            load = msgspec.structs.replace(load, models_ready=tuple(watch.member.models or ()))
        if watch.load is not None:
            watch.before, watch.before_s = watch.load, watch.load_s
        watch.load, watch.load_s, watch.load_fault = load, now_s, self._scraping.why(slot)
        overloaded = load is not None and _is_overloaded(load, self._overload)
        self._table.set_row(slot, overloaded=overloaded)
        ours = self._table.load(slot)
        if load is None:
            return ours["in_flight"] > 0
        if load.kv_capacity_tokens is not None:
            self._caches.on_capacity(slot, load.kv_capacity_tokens)
        if load.generation_tokens is not None:
            tokens = load.generation_tokens + (load.prompt_tokens or 0.0)
            self._caches.on_progress(slot, tokens, now_s)
        if load.adapters is not None:
            self._caches.on_adapters(slot, load.adapters, now_s)
        self._carry_out(
            watch,
            watch.health.on_load(
                now_s, load, ours["producing"], ours["last_event_s"], ours["in_flight"]
            ),
        )
        return bool(ours["in_flight"] or load.running or load.waiting)

    def _tick_again(self) -> None:
        self._ticker = self._loop.call_later(TICK_S, self._tick_again)
        try:
            self._tick(time.monotonic())
        except Exception:  # a bug must not stop the breaker for good
            log.exception("the health tick failed")

    def _tick(self, now_s: float) -> None:
        if now_s - self._learned_s >= LEARN_S:
            self._learned_s = now_s
            self._caches.tick()
        self._restless.update(self._table.troubled(self.watches))
        for slot in list(self._restless):
            watch = self.watches.get(slot)
            if watch is None or not self._attend(watch, now_s):
                self._restless.discard(slot)

    def _attend(self, watch: Watch, now_s: float) -> bool:
        """What an endpoint wants at every tick; False: nothing more, as far as is known."""
        slot, health = watch.member.slot, watch.health
        # OPEN too: what a trial adds to the counts must be told from what stood there before.
        self._look(watch)
        if health.doubts_listener:
            watch.nudge.set()
        if health.state is State.READY and watch.share != (share := health.share(now_s)):
            watch.share = share
            self._table.set_row(slot, share=share)
        if watch.member.leaving and self._table.load(slot)["in_flight"] == 0:
            self._on_left(watch.member)
            return False
        return watch.member.leaving or health.state is State.OPEN or health.is_unsettled(now_s)

    def _look(self, watch: Watch) -> None:
        load = self._table.load(watch.member.slot)
        transition = watch.health.on_counts(
            time.monotonic(),
            load["failures_in_row"],
            load["dials_in_row"],
            load["successes"],
            load["begun"],
        )
        self._carry_out(watch, transition)

    def _carry_out(self, watch: Watch, transition: Transition | None) -> None:
        """Row first, message second: a worker that hears must not pick the endpoint again."""
        if transition is None:
            return
        member, health = watch.member, watch.health
        now_s = time.monotonic()
        self._restless.add(member.slot)
        self._table.set_row(member.slot, state=health.state, share=health.share(now_s))
        if transition.condemns:
            watch.asleep = False
            self._caches.forget(member.slot)
            self._on_condemn(
                Condemn(member.slot, member.generation, transition.reason, transition.hung)
            )
        if transition.new in (State.READY, State.TRIAL):
            self._scraping.soon(member.slot)
        watch.history.append((time.time(), transition))
        level = logging.WARNING if transition.new is State.OPEN else logging.INFO
        states = f"{transition.old.name.lower()} -> {transition.new.name.lower()}"
        log.log(level, "%s: %s (%s)", member.name, states, transition.reason)

    def _delay_s(self, watch: Watch, now_s: float) -> float:
        interval_s, health = self._config.interval_s, watch.health
        if health.state is State.UNKNOWN:
            fast = now_s - watch.started_s < IMPATIENT_S
            return FAST_S if fast else min(interval_s, 1.0)
        if health.state is State.OPEN:
            return min(interval_s, max(FAST_S, health.trial_due_s() - now_s))
        return FAST_S if health.awaits_confirmation else interval_s

    def _is_due(self, last_s: float, interval_s: float) -> bool:
        return time.monotonic() - last_s >= interval_s

    def _new_health(self, member: Member, now_s: float) -> Health:
        load = self._table.load(member.slot)
        counts = (load["failures_in_row"], load["dials_in_row"], load["successes"])
        return Health(_rules(self._config), now_s, *counts)

    def _write_new_row(self, member: Member) -> None:
        self._table.set_row(member.slot, state=State.EMPTY)
        self._table.set_row(
            member.slot,
            share=1.0,
            generation=member.generation,
            state=State.UNKNOWN,
            overloaded=False,
            max_in_flight=member.engine.max_in_flight,
            identity=endpoint_hash(member.name),
            labels=member.labels,
            max_loras=0,
        )
        self._caches.open(member, PROFILES[member.engine.profile])


def _next_address(address: str, found: list[str]) -> str:
    return found[(found.index(address) + 1) % len(found)] if address in found else found[0]


def _is_overloaded(load: EngineLoad, bounds: Overload) -> bool:
    """What an engine says of itself; what it does not say is not counted against it."""
    return bool(
        0 < bounds.waiting <= (load.waiting or 0) or 0 < bounds.kv_usage <= (load.kv_usage or 0)
    )


def _rules(config: HealthConfig) -> Rules:
    return Rules(
        failures_in_row=config.failures_in_row,
        backoff_s=config.backoff_s,
        backoff_max_s=config.backoff_max_s,
        slow_start_s=config.slow_start_s,
        stall_s=config.stall_s,
        stuck_s=config.stuck_s,
    )
