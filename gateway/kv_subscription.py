"""One publisher of KV events: connection, order of batches, and what its index is worth."""

import asyncio
import logging
from collections.abc import Callable
from enum import Enum
from functools import partial

import zmq
from zmq.utils.monitor import parse_monitor_message

from engines._kv_events import KvEvents, stamp_of
from engines.kv_sources import KvSource
from gateway.kv_replay import MAX_BATCH_BYTES, KvReplay, read_batch
from gateway.kv_sequence import Advice, Phase, Sequence
from gateway.zmq_reader import ZmqReader

__all__ = ["KvState", "KvSubscription"]

log = logging.getLogger("headgate.kv")

RECONNECT_MS = 100
RECONNECT_MAX_MS = 5000
HEARTBEAT_MS = 3000
HEARTBEAT_TIMEOUT_MS = 9000
"""A peer that stands still or is cut off closes nothing: without an answer it is gone."""
SILENT_S = 10.0
SILENT_TOKENS = 4096
"""An engine that has computed so much in so long without a batch is asked whether that is so: all
of it may have been cached, or in blocks that are not full."""


class KvState(Enum):
    """What the index says about the engine."""

    LOST = "lost"
    """Nothing; it is empty. Assume."""
    REPLAYING = "replaying"
    """What was true some batches ago; they are on their way."""
    REBUILDING = "rebuilding"
    """True, but there may be more than it knows."""
    LIVE = "live"
    """All that the engine holds."""


class KvSubscription:
    """Feeds `events`, and clears them, from one source. Make it inside the loop. ValueError: the
    source has no address that can be dialled.

    `on_change(subscription)` is called when the state has changed.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        name: str,
        source: KvSource,
        events: KvEvents,
        on_change: "Callable[[KvSubscription], None]" = lambda _: None,
    ) -> None:
        self.name = name
        self.source = source
        self.events = events
        self.state = KvState.LOST
        self.reason = "not connected yet"
        self.sequence = Sequence(bool(source.replay_endpoint))
        self.rank: int | None = None
        """As the batches say."""
        self.n_live = 0
        self.n_replays = 0
        self.n_clears = 0
        """Times that what was known had to be given up; the engine's own clears not counted."""
        self.n_faults = 0
        """Batches and messages that could not be read."""
        self.n_connects = 0
        self._context = context
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._replay: KvReplay | None = None
        self._lost = "not connected yet"
        self._deaf = False
        """Lost although connected: the next live batch is the way back."""
        self._closed = False
        self._verifying: tuple[int, int] | None = None
        """The next batch and the live ones so far, when a replay was asked for to see."""
        self._progress: tuple[float, float, int] | None = None
        self._open()

    def __repr__(self) -> str:
        return f"<KvSubscription {self.name} {self.state.value} at {self.source.endpoint}>"

    @property
    def is_lost(self) -> bool:
        """Nothing is known of what the engine holds."""
        return self.state is KvState.LOST

    @property
    def is_cut_off(self) -> bool:
        """There is no connection."""
        return bool(self._lost) and not self._deaf

    @property
    def n_gaps(self) -> int:
        """Times that batches were missing."""
        return self.sequence.n_gaps

    @property
    def n_orphans(self) -> int:
        """Blocks stored behind one that is not known."""
        return self.events.cache.n_orphans

    @property
    def n_strays(self) -> int:
        """Blocks removed that were not known."""
        return self.events.cache.n_strays

    def on_progress(self, tokens: float, now_s: float) -> None:
        """The engine's counter of tokens computed (prompts and answers) stands here now."""
        before = self._progress
        if before is None or before[2] != self.n_live or tokens < before[0]:
            self._progress = (tokens, now_s, self.n_live)
            return
        moved, silent_s = tokens - before[0], now_s - before[1]
        if moved < SILENT_TOKENS or silent_s < SILENT_S or self.state is KvState.LOST:
            return
        self._progress = None
        if self.sequence.can_replay:
            if self.sequence.phase is not Phase.REPLAYING:
                self._verifying = (self.sequence.next, self.n_live)
                self._carry_out(self.sequence.verify())
        else:
            self._lose(f"silent for {silent_s:.0f} s while {moved:.0f} tokens were computed")
            self._deaf = True

    def restart(self, why: str, source: KvSource | None = None) -> None:
        """The endpoint is another (a new generation, perhaps elsewhere): begin from nothing.

        ValueError: no such address; it stays lost then. Closed: no effect.
        """
        if self._closed:
            return
        self._close_sockets()
        if source is not None:
            self.source = source
        self.sequence.can_replay = bool(self.source.replay_endpoint)
        self._lose(why)
        self._open()

    def close(self) -> None:
        """Stop, and forget what was known."""
        self._closed = True
        self._close_sockets()
        self._on_change = lambda _: None
        self._lose("closed")

    # -- connection

    def _open(self) -> None:
        socket = self._context.socket(zmq.SUB)
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        socket.setsockopt(zmq.CONNECT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_BATCH_BYTES)
        socket.setsockopt(zmq.IPV6, 1)
        socket.setsockopt(zmq.SUBSCRIBE, self.source.topic.encode())
        wanted = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        self._monitor = ZmqReader(socket.get_monitor_socket(wanted), self._on_monitor)
        self._socket = socket
        self._reader = ZmqReader(socket, self._on_message)
        try:
            socket.connect(self.source.endpoint)
        except zmq.ZMQError as error:
            self._close_sockets()
            raise ValueError(f"{self.source.endpoint}: {error}") from error

    def _close_sockets(self) -> None:
        self._stop_replay()
        if not self._socket.closed:
            self._socket.disable_monitor()
        self._monitor.close()
        self._reader.close()

    def _on_monitor(self, frames: list[bytes]) -> None:
        event = parse_monitor_message(frames)["event"]
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.n_connects += 1
            self._lost, self._deaf = "", False
            self._carry_out(self.sequence.begin("connected"))
        elif event == zmq.EVENT_DISCONNECTED:
            self._lose("connection lost")

    def _on_message(self, frames: list[bytes]) -> None:
        if self._lost and not self._deaf:
            self._monitor.drain()  # what it says happened before this message came
            if self._lost:
                return  # from before the connection was lost
        batch = read_batch(frames)
        if batch is None:
            self.n_faults += 1
            return
        self.n_live += 1
        if self._deaf:
            self._lost, self._deaf = "", False
            self._carry_out(self.sequence.begin("heard again"))
        self._carry_out(
            self.sequence.live(int.from_bytes(batch[0], "big"), stamp_of(batch[1]), batch[1])
        )

    # -- replay

    def _start_replay(self, start: int) -> None:
        self._stop_replay()
        self.n_replays += 1
        self._replay = KvReplay(
            self._context,
            self.source.replay_endpoint,
            start,
            lambda seq, payload: self._carry_out(self.sequence.replayed(seq, payload)),
            self._on_replay_over,
            self._on_replay_failed,
        )

    def _stop_replay(self) -> None:
        if self._replay is not None:
            self._replay.close()
            self._replay = None

    def _on_replay_over(self) -> None:
        before, self._verifying = self._verifying, None
        self._carry_out(self.sequence.replay_over())
        if before is not None and self.sequence.next > before[0] and self.n_live == before[1]:
            # Not from within the reader that is to be closed.
            self._loop.call_soon(partial(self.restart, "batches are published but do not arrive"))

    def _on_replay_failed(self, why: str) -> None:
        verifying, self._verifying = self._verifying, None
        self._carry_out(self.sequence.replay_failed(why))
        if verifying is not None and self.sequence.phase is not Phase.REPLAYING:
            self._lose(f"silent, and {why}")
            self._deaf = True

    # -- what is known

    def _carry_out(self, advice: Advice) -> None:
        if advice.clear:
            self._clear()
        for payload in advice.ready:
            self._apply(payload)
        if advice.replay_from is not None:
            self._start_replay(advice.replay_from)
        elif self.sequence.phase is not Phase.REPLAYING:
            self._stop_replay()
        self._settle()

    def _apply(self, payload: bytes) -> None:
        events, sequence = self.events, self.sequence
        clears, orphans = events.n_clears, self.n_orphans
        try:
            rank = events.apply(payload)
        except ValueError as error:
            self.n_faults += 1
            self._clear()
            sequence.doubt(f"a batch cannot be read: {error}")
            return
        self.rank = self.rank if rank is None else rank
        if events.n_clears != clears:
            sequence.cleared()
        if self.n_orphans != orphans and sequence.whole:
            sequence.doubt("a block was stored behind one that is not known")

    def _clear(self) -> None:
        self.n_clears += self.events.block_tokens != 0
        self.events.forget()

    def _lose(self, why: str) -> None:
        self._stop_replay()
        self._verifying = None
        self._clear()
        self._lost = why
        self._settle()

    def _settle(self) -> None:
        """Say what has become of it, once."""
        if self._lost:
            state, reason = KvState.LOST, self._lost
        elif self.sequence.phase is Phase.REPLAYING:
            state, reason = KvState.REPLAYING, "asked for the batches that are missing"
        elif self.sequence.exact:
            state, reason = KvState.LIVE, "every batch has been applied"
        else:
            state, reason = KvState.REBUILDING, self.sequence.why
        before, self.state, self.reason = self.state, state, reason
        if state is before:
            return
        bad = state in (KvState.LOST, KvState.REBUILDING)
        log.log(
            logging.WARNING if bad else logging.INFO,
            "%s: KV events: %s -> %s (%s)",
            self.name,
            before.value,
            state.value,
            reason,
        )
        self._on_change(self)
