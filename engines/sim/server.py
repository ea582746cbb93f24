"""One simulated engine: the core on real time, its routes, its faults, its life and death.

Everything runs on one event loop's thread; there is no task per request. A single timer drives the
core.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from time import monotonic, time
from typing import TYPE_CHECKING

from engines.sim.account import Accounts
from engines.sim.config import SimConfig
from engines.sim.core import Core
from engines.sim.errors import busy, core_dead
from engines.sim.exchange import Exchange
from engines.sim.fault import Active, Fault, Faults
from engines.sim.front import Front
from engines.sim.http import Connection
from engines.sim.life import Life
from engines.sim.listener import Listener
from engines.sim.metrics import Metrics
from engines.sim.models import ModelTable
from engines.sim.response import Response
from engines.sim.routes import Routes
from engines.sim.sleep import Sleep, Switches

if TYPE_CHECKING:
    from engines.sim.kv_events import KvPublisher

__all__ = ["SimEngine"]

_MAX_ADAPTERS = 4
_LAST_WORD_S = 0.01


class SimEngine:
    """A vLLM pod to all who talk to it over HTTP.

    Contract: use it from the thread of the loop it was started on. `start` and `stop` are awaited;
    nothing else blocks. `peers` maps names to engines of the same process, so that one whose
    listener is closed can be healed through another.
    """

    def __init__(self, config: SimConfig) -> None:
        self.config = config
        self.accounts = Accounts()
        self.faults = Faults()
        self.front = Front(self)
        self.peers: dict[str, SimEngine] = {config.name: self}
        self.exited = asyncio.Event()
        """Set while the engine is gone: after an exit, until healed."""
        self.life = Life.EXITED
        self.restarts = -1
        self.port = 0
        """Known once started."""
        self.url = ""
        """`http://host:port`, once started."""
        self.kv: KvPublisher | None = None
        """While the engine lives, if it is to publish KV events."""
        self._kv_endpoints = (config.kv_events, config.kv_replay)
        self._listener: Listener | None = None
        self._timers: set[asyncio.TimerHandle] = set()
        """Steps on the way to an exit: void once it is there."""
        self._lifetimes: set[asyncio.TimerHandle] = set()
        """Ends of faults: an exit does not stop them, so that one can be a restart."""
        self._step_timer: asyncio.Handle | None = None
        self._boot()

    def __repr__(self) -> str:
        return f"<SimEngine {self.config.name} {self.life.value} {self.core!r}>"

    # life

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> None:
        """Listen; port 0 takes a free one. OSError if it, or one for KV events, is taken."""
        listener = Listener(host, port, lambda: Connection(self.front))
        self.port = listener.port
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{listener.port}"
        self._listener = listener
        self._serve()
        await listener.ready()

    async def stop(self) -> None:
        """Close the listener and every connection, and forget the port. Again: no effect."""
        self.faults.active.clear()
        _cancel(self._lifetimes)
        self._exit()
        listener, self._listener = self._listener, None
        if listener is not None:
            await listener.ready()
            listener.release()
        await asyncio.gather(*(connection.lost for connection in list(self.front.connections)))

    def _boot(self) -> None:
        """Everything a new process has: an empty cache, counters at zero, no stored responses."""
        config = self.config
        self.core = Core(config.step_profile, config.limits, record_kv=bool(config.kv_events))
        self.metrics = Metrics(config.model, time(), _MAX_ADAPTERS)
        names = (config.model, *config.aliases)
        self.models = ModelTable(names, config.adapters, config.context_tokens)
        self.asleep = self.paused = False
        self.sleep = Sleep()
        self.switches = Switches()
        self.front.routes = Routes(self)

    def _serve(self) -> None:
        assert self._listener is not None
        self._publish_kv()
        self.life = Life.SERVING
        self.restarts += 1
        self.exited.clear()
        self._listener.open()

    def _publish_kv(self) -> None:
        if self.config.kv_events:
            from engines.sim.kv_events import KvPublisher  # ZeroMQ: only for who wants it

            topic = f"kv@{self.config.model}"
            self.kv = KvPublisher(*self._kv_endpoints, topic, self.config.block_size)
            # The next life has the same ports.
            self._kv_endpoints = (self.kv.endpoint, self.kv.replay_endpoint)

    def _exit(self) -> None:
        """The process is gone: no listener, no connection, no work."""
        self.life = Life.EXITED
        self._halt()
        self._drop_jobs()
        _cancel(self._timers)
        if self.kv is not None:
            self.kv.close()
            self.kv = None
        if self._listener is not None:
            self._listener.close()
        for response in list(self.accounts.open):
            response.broken = True
        for connection in list(self.front.connections):
            connection.transport.abort()
        self.exited.set()

    # faults

    def fault(
        self,
        kind: str,
        *,
        count: int | None = None,
        seconds: float | None = None,
        after_events: int = 1,
        bytes: int = 1,
        exit_s: float = 2.3,
    ) -> None:
        """Set a fault; see `fault.py` for kinds and options. ValueError if they make no sense."""
        fault = Active(Fault.named(kind), count, seconds, after_events, bytes, exit_s)
        self.faults.set(fault)
        acts: dict[Fault, Callable[[], None]] = {
            Fault.REFUSE: self._close_listener,
            Fault.FREEZE: self._halt,
            Fault.SIGTERM_HANG: self._hang,
            Fault.SIGTERM_DRAIN: self._drain,
            Fault.SIGTERM_QUIT: self._exit,
            Fault.KILL_CORE: partial(self._kill_core, fault),
        }
        act = acts.get(fault.kind)
        if act is not None:
            act()
        if fault.lasts_s is not None:
            self._later(fault.lasts_s, partial(self._expire, fault), self._lifetimes)

    def heal(self) -> None:
        """Drop every fault. An engine that has exited, or is about to, starts anew on the same
        port, with an empty cache and metrics at zero; `state()` goes on counting."""
        self.faults.active.clear()
        self._recover()

    def _expire(self, fault: Active) -> None:
        if self.faults.drop(fault):
            self._recover()

    def sigterm(self) -> None:
        """What the signal does to this engine, by its configuration."""
        self.fault(f"sigterm_{self.config.sigterm}")

    def _recover(self) -> None:
        """Be what the faults that are left allow."""
        if self._listener is None:
            return
        if self.life is not Life.SERVING:
            self._exit()
            self._boot()
            self._serve()
        if not self.faults.has(Fault.STOP_READING):
            for connection in list(self.front.connections):
                connection.listen_again()
        if not self.faults.has(Fault.REFUSE):
            self._listener.open()
        self.wake()

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()

    def _hang(self) -> None:
        self.life = Life.HANGING
        self._halt()
        self._close_listener()
        self._close_idle()
        self._exit_if_left()

    def _drain(self) -> None:
        self.life = Life.DRAINING
        self._exit_if_left()

    def _kill_core(self, fault: Active) -> None:
        self.life = Life.DYING
        self._halt()
        for exchange in self._drop_jobs():
            exchange.fail(core_dead())
        health_s = 0.05 if fault.seconds is None else fault.seconds
        self._later(health_s, self._close_listener, self._timers)
        self._later(max(health_s, fault.exit_s), self._exit, self._timers)

    def _drop_jobs(self) -> list[Exchange]:
        """Take every job from the core; the exchanges they belonged to, oldest first."""
        exchanges: dict[Exchange, None] = {}
        for job in (*self.core.running, *self.core.waiting):
            self.core.abort(job)
            assert isinstance(job.owner, Exchange)
            exchanges[job.owner] = None
        return list(exchanges)

    def _close_idle(self) -> None:
        for connection in list(self.front.connections):
            if connection.idle:
                connection.transport.close()

    def _exit_if_left(self) -> None:
        """The last client of a hanging or draining server has left, or been served."""
        if self.life in (Life.HANGING, Life.DRAINING) and not self.accounts.open:
            # A little later, so that a response that has just ended is on its way.
            self._later(_LAST_WORD_S, self._exit, self._timers)

    # the core on real time

    def submit(self, exchange: Exchange) -> None:
        """Give an exchange's jobs to the core. Raises ApiError if it takes none."""
        limit = self.config.max_num_queued_reqs
        if limit and len(self.core.waiting) >= limit:
            self.metrics.rejections += 1
            raise busy()
        now_s = monotonic()
        self.accounts.started += 1
        for job in exchange.jobs:
            self.core.submit(job, now_s)
        self.wake()

    def cancel(self, exchange: Exchange) -> None:
        """Take an exchange's jobs from the core, and free their blocks at once."""
        for job in exchange.jobs:
            self.core.abort(job)
        self.wake()

    def forget_cache(self) -> bool:
        """Drop the prefix cache; False, and no effect, while anything runs."""
        dropped = self.core.pool.forget()
        if dropped and self.kv is not None:
            self.kv.cleared()
        return dropped

    def settle(self, response: Response, outcome: str) -> None:
        """Account for the end of a request."""
        self.accounts.settle(response, outcome)
        self._exit_if_left()

    def wake(self) -> None:
        """See to it that the core is stepped, unless it stands still on command."""
        if self._step_timer is None and self._steps:
            self._step_timer = asyncio.get_running_loop().call_soon(self._step)

    @property
    def _steps(self) -> bool:
        alive = self.life in (Life.SERVING, Life.DRAINING)
        return alive and not (self.asleep or self.paused or self.faults.has(Fault.FREEZE))

    def interrupt(self) -> None:
        """End what runs or waits with finish reason `abort`, as falling asleep does."""
        exchanges = self._drop_jobs()
        for exchange in exchanges:
            self.metrics.aborted(exchange.stop())

    def _halt(self) -> None:
        if self._step_timer is not None:
            self._step_timer.cancel()
            self._step_timer = None

    def _step(self) -> None:
        self._step_timer = None
        if not self._steps:
            return  # asleep since the step was planned; `wake` plans the next one
        loop = asyncio.get_running_loop()
        due_s, now_s = self.core.next_at_s, monotonic()
        if due_s is not None and 0 < due_s - now_s < 0.001:
            now_s = due_s  # the loop's timers are rounded to milliseconds
        step = self.core.step(now_s)
        self.metrics.observe(self.core, step, time())
        if self.kv is not None:
            self.kv.publish(self.core)
        else:
            self.core.pool.removed.clear()
        for event in step.events:
            owner = event.job.owner
            assert isinstance(owner, Exchange)
            owner.on_event(event)
        if step.next_at_s is not None and self._steps:
            wait_s = step.next_at_s - monotonic()
            if wait_s > 0:
                self._step_timer = loop.call_later(wait_s, self._step)
            else:
                self._step_timer = loop.call_soon(self._step)

    # accounts

    def state(self) -> dict[str, object]:
        """What stands in `GET /sim/state`: exact counts, since the start of the object.

        requests_seen = finished + aborted + failed + refused + open. `core_*` count jobs (one per
        prompt and copy) since the latest start of the engine.
        """
        accounts, traffic, core = self.accounts, self.front.traffic, self.core
        totals = core.totals
        return {
            "name": self.config.name,
            "model": self.config.model,
            "life": self.life.value,
            "restarts": self.restarts,
            "faults": [fault.kind.label for fault in self.faults.active.values()],
            "running": len(core.running),
            "waiting": len(core.waiting),
            "requests_seen": accounts.seen,
            "requests_started": accounts.started,
            "requests_finished": accounts.finished,
            "requests_aborted": accounts.aborted,
            "requests_failed": accounts.failed,
            "requests_refused": accounts.refused,
            "requests_unread": accounts.unread,
            "requests_open": len(accounts.open),
            "connections_opened": traffic.opened,
            "connections_closed": traffic.closed,
            "connections_open": len(self.front.connections),
            "bytes_in": traffic.bytes_in,
            "bytes_out": traffic.bytes_out,
            "core_submitted": totals.submitted,
            "core_finished": totals.finished,
            "core_aborted": totals.aborted,
            "core_steps": totals.steps,
            "preemptions": totals.preemptions,
            "prompt_tokens": totals.prompt_tokens,
            "cached_tokens": totals.cached_tokens,
            "output_tokens": totals.output_tokens,
            "kv_blocks": core.pool.capacity,
            "kv_blocks_held": core.pool.held,
            "kv_blocks_cached": core.pool.cached,
            "kv_evictions": core.pool.evictions,
            "has_weights": self.sleep.has_weights,
            "adapter_loads": self.switches.adapter_loads,
            "adapter_unloads": self.switches.adapter_unloads,
            "sleeps": self.switches.sleeps,
            "wakes": self.switches.wakes,
        }

    # timers

    def after(self, delay_s: float, act: Callable[[], None]) -> None:
        """Now if there is no delay; else then, unless the engine has exited by then."""
        if delay_s > 0:
            self._later(delay_s, act, self._timers)
        else:
            act()

    def _later(
        self, delay_s: float, act: Callable[[], None], timers: set[asyncio.TimerHandle]
    ) -> None:
        """Call after a while; the timer is in `timers` until then."""

        def run() -> None:
            timers.discard(handle)
            act()

        handle = asyncio.get_running_loop().call_later(delay_s, run)
        timers.add(handle)


def _cancel(timers: set[asyncio.TimerHandle]) -> None:
    for timer in timers:
        timer.cancel()
    timers.clear()
