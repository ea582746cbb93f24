"""The metrics page: shared words by the table of `metric_names`, and what control itself knows.

Rows of models and endpoints that never counted anything are left out. May run in a thread.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from gateway._shared import LATENCY_BOUNDS_S, SHORT_BOUNDS_S, STATUSES, Area, Count, Shared
from gateway.fleet import MAX_MODELS
from gateway.metric_names import (
    BY_ENDPOINT,
    BY_MODEL,
    BY_STATUS,
    COUNTERS,
    GAUGES,
    HISTOGRAMS,
    Labelled,
    Spread,
)
from gateway.prober import Watch
from gateway.reasons import Reason
from gateway.state import requests_under_way
from gateway.version import VERSION

if TYPE_CHECKING:
    from gateway.control import Control

__all__ = ["CONTENT_TYPE", "render"]

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
PREFIX = "headgate_"
OTHER_MODELS = "(other)"
SAID = ("running", "waiting", "kv_usage", "gpu_utilisation")
"""Label of the row that stands for all models beyond the table; no model is called so."""
N_BUCKETS = len(LATENCY_BOUNDS_S) + 1

# Label value -> the N words of its row.
Rows = Sequence[tuple[str, list[int]]]


def render(control: "Control") -> bytes:
    """The page in the Prometheus text format. About 4 us per line: not for a worker."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Page(control))
    return generate_latest(registry)


class _Page(Collector):
    def __init__(self, control: "Control") -> None:
        self._control = control

    def collect(self) -> Iterable[Metric]:
        control = self._control
        shared, watches = control.shared, control.watches()
        yield from _own(control)
        yield from _whole(shared)
        yield from _reasons(shared)
        models = _model_rows(shared, control.fleet.model_rows())
        yield _by_status("model", models)
        yield from _by_row("model", BY_MODEL, models)
        endpoints = _endpoint_rows(control, watches)
        yield _by_status("endpoint", endpoints)
        yield from _by_row("endpoint", BY_ENDPOINT, endpoints)
        yield from _endpoint_gauges(control, watches)
        yield from _processes(control)


def _own(control: "Control") -> Iterator[Metric]:
    """What the control process knows by itself."""
    supervisor = control.supervisor
    yield InfoMetricFamily(PREFIX + "build", "What runs.", {"version": VERSION})
    yield _gauge("ready", "1: new clients may come.", 0 if control.unready_reasons() else 1)
    yield _gauge("start_time_seconds", "Start of the gateway, Unix time.", control.started_s)
    yield _gauge("workers", "Data workers configured.", len(supervisor.workers))
    yield _gauge("workers_ready", "Data workers that serve.", supervisor.ready_count)
    yield CounterMetricFamily(
        PREFIX + "worker_restarts", "Starts of workers beyond their first.", supervisor.restarts
    )
    written = control.access_log
    dropped = control.shared.count(Count.ACCESS_LOG_DROPPED) + (written.dropped if written else 0)
    yield CounterMetricFamily(
        PREFIX + "access_log_lines_dropped", "Lines lost to a slow disk.", dropped
    )
    yield CounterMetricFamily(
        PREFIX + "index_prompts_dropped",
        "Prompts sent that the prefix index did not hear of.",
        control.shared.count(Count.SENT_DROPPED),
    )
    if not control.bus.alone:
        state = control.bus.state
        yield _gauge("bus_connected", "1: other gateways can be told.", int(state.connected))
        yield _gauge("bus_peers", "Other gateways that are heard.", len(control.bus.peers))
        for name, words, count in (
            ("messages_sent", "Messages to them.", state.messages_out),
            ("messages_received", "Messages of them.", state.messages_in),
            ("sent_bytes", "Bytes to them.", state.bytes_out),
            ("received_bytes", "Bytes of them.", state.bytes_in),
            ("blocks_dropped", "Blocks that did not fit into messages.", state.dropped_blocks),
        ):
            yield CounterMetricFamily(f"{PREFIX}bus_{name}", words, count)
    index = control.shared.index
    yield _gauge("index_blocks", "Blocks in the prefix index.", index.n_blocks)
    yield CounterMetricFamily(
        PREFIX + "index_blocks_dropped", "Blocks that found no room in it.", index.n_dropped
    )


def _whole(shared: Shared) -> Iterator[Metric]:
    """Over all workers, without model or endpoint."""
    words = shared.block(Area.COUNTS, int(Count.N_COUNTS))
    for row in COUNTERS:
        yield _fill(_counter(row, ()), row, "", words)
    for row in GAUGES:
        labels = [row.label] if row.label else []
        yield _fill(GaugeMetricFamily(PREFIX + row.name, row.help, labels=labels), row, "", words)
    yield _gauge(
        "requests_under_way", "Requests accepted and not ended.", requests_under_way(shared)
    )
    connections = GaugeMetricFamily(
        PREFIX + "connections_open", "Connections that are open.", labels=["side"]
    )
    for side, opened, closed in (
        ("client", Count.CLIENT_OPENED, Count.CLIENT_CLOSED),
        ("upstream", Count.UPSTREAM_OPENED, Count.UPSTREAM_CLOSED),
    ):
        connections.add_metric([side], words[opened] - words[closed])
    yield connections
    for spread in HISTOGRAMS:
        family = HistogramMetricFamily(PREFIX + spread.name, spread.help, labels=[])
        _add_histogram(family, [], spread, shared.block(spread.word, N_BUCKETS + 1))
        yield family


def _reasons(shared: Shared) -> Iterator[Metric]:
    """Before dispatch a request is refused, after it fails: see `reasons`."""
    words = shared.block(Area.REASONS, 64)
    refused = CounterMetricFamily(
        PREFIX + "refusals", "Requests that Headgate refused, by reason.", labels=["reason"]
    )
    failed = CounterMetricFamily(
        PREFIX + "failures", "Requests that failed after dispatch, by reason.", labels=["reason"]
    )
    for reason in Reason:
        if words[reason]:
            family = refused if reason < Reason.CONNECT_FAILED else failed
            family.add_metric([reason.name.lower()], words[reason])
    yield refused
    yield failed


def _model_rows(shared: Shared, names: dict[str, int]) -> Rows:
    rows = {index: name for name, index in names.items() if index < MAX_MODELS - 1}
    rows[MAX_MODELS - 1] = OTHER_MODELS
    width = int(Area.MODEL_WIDTH)
    found = [(rows[i], shared.block(Area.MODELS + i * width, width)) for i in sorted(rows)]
    return [(name, words) for name, words in found if any(words)]


def _endpoint_rows(control: "Control", watches: list[Watch]) -> Rows:
    found = []
    for watch in watches:
        member = watch.member
        now = control.endpoint_words(member.slot)
        before = control.endpoint_base.get(member.slot, [0] * len(now))
        words = [count - base for count, base in zip(now, before, strict=True)]
        if any(words):
            found.append((member.name, words))
    return found


def _by_status(label: str, rows: Rows) -> Metric:
    name, text, first = BY_STATUS[label]
    family = CounterMetricFamily(PREFIX + name, text, labels=[label, "status"])
    for value, words in rows:
        for index, status in enumerate(STATUSES):
            if words[first + index]:
                family.add_metric([value, str(status)], words[first + index])
    return family


def _by_row(label: str, table: Sequence[Labelled | Spread], rows: Rows) -> Iterator[Metric]:
    for row in table:
        if isinstance(row, Spread):
            family = HistogramMetricFamily(PREFIX + row.name, row.help, labels=[label])
            for value, words in rows:
                part = words[row.word : row.word + N_BUCKETS + 1]
                if any(part):
                    _add_histogram(family, [value], row, part)
            yield family
        else:
            counter = _counter(row, (label,))
            for value, words in rows:
                _fill(counter, row, value, words)
            yield counter


class _Family(Protocol):
    def add_metric(self, labels: Sequence[str], value: float) -> None: ...


F = TypeVar("F", bound=_Family)


def _counter(row: Labelled, labels: tuple[str, ...]) -> CounterMetricFamily:
    names = [*labels, row.label] if row.label else list(labels)
    return CounterMetricFamily(PREFIX + row.name, row.help, labels=names)


def _fill(family: F, row: Labelled, value: str, words: list[int]) -> F:
    for label, word in row.words.items():
        family.add_metric([part for part in (value, label) if part], words[word])
    return family


def _add_histogram(
    family: HistogramMetricFamily, labels: list[str], row: Spread, words: list[int]
) -> None:
    bounds, total = [], 0
    for bound, count in zip(SHORT_BOUNDS_S if row.short else LATENCY_BOUNDS_S, words, strict=False):
        total += count
        bounds.append((repr(bound), float(total)))
    bounds.append(("+Inf", float(total + words[N_BUCKETS - 1])))
    family.add_metric(labels, buckets=bounds, sum_value=words[N_BUCKETS] / 1e6)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, text, value)


def _endpoint_gauges(control: "Control", watches: list[Watch]) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        PREFIX + "endpoint_state", "1 for the present state.", labels=["endpoint", "state"]
    )
    share = GaugeMetricFamily(
        PREFIX + "endpoint_share", "Of a full load, while it starts slowly.", labels=["endpoint"]
    )
    in_flight = GaugeMetricFamily(
        PREFIX + "endpoint_in_flight", "Dispatched and not ended.", labels=["endpoint"]
    )
    engine = GaugeMetricFamily(
        PREFIX + "endpoint_engine",
        "As the engine itself says: running, waiting (requests); kv_usage, gpu_utilisation (to 1).",
        labels=["endpoint", "what"],
    )
    blocks = GaugeMetricFamily(
        PREFIX + "endpoint_cached_blocks",
        "Blocks of prompts that its cache is known or assumed to hold.",
        labels=["endpoint"],
    )
    events = GaugeMetricFamily(
        PREFIX + "kv_events_state",
        "1 for the present state of an engine's KV events: live, rebuilding, replaying, lost.",
        labels=["endpoint", "state"],
    )
    counts = CounterMetricFamily(
        PREFIX + "kv_events",
        "Of engines' KV events: batches heard, gaps, replays, clears, faults.",
        labels=["endpoint", "what"],
    )
    table = control.shared.table
    for watch in watches:
        name, load = watch.member.name, watch.load
        state.add_metric([name, watch.health.state.name.lower()], 1)
        share.add_metric([name], table.row(watch.member.slot)[1])
        in_flight.add_metric([name], table.load(watch.member.slot)["in_flight"])
        blocks.add_metric([name], control.caches.n_blocks(watch.member.slot))
        subscription = control.caches.subscription(watch.member.slot)
        if subscription is not None:
            events.add_metric([name, subscription.state.value], 1)
            for what, count in (
                ("batches", subscription.n_live),
                ("gaps", subscription.n_gaps),
                ("replays", subscription.n_replays),
                ("clears", subscription.n_clears),
                ("faults", subscription.n_faults),
            ):
                counts.add_metric([name, what], count)
        for what in SAID if load is not None else ():
            value = getattr(load, what)
            if value is not None:
                engine.add_metric([name, what], value)
    return iter([state, share, in_flight, engine, blocks, events, counts])


def _processes(control: "Control") -> Iterator[Metric]:
    memory = GaugeMetricFamily(
        PREFIX + "resident_memory_bytes", "Resident memory.", labels=["process"]
    )
    cpu = CounterMetricFamily(PREFIX + "cpu_seconds", "Processor time used.", labels=["process"])
    for worker in (None, *control.supervisor.workers):
        pid = os.getpid() if worker is None else worker.pid
        name = "control" if worker is None else f"worker-{worker.index}"
        try:
            with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        used_s = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        if worker is not None and pid is not None:
            used_s = worker.total_cpu_s(pid, used_s)
        cpu.add_metric([name], used_s)
        memory.add_metric([name], int(fields[21]) * os.sysconf("SC_PAGE_SIZE"))
    yield memory
    yield cpu
