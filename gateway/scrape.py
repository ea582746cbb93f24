"""Scrapes of one metrics page, again and again, over a kept connection and at its own pace.

There is a task only while a connection is dialled: what is left per scrape is a write and a read.
Whatever goes wrong is told as None, and the next one comes all the same.
"""

import asyncio
import logging
import random
import ssl
from collections.abc import Callable
from typing import NamedTuple

from engines.load import EngineLoad, LoadReader
from gateway._page_client import PageClient

__all__ = ["Pace", "Page", "Scrape", "Wheel"]

log = logging.getLogger("headgate.health")

PAGE_BYTES = 8 << 20
"""Most that is read of a page; vLLM's is 100 KB, with many adapters some MB."""
SHARE = 0.1
"""Of the time an engine may be busy with our scrapes: they run in its API server's loop."""


TURN_S = 0.02
"""Scrapes that are due within it begin together: of a thousand a second, each alone would wake
the process twice."""


class Wheel:
    """When each scrape goes on, for all of them: one timer. Make it inside the loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._due: dict[int, list[Scrape]] = {}
        self._turn = 0
        self._timer: asyncio.TimerHandle | None = None
        self._start_s = self._loop.time()

    def put(self, scrape: "Scrape", wait_s: float) -> int:
        """Have `scrape.on_turn(turn)` called in so many seconds, or a turn later; the turn."""
        turn = int((self._loop.time() - self._start_s + wait_s) / TURN_S) + 1
        turn = max(turn, self._turn + 1)
        self._due.setdefault(turn, []).append(scrape)
        if self._timer is None:
            self._timer = self._loop.call_later(TURN_S, self._go_on)
        return turn

    def _go_on(self) -> None:
        self._timer = None
        now = int((self._loop.time() - self._start_s) / TURN_S)
        while self._turn < now and self._due:
            self._turn += 1
            for scrape in self._due.pop(self._turn, ()):
                try:
                    scrape.on_turn(self._turn)
                except Exception:  # a bug in one must not stop all the others
                    log.exception("a scrape failed")
        self._turn = max(self._turn, now)
        if self._due and self._timer is None:
            self._timer = self._loop.call_later(TURN_S, self._go_on)


class Page(NamedTuple):
    """Where a metrics page is."""

    address: str
    port: int
    request: bytes
    tls: ssl.SSLContext | None = None
    server_name: str | None = None
    keep_alive_s: float = 4.0
    """A connection that was idle for longer is not used any more."""


class Pace:
    """How long to wait between two scrapes: `busy_s` while there is load, else twice as long each
    time, up to `idle_s`; the same after failures. Bounds may be changed at any time."""

    def __init__(self, busy_s: float, idle_s: float) -> None:
        self.busy_s = busy_s
        self.idle_s = idle_s
        self._last_s = 0.0

    def next_s(self, busy: bool, took_s: float) -> float:
        """Until the next scrape, without jitter; `took_s`: the one before."""
        longest_s = max(self.busy_s, self.idle_s)
        wanted_s = self.busy_s if busy else min(longest_s, 2 * self._last_s or self.busy_s)
        self._last_s = max(self.busy_s, wanted_s)
        return max(self._last_s, min(longest_s, took_s / SHARE))


class Scrape:
    """Begins at once; `stop` ends it. Make it and use it in the event loop.

    `on_load(load)` gets what a page said, None if it said nothing in time, and tells whether the
    engine has work. What it raises is logged, and the next scrape comes all the same.
    """

    def __init__(
        self,
        wheel: Wheel,
        page: Page,
        reader: LoadReader,
        pace: Pace,
        timeout_s: float,
        on_load: Callable[[EngineLoad | None], bool],
    ) -> None:
        self.pace = pace
        self.timeout_s = timeout_s
        self.why = ""
        """What went wrong last; empty: nothing since the last page."""
        self._wheel = wheel
        self._page = page
        self._reader = reader
        self._on_load = on_load
        self._loop = asyncio.get_running_loop()
        self._client: PageClient | None = None
        self._dial: asyncio.Task[None] | None = None
        self._fresh = False
        self._asking = False
        self._asked_s = self._answered_s = 0.0
        self._turn = wheel.put(self, 0.0)

    def soon(self) -> None:
        """Do not wait for the next one's time."""
        if not self._asking:
            self._turn = self._wheel.put(self, 0.0)

    def stop(self) -> None:
        """Nothing more comes."""
        self._turn = 0
        self._drop()

    def on_turn(self, turn: int) -> None:
        """The wheel's. A turn that was put off since does not count."""
        if turn == self._turn:
            (self._give_up if self._asking else self._begin)()

    def _begin(self) -> None:
        self._asking = True
        self._asked_s = now_s = self._loop.time()
        self._turn = self._wheel.put(self, self.timeout_s)
        if self._client is None:
            self._redial()
        elif now_s - self._answered_s >= self._page.keep_alive_s:
            self._drop()
            self._redial()
        else:
            self._client.ask(self._page.request)

    def _redial(self) -> None:
        self._fresh = True
        self._dial = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        page = self._page
        client = PageClient(self._on_page, self._on_lost, PAGE_BYTES)
        try:
            await self._loop.create_connection(
                lambda: client,
                page.address,
                page.port,
                ssl=page.tls,
                server_hostname=page.server_name if page.tls else None,
            )
        except asyncio.CancelledError:
            client.close()
            raise
        except (OSError, ValueError) as error:
            self._fail(f"cannot connect: {error}")
            return
        if not self._asking:  # what was lost before we heard of it has failed already
            return
        self._client = client
        client.ask(page.request)

    def _on_page(self, status: int, data: bytes, start: int, kept: bool) -> None:
        if not kept:
            self._client = None
        if status == 200:
            self.why = ""
            self._finish(self._reader.read(data, start))
        else:
            self._fail(f"answers {status}")

    def _on_lost(self, why: str, heard: bool) -> None:
        self._client = None
        if not self._asking:
            return
        if self._fresh or heard:
            self._fail(why)
        else:  # it was closed just as we wrote
            self._redial()

    def _give_up(self) -> None:
        self._drop()
        self._fail(f"does not answer within {self.timeout_s:g} s")

    def _drop(self) -> None:
        """Close the connection, or its dial."""
        if self._dial is not None:
            self._dial.cancel()
        if self._client is not None:
            self._client.close()
        self._client = self._dial = None

    def _fail(self, why: str) -> None:
        self.why = why
        self._finish(None)

    def _finish(self, load: EngineLoad | None) -> None:
        self._asking = self._fresh = False
        self._dial = None
        self._answered_s = self._loop.time()
        took_s = self._answered_s - self._asked_s
        busy = False
        try:
            busy = self._on_load(load)
        finally:
            wait_s = self.pace.next_s(busy, took_s) * random.uniform(0.8, 1.2)
            self._turn = self._wheel.put(self, wait_s)
