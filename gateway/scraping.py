"""Which metrics pages the endpoints have, and what they say: one `EngineLoad` for each endpoint."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import msgspec

from engines.kind import KINDS
from engines.load import EngineLoad, LoadReader
from engines.nvidia import DCGM_METRICS
from gateway.config import Engine, EngineUrl, parse_engine_url
from gateway.config.schema import Health
from gateway.fleet import Member
from gateway.scrape import Pace, Page, Scrape, Wheel
from gateway.version import VERSION

__all__ = ["Scraping"]

GPUS_S = 10.0
"""Between two looks at GPUs: their exporters have new figures every 1 to 30 s."""


@dataclass(slots=True, eq=False)
class _Scraped:
    """Of one endpoint."""

    engine: Engine
    own: Scrape | None = None
    gpus: Scrape | None = None
    gpu_utilisation: float | None = None


class Scraping:
    """Scrapes all endpoints, each by itself: none waits for another, nor for a probe.

    `on_load(slot, load)` gets what an endpoint says, None if it did not say, and tells whether
    there is work for it. `context(ca_file)` makes TLS contexts. Use it in the event loop.
    """

    def __init__(
        self,
        config: Health,
        context: Callable[[str], ssl.SSLContext],
        on_load: Callable[[int, EngineLoad | None], bool],
    ) -> None:
        self._config = config
        self._context = context
        self._on_load = on_load
        self._scraped: dict[int, _Scraped] = {}
        self._wheel = Wheel()

    def configure(self, config: Health) -> None:
        """Take other intervals."""
        self._config = config
        for scraped in self._scraped.values():
            if scraped.own is not None:
                scraped.own.pace.busy_s = config.scrape_s
                scraped.own.pace.idle_s = config.scrape_idle_s
            for scrape in filter(None, (scraped.own, scraped.gpus)):
                scrape.timeout_s = config.timeout_s

    def start(self, member: Member) -> None:
        """Begin with an endpoint whose address and kind are known; anew, if it was there."""
        self.stop(member.slot)
        scraped = self._scraped[member.slot] = _Scraped(member.engine)
        page = self._page(member)
        if page is not None:
            scraped.own = self._scrape(
                page,
                _reader(member.kind, member.engine.rank),
                Pace(self._config.scrape_s, self._config.scrape_idle_s),
                lambda load: self._on_own(member.slot, scraped, load),
            )
        if member.engine.gpu_metrics:
            labels = tuple(sorted(member.engine.gpu_labels.items()))
            scraped.gpus = self._scrape(
                _gpu_page(parse_engine_url(member.engine.gpu_metrics), self._context),
                _gpu_reader(labels),
                Pace(GPUS_S, GPUS_S),
                lambda load: self._on_gpus(member.slot, scraped, load),
            )

    def stop(self, slot: int) -> None:
        """No more of an endpoint, at once."""
        scraped = self._scraped.pop(slot, None)
        for scrape in (scraped.own, scraped.gpus) if scraped is not None else ():
            if scrape is not None:
                scrape.stop()

    def soon(self, slot: int) -> None:
        """An endpoint's load is wanted now; nothing happens if it is not scraped."""
        scraped = self._scraped.get(slot)
        if scraped is not None and scraped.own is not None:
            scraped.own.soon()

    def refit(self, member: Member) -> None:
        """Another configuration; nothing happens if it is not scraped, or all is as before."""
        scraped = self._scraped.get(member.slot)
        if scraped is not None and scraped.engine != member.engine:
            self.start(member)

    def is_on(self, slot: int) -> bool:
        """Whether an endpoint is scraped, as far as it can be."""
        return slot in self._scraped

    def why(self, slot: int) -> str:
        """What is wrong with an endpoint's own page; empty: nothing, or it has none."""
        scraped = self._scraped.get(slot)
        return "" if scraped is None or scraped.own is None else scraped.own.why

    def close(self) -> None:
        """Stop everything."""
        for slot in list(self._scraped):
            self.stop(slot)

    def _scrape(
        self,
        page: Page,
        reader: LoadReader,
        pace: Pace,
        on_load: Callable[[EngineLoad | None], bool],
    ) -> Scrape:
        return Scrape(self._wheel, page, reader, pace, self._config.timeout_s, on_load)

    def _on_own(self, slot: int, scraped: _Scraped, load: EngineLoad | None) -> bool:
        if load is not None and load.gpu_utilisation is None:
            load = msgspec.structs.replace(load, gpu_utilisation=scraped.gpu_utilisation)
        return self._on_load(slot, load)

    def _on_gpus(self, slot: int, scraped: _Scraped, load: EngineLoad | None) -> bool:
        scraped.gpu_utilisation = None if load is None else load.gpu_utilisation
        if scraped.own is None:
            self._on_load(slot, load)
        return True

    def _page(self, member: Member) -> Page | None:
        kind, engine, url = KINDS[member.kind], member.engine, member.url
        if kind.metrics_path is None:
            return None
        port = engine.metrics_port or url.port + kind.metrics_port_after
        own = port == url.port
        # Another port is another server: our key and its certificate are none of its business.
        address = f"[{url.host}]" if ":" in url.host else url.host
        head = _head(
            (url.prefix if own else "") + kind.metrics_path,
            url.authority if own else f"{address}:{port}",
        )
        if own and engine.api_key:
            head += f"Authorization: Bearer {engine.api_key.reveal()}\r\n"
        if engine.rank is not None:
            head += f"X-data-parallel-rank: {engine.rank}\r\n"
        return Page(
            member.address,
            port,
            f"{head}\r\n".encode(),
            self._context(engine.ca_file) if url.tls and own else None,
            engine.server_name or url.host,
            engine.keep_alive_s or kind.keep_alive_s,
        )


def _head(path: str, host: str) -> str:
    return (
        f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: headgate/{VERSION}\r\n"
        "Accept: text/plain\r\n"
    )


def _gpu_page(url: EngineUrl, context: Callable[[str], ssl.SSLContext]) -> Page:
    head = _head(url.prefix or "/metrics", url.authority)
    tls = context("") if url.tls else None
    return Page(url.host, url.port, f"{head}\r\n".encode(), tls, url.host)


@cache
def _reader(kind: str, rank: int | None) -> LoadReader:
    return LoadReader(KINDS[kind].metrics, rank)


@cache
def _gpu_reader(labels: tuple[tuple[str, str], ...]) -> LoadReader:
    return LoadReader(DCGM_METRICS, having=labels)
