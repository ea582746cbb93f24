"""One request that the core works on: its jobs on one side, its response on the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from engines.sim.core import Event
from engines.sim.errors import ApiError
from engines.sim.job import Job
from engines.sim.reply import Reply
from engines.sim.response import Response
from engines.sim.sleep import Switches

__all__ = ["Backend", "Exchange"]

_SSE = "text/event-stream; charset=utf-8"


class Backend(Protocol):
    """What an exchange needs of its engine. All calls on the loop's thread, none blocks."""

    def submit(self, exchange: Exchange) -> None:
        """Give its jobs to the core. Raises ApiError if the engine takes none."""

    def cancel(self, exchange: Exchange) -> None:
        """Take its jobs from the core."""

    def settle(self, response: Response, outcome: str) -> None:
        """Account for the end of a request, once: finished, aborted, failed or refused."""

    def after(self, delay_s: float, act: Callable[[], None]) -> None:
        """Call when so much time has passed; at once if none is to pass."""

    @property
    def switches(self) -> Switches:
        """How often what it serves was switched."""


class Exchange:
    """Turns the core's events into the response: a stream of events, or one body at the end.

    `body` makes the whole body; `reply` makes a stream's events, and is None if the request is not
    for a stream. `response` is None for work in the background, of which `on_fail` is told instead.
    """

    def __init__(
        self,
        backend: Backend,
        jobs: Sequence[Job],
        response: Response | None,
        body: Callable[[], bytes],
        reply: Reply | None = None,
        dialect: str = "openai",
        on_fail: Callable[[], None] = lambda: None,
    ) -> None:
        self.jobs = jobs
        self.response = response
        self.dialect = dialect
        self._backend = backend
        self._body = body
        self._on_fail = on_fail
        self._reply = reply
        self._left = len(jobs)
        self._opened = False
        self._held: dict[int, tuple[int, int, str | None]] = {}
        for at, job in enumerate(jobs):
            job.owner, job.index = self, at

    def begin(self) -> None:
        """Submit the jobs. A stream's head goes out at once, before any token, as vLLM's does."""
        self._backend.submit(self)
        response = self.response
        if response is not None:
            response.on_gone = self._gone
            response.on_writable = self._flush
            if self._reply is not None:
                response.start(200, _SSE)

    def on_event(self, event: Event) -> None:
        """A token is there, or a job is done."""
        if event.finish_reason is not None:
            self._left -= 1
        if self._reply is not None and self.response is not None:
            self._stream(event)
        if not self._left:
            self._finish()

    def fail(self, error: ApiError) -> None:
        """The engine failed: the dialect's error, then the end."""
        response = self.response
        if response is None:
            self._on_fail()
        elif self._reply is None:
            response.send(error.status, error.body(self.dialect))
        else:
            self._write(self._reply.broken(error))
            response.end()
        if response is not None:
            self._backend.settle(response, "failed")

    def stop(self) -> int:
        """The engine has dropped the jobs of its own will: end in good order, with finish reason
        `abort`. Returns how many jobs that was."""
        ended = 0
        for at, job in enumerate(self.jobs):
            if job.emitted == len(job.output) and job.output:
                continue
            ended += 1
            self._left -= 1
            job.finish_reason = "abort"
            if self._reply is not None and self.response is not None:
                self._flush()
                self._deliver(at, job.emitted, job.emitted - 1, "abort")
        self._finish()
        return ended

    def _stream(self, event: Event) -> None:
        at, index = event.job.index, event.token
        response = self.response
        assert response is not None
        held = self._held.pop(at, None)
        first = index if held is None else held[0]
        if not response.writable and self._left:
            # vLLM keeps generating for a client that does not read, and merges what piles up.
            self._held[at] = (first, index, event.finish_reason)
            return
        self._flush()
        self._deliver(at, first, index, event.finish_reason)

    def _deliver(self, at: int, first: int, last: int, finish: str | None) -> None:
        assert self._reply is not None
        if not self._opened:
            self._opened = True
            self._write(self._reply.opening())
        self._write(self._reply.delta(at, first, last, finish))

    def _flush(self) -> None:
        while self._held:
            at, (first, last, finish) = self._held.popitem()
            self._deliver(at, first, last, finish)

    def _finish(self) -> None:
        response = self.response
        if response is None:
            self._body()
            return
        if self._reply is None:
            response.send(200, self._body())
        else:
            self._flush()
            self._write(self._reply.ending())
            response.end()
        # A fault may have broken the response just now; it has then been settled as failed.
        self._backend.settle(response, "finished")

    def _write(self, events: list[bytes]) -> None:
        assert self.response is not None
        for event in events:
            self.response.event(event)

    def _gone(self) -> None:
        assert self.response is not None
        self._backend.cancel(self)
        self._backend.settle(self.response, "failed" if self.response.broken else "aborted")
