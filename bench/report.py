"""Renders bench/RESULTS.md from bench/results/*.json; the file is never edited by hand.

python -m bench.report
"""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec

from bench import results
from bench.compare import DIRECT, WORKLOADS
from bench.machine import Machine

__all__ = ["BARS", "Bar", "comparison_table", "main", "render"]

PATH = Path(__file__).resolve().parent / "RESULTS.md"
KIB = 1024
MB = 1e6
MICRO_WORDS = {
    "head": "parse a request head",
    "body": "walk a body's framing",
    "scan": "scan an event stream",
    "envelope": "read a request's JSON envelope",
    "relay": "relay a response body",
    "pick": "pick an endpoint",
    "build": "build a head",
}


DEFAULT = "headgate"
LEAST = "headgate-least-requests"


class Found(msgspec.Struct, frozen=True):
    """All results there are; None: not measured."""

    comparison: results.Comparison | None
    soak: results.Soak | None
    idle: results.Idle | None
    micro: results.Micro | None


class Bar(msgspec.Struct, frozen=True):
    """A bar the product must stay under."""

    what: str
    limit: float
    unit: str
    value: Callable[[Found], float | None]
    """None: its measurement is missing."""


def _ratio(of: str, to: str, workload: str) -> Callable[[Found], float | None]:
    def value(found: Found) -> float | None:
        if found.comparison is None:
            return None
        return found.comparison.ratio(of, to, workload)

    return value


def _added_ttfb_ms(found: Found) -> float | None:
    if found.comparison is None:
        return None
    through = found.comparison.median("headgate", "stream", "ttfb_p50_ms")
    direct = found.comparison.median(DIRECT, "stream", "ttfb_p50_ms")
    return None if through is None or direct is None else through - direct


def _of_soak(read: Callable[[results.Soak], float]) -> Callable[[Found], float | None]:
    return lambda found: None if found.soak is None else read(found.soak)


def _idle_mb(found: Found) -> float | None:
    if found.idle is None:
        return None
    return (found.idle.control_rss_bytes + found.idle.worker_rss_bytes) / MB


BARS = (
    Bar("CPU per short request, to nginx", 1.5, "x", _ratio(LEAST, "nginx", "plain")),
    Bar("... with marginal-cost", 1.8, "x", _ratio(DEFAULT, "nginx", "plain")),
    Bar(
        "CPU per short request, to sglang-router",
        0.5,
        "x",
        _ratio(LEAST, "sglang-router", "plain"),
    ),
    Bar("CPU per SSE event, to nginx", 1.15, "x", _ratio(LEAST, "nginx", "stream")),
    Bar("... with marginal-cost", 1.15, "x", _ratio(DEFAULT, "nginx", "stream")),
    Bar("time to first byte added over direct, p50", 1.0, "ms", _added_ttfb_ms),
    Bar("CPU per 220 KB request, to nginx", 1.8, "x", _ratio(LEAST, "nginx", "long")),
    Bar("... with marginal-cost", 2.8, "x", _ratio(DEFAULT, "nginx", "long")),
    Bar(
        "streams that failed or were cut early",
        0,
        "",
        _of_soak(lambda soak: soak.non200 + soak.errors + soak.short),
    ),
    Bar(
        "worker memory per stream",
        12,
        "KiB",
        _of_soak(lambda soak: soak.rss_per_stream_bytes / KIB),
    ),
    Bar(
        "growth of it while the streams run",
        1,
        "KiB",
        _of_soak(lambda soak: soak.growth_per_stream_bytes / KIB),
    ),
    Bar("idle RSS, control process and one worker", 100, "MB", _idle_mb),
)


def render(found: Found) -> str:
    """The whole of RESULTS.md."""
    parts = [
        "# Results\n\nRendered by `python -m bench.report`; do not edit. What each figure means and"
        " how to get it: [README.md](README.md).",
        _bars(found),
    ]
    if found.comparison is not None:
        parts.append(_comparison(found.comparison))
    if found.soak is not None:
        parts.append(_soak(found.soak))
    if found.idle is not None:
        parts.append(_idle(found.idle))
    if found.micro is not None:
        parts.append(_micro(found.micro))
    return "\n\n".join(parts) + "\n"


def comparison_table(comparison: results.Comparison) -> str:
    """One row per proxy and workload."""
    rows = []
    for workload in comparison.workloads():
        for proxy in comparison.proxies():
            rows.append(_comparison_row(comparison, proxy, workload))
    head = ("workload", "proxy", "CPU us", "least - most", "x nginx", "TTFB p50 / p99 ms", "bad")
    return _table(head, rows)


def _comparison_row(comparison: results.Comparison, proxy: str, workload: str) -> tuple[str, ...]:
    def median(field: str) -> float:
        return comparison.median(proxy, workload, field) or 0.0

    bad = sum(row.bad for row in comparison.rows if (row.proxy, row.workload) == (proxy, workload))
    ttfb = f"{median('ttfb_p50_ms'):.2f} / {median('ttfb_p99_ms'):.2f}"
    if proxy == DIRECT:
        return f"{workload}", DIRECT, "-", "-", "-", ttfb, str(bad)
    ratio = comparison.ratio(proxy, "nginx", workload)
    cpu = f"{median('cpu_us'):.2f}"
    if median("worker_cpu_us") < median("cpu_us"):
        cpu += f" (worker {median('worker_cpu_us'):.2f})"
    least, most = comparison.spread(proxy, workload)
    return (
        workload,
        proxy,
        cpu,
        f"{least:.1f} - {most:.1f}",
        "-" if ratio is None else f"{ratio:.2f}",
        ttfb,
        str(bad),
    )


def _bars(found: Found) -> str:
    rows = []
    for bar in BARS:
        value = bar.value(found)
        unit = f" {bar.unit}" if bar.unit else ""
        rows.append(
            (
                bar.what,
                f"<= {bar.limit:g}{unit}",
                "not measured" if value is None else f"{value:.2f}{unit}",
                "-" if value is None else ("yes" if value <= bar.limit else "**no**"),
            )
        )
    return "## Bars\n\n" + _table(("what", "bar", "measured", "holds"), rows)


def _comparison(comparison: results.Comparison) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in comparison.versions.items())
    units = "; ".join(
        f"**{name}**: {WORKLOADS[name].what}, CPU per {WORKLOADS[name].unit}"
        for name in comparison.workloads()
    )
    text = (
        f"## Proxies side by side\n\n{_ran_on(comparison.machine, comparison.command)}\n"
        f"{versions}. {comparison.rounds} interleaved rounds of {comparison.seconds:g} s,"
        f" {comparison.connections} connections, two mock engines, every proxy pinned to one core."
        " Medians over the rounds; a ratio is taken within each round, then the median.\n\n"
        f"{units}. Headgate runs with a key, metrics, probes and scrapes; its"
        " control process is counted in. The others run bare.\n\n"
    )
    text += comparison_table(comparison)
    if comparison.missing:
        reasons = "; ".join(f"{name}: {why}" for name, why in comparison.missing.items())
        text += f"\n\nNot measured: {reasons}."
    return text


def _soak(soak: results.Soak) -> str:
    rows = [
        ("streams at once, events/s each", f"{soak.streams}, {soak.events_per_s:g}"),
        ("seconds", f"{soak.seconds:g}"),
        ("whole / failed / cut early", f"{soak.ok} / {soak.non200 + soak.errors} / {soak.short}"),
        ("events/s at the client", f"{soak.measured_events_per_s:.0f}"),
        ("gap between events, p99", f"{soak.gap_p99_ms:.1f} ms"),
        ("worker CPU", f"{soak.worker_cpu_share * 100:.0f} % of a core"),
        ("worker RSS before", f"{soak.rss_before_bytes / MB:.1f} MB"),
        ("worker RSS, most", f"{max(soak.rss_samples_bytes) / MB:.1f} MB"),
        ("worker RSS after", f"{soak.rss_after_bytes / MB:.1f} MB"),
        ("memory per stream", f"{soak.rss_per_stream_bytes / KIB:.1f} KiB"),
        ("growth per stream, first third to last", f"{soak.growth_per_stream_bytes / KIB:.2f} KiB"),
    ]
    return f"## Many streams at once\n\n{_ran_on(soak.machine, soak.command)}\n\n" + _table(
        ("what", "measured"), rows
    )


def _idle(idle: results.Idle) -> str:
    rows = [
        _idle_row("control process", idle.control_rss_bytes, idle.control_pss_bytes,
                  idle.control_cpu_ms_per_s),
        _idle_row("worker", idle.worker_rss_bytes, idle.worker_pss_bytes,
                  idle.worker_cpu_ms_per_s),
    ]  # fmt: skip
    return (
        f"## Idle\n\n{_ran_on(idle.machine, idle.command)} Two engines probed and scraped, no"
        f" requests, {idle.seconds:g} s.\n\n"
        + _table(("process", "RSS MB", "PSS MB", "CPU ms per s"), rows)
    )


def _idle_row(name: str, rss: int, pss: int, cpu_ms: float) -> tuple[str, ...]:
    return name, f"{rss / MB:.1f}", f"{pss / MB:.1f}", f"{cpu_ms:.2f}"


def _micro(micro: results.Micro) -> str:
    rows = []
    for name, ns in sorted(micro.ns.items()):
        family, _, case = name.partition(":")
        rows.append((MICRO_WORDS.get(family, family), case, f"{ns:,.1f}"))
    return (
        f"## Parts of the data path\n\n{_ran_on(micro.machine, micro.command)} Loops in C, no"
        " Python in between; the best of 30.\n\n" + _table(("operation", "case", "ns"), rows)
    )


def _ran_on(machine: Machine, command: str) -> str:
    return (
        f"`{command}`, {machine.date}: {machine.cpu}, {machine.cores} cores,"
        f" {machine.memory_gib:g} GiB, {machine.kernel}, Python {machine.python}; load average at"
        f" the start {machine.load_average:g}."
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def find(folder: Path = results.FOLDER) -> Found:
    """Read what there is."""
    return Found(
        results.load(results.Comparison, folder),
        results.load(results.Soak, folder),
        results.load(results.Idle, folder),
        results.load(results.Micro, folder),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: read results, write the report."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=results.FOLDER, help="of the results")
    parser.add_argument("--out", type=Path, default=PATH)
    given = parser.parse_args(arguments)
    given.out.write_text(render(find(given.folder)))
    print(f"written: {given.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
