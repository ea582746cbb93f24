"""What the benchmarks found, as it stands in bench/results/*.json: one struct per file."""

from pathlib import Path
from typing import TypeVar

import msgspec

from bench.machine import Machine

__all__ = [
    "FOLDER",
    "Comparison",
    "Figures",
    "Idle",
    "Micro",
    "Row",
    "Soak",
    "load",
    "path_of",
    "save",
]

FOLDER = Path(__file__).resolve().parent / "results"


class Row(msgspec.Struct, frozen=True):
    """One proxy, one workload, one round."""

    round: int
    workload: str
    proxy: str
    cpu_us: float
    """Of all processes of the proxy, per request or event."""
    worker_cpu_us: float
    """Of its data workers alone; the same for proxies that are not told apart."""
    units: int
    """Requests or events the time was divided by."""
    bad: int
    rps: float
    ttfb_p50_ms: float
    ttfb_p99_ms: float
    rss_bytes: int


class Comparison(msgspec.Struct, frozen=True, tag="compare"):
    """A whole run of bench.compare."""

    machine: Machine
    command: str
    versions: dict[str, str]
    connections: int
    seconds: float
    rounds: int
    rows: list[Row]
    missing: dict[str, str] = {}
    """Proxies that could not be measured, and why."""
    said: dict[str, str] = {}
    """What proxies with bad requests wrote to standard error; to look into, not for the report."""

    def median(self, proxy: str, workload: str, field: str = "cpu_us") -> float | None:
        """Over the rounds; None: it was not measured."""
        return _median([float(getattr(row, field)) for row in self._rows(proxy, workload)])

    def ratio(self, proxy: str, to: str, workload: str) -> float | None:
        """Of CPU time: the median of the rounds' own ratios, so that a slow round hits both."""
        others = {row.round: row.cpu_us for row in self._rows(to, workload)}
        return _median(
            [
                row.cpu_us / others[row.round]
                for row in self._rows(proxy, workload)
                if others.get(row.round)
            ]
        )

    def _rows(self, proxy: str, workload: str) -> list[Row]:
        return [row for row in self.rows if (row.proxy, row.workload) == (proxy, workload)]

    def spread(self, proxy: str, workload: str) -> tuple[float, float]:
        """Least and most CPU time of a round."""
        values = [row.cpu_us for row in self._rows(proxy, workload)]
        return min(values), max(values)

    def proxies(self) -> list[str]:
        """In the order they were measured."""
        return list(dict.fromkeys(row.proxy for row in self.rows))

    def workloads(self) -> list[str]:
        """In the order they were measured."""
        return list(dict.fromkeys(row.workload for row in self.rows))


def _median(values: list[float]) -> float | None:
    if not values:
        return None
    values = sorted(values)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


class Soak(msgspec.Struct, frozen=True, tag="streams"):
    """A run of bench.streams."""

    machine: Machine
    command: str
    streams: int
    events_per_s: float
    """Per stream, as asked."""
    seconds: float
    ok: int
    non200: int
    errors: int
    short: int
    """Streams that were cut early."""
    measured_events_per_s: float
    """All streams together, at the client."""
    gap_p99_ms: float
    worker_cpu_share: float
    """Of one core, while all streams ran."""
    rss_before_bytes: int
    """The worker, warm and without a stream."""
    rss_samples_bytes: list[int]
    """The worker, once a second while all streams ran."""
    rss_after_bytes: int
    """The worker, when the streams had ended."""

    @property
    def rss_per_stream_bytes(self) -> float:
        """The most that was seen, over what the worker takes without streams."""
        return (max(self.rss_samples_bytes) - self.rss_before_bytes) / self.streams

    @property
    def growth_per_stream_bytes(self) -> float:
        """From the first third of the samples to the last: flat memory has none."""
        third = max(1, len(self.rss_samples_bytes) // 3)
        first, last = self.rss_samples_bytes[:third], self.rss_samples_bytes[-third:]
        return (sum(last) / len(last) - sum(first) / len(first)) / self.streams


class Idle(msgspec.Struct, frozen=True, tag="idle"):
    """A run of bench.idle."""

    machine: Machine
    command: str
    seconds: float
    control_rss_bytes: int
    worker_rss_bytes: int
    control_pss_bytes: int
    """With shared pages divided among those who share them: what it adds to the machine."""
    worker_pss_bytes: int
    control_cpu_ms_per_s: float
    worker_cpu_ms_per_s: float


class Micro(msgspec.Struct, frozen=True, tag="micro"):
    """What the files in bench/micro measured, in nanoseconds per operation (the best round)."""

    machine: Machine
    command: str
    ns: dict[str, float]


Figures = TypeVar("Figures", Comparison, Soak, Idle, Micro)
NAMES: dict[type[msgspec.Struct], str] = {
    Comparison: "compare",
    Soak: "streams",
    Idle: "idle",
    Micro: "micro",
}


def path_of(kind: type[Comparison | Soak | Idle | Micro], folder: Path = FOLDER) -> Path:
    """The file a kind of result is kept in."""
    return folder / f"{NAMES[kind]}.json"


def save(result: Comparison | Soak | Idle | Micro, folder: Path = FOLDER) -> Path:
    """Write the result to its file, over an older one."""
    folder.mkdir(parents=True, exist_ok=True)
    path = path_of(type(result), folder)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))
    return path


def load(kind: type[Figures], folder: Path = FOLDER) -> Figures | None:
    """The newest result of a kind; None: it was not measured."""
    path = path_of(kind, folder)
    if not path.exists():
        return None
    return msgspec.json.decode(path.read_bytes(), type=kind)
