"""Composition root of the control process: makes everything singular and wires it together.

Owns the shared memory, the listening sockets, the data workers, the probes and the admin port.
No request passes through here.
"""

import asyncio
import gc
import logging
import signal
import socket
import time
from collections.abc import Callable, Sequence
from operator import attrgetter

import msgspec
import uvloop

from gateway import descriptors, messages
from gateway._shared import Area, Shared
from gateway.access_log import AccessLog
from gateway.bus import Bus, NoBus, RedisBus, Sharer, endpoint_hash
from gateway.caches import Caches
from gateway.config import Config, ConfigError, Engine, check_engine, engine_name, ranks_of
from gateway.engine_control import EngineControl
from gateway.engine_switch import Surroundings
from gateway.fleet import Fleet, FleetError, Member
from gateway.kv_following import KvFollowing
from gateway.listener import open_listeners, reserve_port
from gateway.logs import configure_logs
from gateway.prober import Prober, Watch
from gateway.sims import Sims
from gateway.supervisor import Supervisor
from router import State

__all__ = ["Control", "run"]

log = logging.getLogger("headgate")

# Keys that sockets and processes were made from: they wait for the next start.
SHOWN_REASONS = 5
# How often gateways tell each other what they have put on the engines.
SHARE_S = 0.02
# How far apart two costs may be and still be decided by chance, where peers' load is a second old.
MAX_DOUBT = 0.3
FIXED = ("listen", "admin.host", "admin.port", "workers", "access_log", "bus", "index_blocks")
# SIGHUPs that come together, of several tools or of one that repeats itself, are one reload.
RELOAD_DELAY_S = 0.1
# How often marks are looked through for such as are long past: see router._marks.
SWEEP_S = 600.0
# The lists of a thousand engines arrive in one second at start: not a fleet for each of them.
PUBLISH_DELAY_S = 0.02


def run(config: Config, reload: Callable[[], Config], sims: int = 0) -> int:
    """Serve until told to stop; the process's exit code. Blocks.

    `reload` reads the configuration anew for SIGHUP (it may raise ConfigError). `sims`: that many
    simulated engines run beside. ListenError: a port cannot be had.
    """
    configure_logs(config.log.level, config.log.format)
    listen = config.listen
    listeners = open_listeners(listen.host, listen.port, config.workers, listen.backlog)
    (admin_socket,) = open_listeners(config.admin.host, config.admin.port, 1, 128)
    grpc_socket = None
    if listen.grpc_port is not None:
        grpc_socket = reserve_port(listen.host, listen.grpc_port)
    control = Control(config, reload, listeners, admin_socket, grpc_socket=grpc_socket)
    return uvloop.run(control.run(sims))


class Control:
    """Everything of the control process. Make it once; methods run in its event loop."""

    def __init__(
        self,
        config: Config,
        reload: Callable[[], Config],
        listeners: list[socket.socket],
        admin_socket: socket.socket,
        worker_module: str = "gateway.worker",
        grpc_socket: socket.socket | None = None,
    ) -> None:
        self.config = config
        self.started_s = time.time()
        self.shared = Shared.create(config.workers, config.index_blocks)
        self.fleet = Fleet(busy=lambda slot: self.shared.table.load(slot)["in_flight"] > 0)
        self.caches = Caches(
            self.shared.table,
            self.shared.index,
            self.shared.adapters,
            self.fleet.block_tokens_of,
            self.publish,
        )
        self.is_draining = False
        self.access_log: AccessLog | None = None
        self.endpoint_base: dict[int, list[int]] = {}
        """What stood in a slot's counters before its present endpoint: only workers write them."""
        self._reload = reload
        self._listeners = listeners
        self._admin_socket = admin_socket
        self._grpc_socket = grpc_socket
        self._worker_module = worker_module
        self._stop = asyncio.Event()
        self._force = asyncio.Event()
        self._pre_stop_s = config.drain.pre_stop_s
        self._publish_handle: asyncio.Handle | None = None
        self._share_handle: asyncio.Handle | None = None
        self._reload_handle: asyncio.Handle | None = None
        self._sweep_handle: asyncio.Handle | None = None
        self._places: dict[int, int] = {}
        self._is_untold = False
        self._is_announced = False

    async def run(self, n_sims: int = 0) -> int:
        """Serve until SIGTERM or SIGINT; the exit code."""
        from gateway.admin import AdminServer  # starlette and uvicorn: not for importers of us

        self._loop = asyncio.get_running_loop()
        self._handle_signals()
        descriptors.raise_limit()
        sims = Sims(n_sims) if n_sims else None
        if self.config.access_log:
            self.access_log = AccessLog(self.config.access_log)
        self.prober = Prober(
            self.shared.table,
            self.fleet,
            self.caches,
            self.config.health,
            self.config.overload,
            on_change=self.publish,
            on_condemn=lambda condemn: self.supervisor.send(condemn),
            on_left=self._on_left,
            following=KvFollowing(
                self.fleet, self.caches, lambda: self.config.models, self.publish
            ),
        )
        self.supervisor = Supervisor(
            self.shared,
            self._listeners,
            _worker_arguments(self.config, self._grpc_socket),
            on_access=self._on_access,
            on_sent=self._on_sent,
            module=self._worker_module,
        )
        self.engine_control = EngineControl(
            Surroundings(
                self.prober,
                self.caches,
                self.publish,
                lambda slot: self.shared.table.load(slot)["in_flight"],
            )
        )
        self.bus = self._join()
        self.sharer = Sharer(
            self.shared.table,
            self.bus,
            lambda: self._places,
            self.caches.on_peers_sent,
            self.config.bus.gateways,
        )
        admin = AdminServer(self, self._admin_socket)
        try:
            for engine in self.config.engines:
                for rank in ranks_of(engine):
                    self.add(rank, "config")
            if sims is not None:
                await sims.start()
                for name, url in sims.urls.items():
                    self.add(Engine(url=url, name=name, profile="demo"), "sim")
            self.supervisor.start(self._workers_view())
            self._sweep()
            if not self.bus.alone:
                self._share()
            await admin.start()
            self._announce()
            self._is_announced = True
            gc.collect()
            gc.freeze()
            return await self._serve()
        finally:
            await self.supervisor.drain(0, 0)
            await admin.stop()
            await self.engine_control.close()
            await self.prober.close()
            self.caches.stop()
            for handle in (self._share_handle, self._sweep_handle, self._reload_handle):
                if handle is not None:
                    handle.cancel()
            await self.bus.close()
            if sims is not None:
                await sims.stop()
            if self.access_log is not None:
                self.access_log.close()

    def _join(self) -> Bus:
        config = self.config.bus
        if not config.url:
            return NoBus()
        port = self._listeners[0].getsockname()[1]
        return RedisBus(config.url.reveal(), config.name or f"{socket.gethostname()}:{port}")

    def _share(self) -> None:
        """What the gateways know of each other, 50 times a second."""
        now_s = time.monotonic()
        try:
            self.sharer.tick(now_s)
            doubt = min(MAX_DOUBT, MAX_DOUBT * self.sharer.doubt_s(now_s))
            self.shared.table.set_common(self.sharer.scale(now_s), doubt)
        except Exception:  # a bug must not stop it for good
            log.exception("sharing load with the other gateways failed")
        self._share_handle = self._loop.call_later(SHARE_S, self._share)

    def _sweep(self) -> None:
        """No session and no adapter seems new again once the clock of their marks is round."""
        now_s = time.monotonic()
        self.shared.sessions.sweep(now_s)
        self.shared.adapters.sweep(now_s)
        self._sweep_handle = self._loop.call_later(SWEEP_S, self._sweep)

    def _on_sent(self, message: messages.Sent) -> None:
        self.caches.on_sent(message)
        if not self.bus.alone:
            for slot, generation, blocks in message.each():
                # Peers know endpoints by their names: who has left its slot has none.
                if self.shared.table.row(slot)[2] == generation:
                    self.sharer.insert(slot, blocks)

    def publish(self) -> None:
        """Send the workers the present fleet within 20 ms; the calls in between are one."""
        self._places = {endpoint_hash(m.name): m.slot for m in self.fleet.members.values()}
        if self._publish_handle is None:
            self._publish_handle = self._loop.call_later(PUBLISH_DELAY_S, self._publish)

    def _publish(self) -> None:
        self._publish_handle = None
        try:
            self.supervisor.broadcast(self._workers_view())
            self._is_untold = False
        except Exception:  # a bug, or a fleet that cannot be told: workers keep the last one
            self._is_untold = True
            log.exception("the workers cannot be told of the present configuration and engines")

    def _workers_view(self) -> messages.Fleet:
        host, port = self._admin_socket.getsockname()[:2]
        # An address to connect to, where the socket is bound to all of them.
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return self.fleet.build(self.config, f"{host}:{port}")

    def add(self, engine: Engine, source: str) -> Member:
        """Take an engine in; it gets requests once it answers probes. FleetError, ValueError."""
        check_engine(engine)
        member = self.fleet.add(engine, source, time.monotonic())
        self.endpoint_base[member.slot] = self.endpoint_words(member.slot)
        self.prober.add(member)
        self.publish()
        if self._is_announced:
            log.info("engine %s at %s (%s) is added", member.name, member.url.base, engine.kind)
        return member

    def endpoint_words(self, slot: int) -> list[int]:
        """A slot's counters, summed over the workers."""
        width = int(Area.ENDPOINT_WIDTH)
        return self.shared.block(Area.ENDPOINTS + slot * width, width)

    def remove(self, member: Member) -> None:
        """Drain an engine, then take it out as soon as nothing runs there."""
        member.leaving = True
        self.prober.drain(member)
        self.publish()

    def watches(self) -> list[Watch]:
        """All endpoints, by slot."""
        return sorted(self.prober.watches.values(), key=lambda watch: watch.member.slot)

    def unready_reasons(self) -> list[str]:
        """Why no new client should be sent here; empty: ready."""
        reasons = []
        if self.is_draining:
            reasons.append("draining")
        if self.supervisor.ready_count == 0:
            reasons.append("no worker is ready")
        if self._is_untold:
            reasons.append(
                "the workers could not be told of the present configuration; see the log"
            )
        watches = list(self.prober.watches.values())
        if not any(w.health.state in (State.READY, State.TRIAL) for w in watches):
            reasons.append(f"none of {len(watches)} engines is ready")
            reasons += [f"{w.member.name}: {_state(w)}" for w in watches[:SHOWN_REASONS]]
        return reasons

    def reload(self) -> None:
        """Read the configuration anew; what is wrong with it leaves the old one in force."""
        self._reload_handle = None
        try:
            fresh = self._reload()
        except ConfigError as error:
            for line in error.errors:
                log.error("reload: %s", line)
            log.error("reload: the configuration in force stays")
            return
        for name in FIXED:
            if attrgetter(name)(fresh) != attrgetter(name)(self.config):
                log.warning("reload: `%s` has changed; that takes effect at the next start", name)
        self._reconcile(fresh.engines)
        # What takes effect at the next start only stays as it runs.
        running = self.config
        self.config = msgspec.structs.replace(
            fresh,
            listen=running.listen,
            workers=running.workers,
            access_log=running.access_log,
            index_blocks=running.index_blocks,
            bus=running.bus,
            admin=msgspec.structs.replace(
                fresh.admin, host=running.admin.host, port=running.admin.port
            ),
        )
        self._pre_stop_s = fresh.drain.pre_stop_s
        configure_logs(fresh.log.level, fresh.log.format)
        self.prober.configure(fresh.health, fresh.overload)
        if self.access_log is not None:
            self.access_log.reopen()
        self.publish()
        log.info("reload: the new configuration is in force")

    def _reconcile(self, engines: Sequence[Engine]) -> None:
        """Make the engines of source 'config' those of a list."""
        wanted = {
            engine_name(rank.url, rank.name): rank
            for engine in engines
            for rank in ranks_of(engine)
        }
        for member in list(self.fleet.members.values()):
            if member.source != "config" or member.leaving:
                continue
            engine = wanted.pop(member.name, None)
            if engine is not None and _same_place(engine, member.engine):
                try:
                    member.labels = self.fleet.label_bits(engine)
                except FleetError as error:
                    log.error("reload: engine %s keeps its labels: %s", member.name, error)
                    continue
                before, member.engine = member.engine, engine
                self.prober.refit(member)
                if (before.profile, before.kv_events) != (engine.profile, engine.kv_events):
                    self.prober.relearn(member)
                continue
            self.remove(member)
            if engine is not None:
                wanted[member.name] = engine
        for name, engine in wanted.items():
            there = self.fleet.members.get(name)
            if there is not None and not there.leaving:
                log.warning("reload: engine %s is there already, added by %s", name, there.source)
                continue
            if there is not None:  # it keeps its streams, under another name, until they end
                self.fleet.rename(there, f"{name}~{there.slot}.{there.generation}")
            try:
                self.add(engine, "config")
            except (FleetError, ValueError) as error:  # the others are as good as ever
                log.error("reload: engine %s is left out: %s", name, error)

    def _on_left(self, member: Member) -> None:
        log.info("%s: removed", member.name)
        self.prober.remove(member)
        self.fleet.remove(member.name, time.monotonic())
        self.publish()

    def _on_access(self, message: messages.Access) -> None:
        if self.access_log is not None:
            self.access_log.take(message)

    def _handle_signals(self) -> None:
        self._loop.add_signal_handler(signal.SIGTERM, self._on_stop_signal)
        self._loop.add_signal_handler(signal.SIGINT, self._on_interrupt)
        self._loop.add_signal_handler(signal.SIGHUP, self._on_hangup)

    def _on_hangup(self) -> None:
        if self._reload_handle is None:
            self._reload_handle = self._loop.call_later(RELOAD_DELAY_S, self.reload)

    def _on_interrupt(self) -> None:
        # Ctrl-C: somebody at a terminal, and no load balancer that has to hear of it first.
        self._pre_stop_s = 0.0
        self._on_stop_signal()

    def _on_stop_signal(self) -> None:
        if self._stop.is_set():
            self._force.set()
        self.is_draining = True
        self._stop.set()

    async def _serve(self) -> int:
        """Until a signal; then the drain, cut short by a second signal."""
        if not await _first(self._stop, self.supervisor.gave_up):
            log.error("the data workers do not start; see their messages above")
            return 1
        rules = self.config.drain
        log.info(
            "draining: serving %g s more, then %g s for running streams (again: at once)",
            self._pre_stop_s,
            rules.grace_s,
        )
        drain = asyncio.create_task(self.supervisor.drain(self._pre_stop_s, rules.grace_s))
        forced = asyncio.create_task(self._force.wait())
        await asyncio.wait([drain, forced], return_when=asyncio.FIRST_COMPLETED)
        forced.cancel()
        if not drain.done():
            log.warning("second signal: ending at once")
            await self.supervisor.drain(0, 0)
        await drain
        log.info("drained")
        return 0

    def _announce(self) -> None:
        listen, admin = self.config.listen, self.config.admin
        scheme = "https" if listen.tls_cert else "http"
        workers = "1 worker" if self.config.workers == 1 else f"{self.config.workers} workers"
        log.info("listening on %s://%s (%s)", scheme, _where(self._listeners[0]), workers)
        if self._grpc_socket is not None:
            tls = " with TLS" if listen.tls_cert else ""
            log.info("gRPC (KServe v2) on %s%s", _where(self._grpc_socket), tls)
        log.info("admin on http://%s (/health, /ready, /metrics)", _where(self._admin_socket))
        if not self.config.keys and not _is_loopback(self._listeners[0]):
            log.warning(
                "no `keys` are configured and %s is open to the network: everybody who can "
                "connect may use the engines (`headgate keys new` makes a key)",
                listen.host,
            )
        if not admin.token:
            log.info("/admin is off: set HEADGATE_ADMIN_TOKEN to switch it on")
        if not self.fleet.members:
            log.warning("there are no engines: give --engine URL, or --sim 2 to try without any")
        for member in self.fleet.members.values():
            log.info("engine %s at %s (%s)", member.name, member.url.base, _kind(member))


def _kind(member: Member) -> str:
    """With the ports that a Triton has beside its URL's."""
    engine, port = member.engine, member.url.port
    if engine.kind != "triton":
        return engine.kind
    return f"triton, gRPC {engine.grpc_port or port + 1}, metrics {engine.metrics_port or port + 2}"


def _state(watch: Watch) -> str:
    """In a few words, for whoever wonders why it gets no requests."""
    state = watch.health.state.name.lower()
    return f"{state}, {watch.last_probe or watch.health.reason or 'not probed yet'}"


async def _first(wanted: asyncio.Event, other: asyncio.Event) -> bool:
    """Wait for one of two events. True if it is (also) the first."""
    tasks = [asyncio.create_task(event.wait()) for event in (wanted, other)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    return wanted.is_set()


def _worker_arguments(config: Config, grpc_socket: socket.socket | None) -> list[str]:
    arguments = ["--log-level", config.log.level, "--log-format", config.log.format]
    arguments += ["--index-blocks", str(config.index_blocks)]
    listen = config.listen
    if listen.tls_cert:
        arguments += ["--tls-cert", listen.tls_cert, "--tls-key", listen.tls_key]
    if grpc_socket is not None:
        arguments += ["--grpc", _where(grpc_socket)]
    return arguments


def _same_place(one: Engine, other: Engine) -> bool:
    """Whether connections and health of one are the other's too."""
    return (one.url, one.kind, one.rank, one.ca_file, one.server_name) == (
        other.url,
        other.kind,
        other.rank,
        other.ca_file,
        other.server_name,
    )


def _where(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_loopback(sock: socket.socket) -> bool:
    host = sock.getsockname()[0]
    return bool(host.startswith("127.")) or host == "::1"
