"""Keeps the data workers alive: spawns, feeds, respawns and drains them.

Each worker is a fresh interpreter with three inherited descriptors: the shared memory, one end of
a socket pair, its listening socket. One task per worker owns its life.
"""

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from gateway._shared import Count, Shared
from gateway.channel import Channel, ChannelError
from gateway.messages import (
    Access,
    Drain,
    Drained,
    Explain,
    Explained,
    Fleet,
    FromWorker,
    Made,
    Ready,
    Sent,
    ToWorker,
)
from gateway.reasons import Reason
from gateway.spawn import python_module

__all__ = ["Supervisor", "Worker"]

log = logging.getLogger("headgate.supervisor")

RESPAWN_S = 1.0
"""Shortest time between two starts of one worker: a crash loop must not take the machine."""
START_ATTEMPTS = 5
"""A worker that never once got ready in so many starts will not: the gateway gives up."""
START_S = 60.0
"""A worker that is not ready after so long, never will be."""
WATCH_S = 1.0
HUNG_WATCHES = 20
"""Looks in a row at a worker whose event loop has not turned: it hangs, and all its streams."""
FORCED_EXIT_S = 2.0
ANSWER_S = 5.0
"""A worker that is busy with a long body answers late; one that hangs, never."""
BACKLOG_BYTES = 256 << 20
"""A worker that leaves so much unread hangs."""


@dataclass(slots=True)
class Worker:
    """One worker's place; the process in it changes."""

    index: int
    process: asyncio.subprocess.Process | None = None
    channel: Channel[ToWorker, FromWorker] | None = None
    is_ready: bool = False
    has_drained: bool = False
    starts: int = 0
    started_s: float = 0.0
    task: "asyncio.Task[None] | None" = field(default=None, repr=False)
    ticks: int = 0
    """As last seen, of its event loop."""
    still_watches: int = 0
    _cpu: tuple[int, float] = (0, 0.0)
    _cpu_before_s: float = 0.0

    def total_cpu_s(self, pid: int, used_s: float) -> float:
        """CPU time of this place, those before `pid` (which has used `used_s`) included.

        What a lost process used after the last call is missing: nobody can read it any more.
        """
        if pid != self._cpu[0]:
            self._cpu_before_s += self._cpu[1]
        self._cpu = pid, used_s
        return self._cpu_before_s + used_s

    @property
    def pid(self) -> int | None:
        """Of the living process."""
        return None if self.process is None else self.process.pid


class Supervisor:
    """All workers. Everything here runs in one event loop.

    `on_access` gets the access log lines, `on_sent` which prompts went where.
    `arguments` go to each worker's command line, behind
    the descriptors; `module` is what `python -m` runs.
    """

    def __init__(
        self,
        shared: Shared,
        listeners: list[socket.socket],
        arguments: list[str],
        on_access: Callable[[Access], None],
        on_sent: Callable[[Sent], None] = lambda sent: None,
        module: str = "gateway.worker",
    ) -> None:
        self.workers = [Worker(index) for index in range(len(listeners))]
        self.is_draining = False
        self.gave_up = asyncio.Event()
        self._shared = shared
        self._listeners = listeners
        self._arguments = arguments
        self._on_access = on_access
        self._on_sent = on_sent
        self._module = module
        self._fleet: Fleet | None = None
        self._questions: dict[int, asyncio.Future[bytes]] = {}
        self._n_questions = 0
        self._drain: Drain | None = None
        self._was_ever_ready = False
        self._watch: asyncio.Task[None] | None = None

    @property
    def ready_count(self) -> int:
        """Workers that serve."""
        return sum(worker.is_ready for worker in self.workers)

    @property
    def restarts(self) -> int:
        """Starts beyond each worker's first."""
        return sum(max(0, worker.starts - 1) for worker in self.workers)

    def start(self, fleet: Fleet) -> None:
        """Start all workers; each gets `fleet`, or what `broadcast` has put in its place."""
        self._fleet = fleet
        for worker in self.workers:
            worker.task = asyncio.create_task(self._keep(worker))
        self._watch = asyncio.create_task(self._watch_forever())

    def broadcast(self, fleet: Fleet) -> None:
        """Send a fleet to all, and to those who come later, unless it is the same again."""
        if fleet != self._fleet:
            self._fleet = fleet
            self.send(fleet)

    def send(self, message: ToWorker, but: Worker | None = None) -> None:
        """Send a message to all workers that live, except one."""
        for worker in self.workers:
            if worker is not but and worker.channel is not None:
                worker.channel.send(message)
                if worker.channel.backlog_bytes > BACKLOG_BYTES:
                    log.error("worker %d does not read its messages: killed", worker.index)
                    self._kill(worker)

    async def explain(self, head: bytes, body: bytes, key: str) -> bytes | None:
        """A worker's answer, as JSON; see messages.Explain. None: no worker serves, or in time."""
        worker = next((w for w in self.workers if w.is_ready and w.channel is not None), None)
        if worker is None or worker.channel is None:
            return None
        self._n_questions += 1
        number = self._n_questions
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._questions[number] = answer
        try:
            worker.channel.send(Explain(number, head, body, key))
            async with asyncio.timeout(ANSWER_S):
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._questions[number]

    def _answer(self, message: Explained) -> None:
        question = self._questions.get(message.number)
        if question is not None and not question.done():
            question.set_result(message.answer)

    async def drain(self, pre_stop_s: float, grace_s: float) -> None:
        """Let the workers finish; returns when all have exited, by force if need be.

        Call it again with zeros to cut that short; both calls then return.
        """
        self.is_draining = True
        self._drain = Drain(pre_stop_s, grace_s)
        self.send(self._drain)
        tasks = [worker.task for worker in self.workers if worker.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=pre_stop_s)
        # The workers close their copies; while ours stay open the kernel goes on queueing.
        self.close_listeners()
        if tasks:
            await asyncio.wait(tasks, timeout=grace_s + FORCED_EXIT_S)
        for worker in self.workers:
            self._kill(worker)
        if tasks:
            await asyncio.wait(tasks)
        if self._watch is not None:
            self._watch.cancel()

    def close_listeners(self) -> None:
        """Close our copies of the listening sockets. Safe to call twice."""
        for sock in self._listeners:
            sock.close()

    async def _keep(self, worker: Worker) -> None:
        while not self.is_draining:
            try:
                await self._live_once(worker)
            except OSError as error:  # no memory, no descriptors: perhaps there are next time
                log.error("worker %d cannot be started: %s", worker.index, error)
            except Exception:  # a bug here must not cost the place for good
                log.exception("worker %d was lost", worker.index)
            if self.is_draining:
                return
            if worker.starts >= START_ATTEMPTS and not self._was_ever_ready:
                self.gave_up.set()
                return
            await asyncio.sleep(worker.started_s + RESPAWN_S - time.monotonic())

    async def _live_once(self, worker: Worker) -> None:
        worker.started_s = time.monotonic()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        worker.starts += 1
        worker.still_watches = 0
        worker.has_drained = False
        try:
            with theirs:
                worker.process = await self._spawn(worker.index, theirs.fileno())
        except OSError:
            ours.close()
            raise
        worker.channel = await Channel.to_worker(ours)
        try:
            if self._fleet is not None:
                worker.channel.send(self._fleet)
            if self._drain is not None:  # it came while the worker was being started
                worker.channel.send(self._drain)
            await self._listen(worker, worker.channel)
        finally:
            await self._bury(worker, worker.process, worker.channel)

    async def _spawn(self, index: int, control_fd: int) -> asyncio.subprocess.Process:
        listener_fd = self._listeners[index].fileno()
        command, env = python_module(
            self._module,
            *("--fd-shared", str(self._shared.fd)),
            *("--fd-control", str(control_fd)),
            *("--fd-listen", str(listener_fd)),
            *("--index", str(index)),
            *("--workers", str(len(self.workers))),
            *self._arguments,
        )
        # A session of its own: Ctrl-C is for the control process, which then drains the workers.
        return await asyncio.create_subprocess_exec(
            *command,
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(self._shared.fd, control_fd, listener_fd),
            start_new_session=True,
        )

    async def _listen(self, worker: Worker, channel: Channel[ToWorker, FromWorker]) -> None:
        try:
            async for message in channel:
                match message:
                    case Ready():
                        worker.is_ready = self._was_ever_ready = True
                        log.info("worker %d is ready (pid %d)", worker.index, message.pid)
                    case Access():
                        self._on_access(message)
                    case Sent():
                        self._on_sent(message)
                    case Explained():
                        self._answer(message)
                    case Made():
                        self.send(message, but=worker)
                    case Drained():
                        worker.has_drained = True
        except ChannelError as error:
            log.error("worker %d sent %s: killed", worker.index, error)
            self._kill(worker)

    async def _bury(
        self,
        worker: Worker,
        process: asyncio.subprocess.Process,
        channel: Channel[ToWorker, FromWorker],
    ) -> None:
        """The channel is at its end: see the process out and settle its account."""
        try:
            async with asyncio.timeout(FORCED_EXIT_S):
                code = await process.wait()
        except TimeoutError:
            self._kill(worker)
            code = await process.wait()
        worker.channel = worker.process = None
        worker.is_ready = False
        await channel.close()
        if worker.has_drained:
            log.info("worker %d has drained", worker.index)
        else:
            lost = self._shared.lose_worker(worker.index, Reason.WORKER_LOST)
            how = f"was killed by signal {-code}" if code < 0 else f"exited with code {code}"
            log.error(
                "worker %d (pid %d) %s; %d requests were lost", worker.index, process.pid, how, lost
            )

    async def _watch_forever(self) -> None:
        """Kill what lives and does not work. Counted in looks and not in seconds: where the whole
        machine stood still, so did we."""
        while True:
            await asyncio.sleep(WATCH_S)
            for worker in self.workers:
                if worker.process is not None:
                    self._look(worker)

    def _look(self, worker: Worker) -> None:
        ticks = self._shared.count(Count.TICKS, worker.index)
        worker.still_watches = worker.still_watches + 1 if ticks == worker.ticks else 0
        worker.ticks = ticks
        if worker.is_ready and worker.still_watches >= HUNG_WATCHES:
            log.error("worker %d hangs: its event loop stands still; killed", worker.index)
            self._kill(worker)
        elif not worker.is_ready and time.monotonic() - worker.started_s > START_S:
            log.error("worker %d is not ready after %g s: killed", worker.index, START_S)
            self._kill(worker)

    def _kill(self, worker: Worker) -> None:
        if worker.process is not None and worker.process.returncode is None:
            worker.process.kill()
