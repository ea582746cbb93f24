"""One request to an engine for batches that were missed."""

import asyncio
from collections.abc import Callable

import zmq

from gateway.zmq_reader import ZmqReader

__all__ = ["END", "KvReplay", "read_batch"]

END = b"\xff" * 8
"""The sequence number behind the last batch of a replay."""
SILENCE_S = 5.0
"""Between two messages; vLLM looks for requests ten times a second."""
MAX_BATCH_BYTES = 256 << 20


def read_batch(frames: list[bytes]) -> tuple[bytes, bytes] | None:
    """Sequence number and payload, the last two frames: what stands before (topic, delimiter)
    differs by release. None: it is no batch."""
    if len(frames) < 2 or len(frames[-2]) != 8:
        return None
    return frames[-2], frames[-1]


class KvReplay:
    """Runs until `on_over` or `on_failed(why)` is called, once, or it is closed.

    A socket for each request: answers to an earlier one cannot come in between.
    """

    def __init__(
        self,
        context: "zmq.Context[zmq.Socket[bytes]]",
        endpoint: str,
        start: int,
        on_batch: Callable[[int, bytes], None],
        on_over: Callable[[], None],
        on_failed: Callable[[str], None],
    ) -> None:
        self._on_batch = on_batch
        self._on_over = on_over
        self._on_failed = on_failed
        self._loop = asyncio.get_running_loop()
        self._heard_s = self._loop.time()
        socket = context.socket(zmq.DEALER)
        # No bound of ours: what finds no room the engine drops, without a word.
        socket.setsockopt(zmq.RCVHWM, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, MAX_BATCH_BYTES)
        socket.setsockopt(zmq.IPV6, 1)
        socket.connect(endpoint)
        self._reader = ZmqReader(socket, self._on_message)
        self._reader.send((b"", start.to_bytes(8, "big")))
        self._timer = self._loop.call_later(SILENCE_S, self._on_timer)

    def close(self) -> None:
        """Nothing is called any more."""
        self._timer.cancel()
        self._reader.close()

    def _on_message(self, frames: list[bytes]) -> None:
        self._heard_s = self._loop.time()
        batch = read_batch(frames)
        if batch is None:
            self.close()
            self._on_failed("the replay is in a form that is not known")
        elif batch[0] == END:
            self.close()
            self._on_over()
        else:
            self._on_batch(int.from_bytes(batch[0], "big"), batch[1])

    def _on_timer(self) -> None:
        left_s = self._heard_s + SILENCE_S - self._loop.time()
        if left_s > 0.001:
            self._timer = self._loop.call_later(left_s, self._on_timer)
            return
        self.close()
        self._on_failed(f"the replay is silent for {SILENCE_S:g} s")
