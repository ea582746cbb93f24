"""The thread in which a stand-in serves all its requests, a step at a time."""

import heapq
import itertools
import threading
import time
from collections.abc import Generator

Job = Generator[float, None, None]


class Engine:
    """Runs jobs: generators that yield the seconds until their next step.

    One thread for all of them, because the server ends when several report metrics at once, and
    seldom loses a response when several send. What a job raises is the job's own business.
    """

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Job]] = []
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        self._put(time.monotonic(), job)

    def close(self) -> None:
        """Returns when every job has ended."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _put(self, due_s: float, job: Job) -> None:
        with self._changed:
            heapq.heappush(self._due, (due_s, next(self._numbers), job))
            self._changed.notify()

    def _run(self) -> None:
        while (item := self._take()) is not None:
            due_s, _, job = item
            wait_s = next(job, None)
            if wait_s is not None:
                # From when it was due, so that a pace is kept; never in arrears for good.
                self._put(max(due_s + wait_s, time.monotonic() - 1.0), job)

    def _take(self) -> tuple[float, int, Job] | None:
        with self._changed:
            while True:
                if not self._due:
                    if self._closing:
                        return None
                    self._changed.wait()
                elif (wait_s := self._due[0][0] - time.monotonic()) > 0:
                    self._changed.wait(wait_s)
                else:
                    return heapq.heappop(self._due)
