"""The lab's figures as a table, as plots and as one page."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from bench.lab.figures import SLO_TPOT_S, SLO_TTFT_S, Figures
from bench.lab.run import Done
from bench.lab.traces import MADE_UP

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["NoMatplotlib", "need_matplotlib", "plot", "table", "write"]

SLO = f"TTFT <= {SLO_TTFT_S:g} s, TPOT <= {1e3 * SLO_TPOT_S:g} ms"

COLUMNS = (
    ("goodput", "goodput", "{:.3f}", 1.0),
    ("TTFT mean", "ttft_mean_s", "{:.2f}", 1.0),
    ("p50", "ttft_p50_s", "{:.2f}", 1.0),
    ("p90", "ttft_p90_s", "{:.2f}", 1.0),
    ("p99 s", "ttft_p99_s", "{:.1f}", 1.0),
    ("TPOT mean", "tpot_mean_s", "{:.0f}", 1e3),
    ("p50", "tpot_p50_s", "{:.0f}", 1e3),
    ("p90", "tpot_p90_s", "{:.0f}", 1e3),
    ("p99 ms", "tpot_p99_s", "{:.0f}", 1e3),
    ("E2E p50", "e2e_p50_s", "{:.1f}", 1.0),
    ("p90", "e2e_p90_s", "{:.1f}", 1.0),
    ("p99 s", "e2e_p99_s", "{:.1f}", 1.0),
    ("hit ratio", "hit_ratio", "{:.3f}", 1.0),
    ("imbalance", "imbalance", "{:.2f}", 1.0),
)
"""Heading, field of Figures, form, factor."""

PANELS = (
    ("goodput", f"goodput ({SLO})", 1.0, "linear"),
    ("ttft_p90_s", "TTFT p90 in s", 1.0, "log"),
    ("tpot_p90_s", "TPOT p90 in ms", 1e3, "linear"),
    ("hit_ratio", "prompt tokens found cached", 1.0, "linear"),
)
"""Field of Figures, title, factor, scale."""

MOST_LINES = 8
"""More labels than this cannot be told apart as lines."""


class NoMatplotlib(RuntimeError):
    """Plots need matplotlib, which is not installed; the message says how to get it."""


def need_matplotlib() -> None:
    """NoMatplotlib if it is not there: better known before a long run than after it."""
    try:
        import matplotlib.pyplot  # noqa: F401
    except ImportError:
        raise NoMatplotlib(
            "the lab's plots need matplotlib: pip install 'headgate[lab]', or in a checkout "
            "make build"
        ) from None


def table(done: Sequence[Done]) -> str:
    """Markdown: a block per trace and rate, a row per label, means over the seeds."""
    lines = []
    for trace, rate in dict.fromkeys((one.case.trace, one.case.rate) for one in done):
        some = [one for one in done if (one.case.trace, one.case.rate) == (trace, rate)]
        plan = some[0].case.plan
        seeds = len({one.case.plan.seed for one in some})
        speed = f"at {rate:g}/s" if trace in MADE_UP else f"x{rate:g}"
        lines += [
            f"**{Path(trace).stem} {speed}**: {some[0].figures.requests:,} requests, {plan.pods} "
            f"pods of {plan.profile}, {plan.cache_tokens:,} tokens of KV cache each, {seeds} "
            f"seed{'s' if seeds > 1 else ''}",
            "",
            "| | " + " | ".join(name for name, *_ in COLUMNS) + " |",
            "| --- |" + " ---: |" * len(COLUMNS),
        ]
        for label in dict.fromkeys(one.case.label for one in some):
            rows = [one.figures for one in some if one.case.label == label]
            lines.append(f"| {label} | " + " | ".join(_cells(rows)) + " |")
        lines.append("")
    return "\n".join(lines)


def _cells(rows: Sequence[Figures]) -> list[str]:
    return [
        form.format(factor * mean(getattr(row, field) for row in rows))
        for _, field, form, factor in COLUMNS
    ]


def plot(done: Sequence[Done], path: Path) -> None:
    """Four figures by rate and label: lines where labels are few, else bars. NoMatplotlib."""
    need_matplotlib()
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    labels = list(dict.fromkeys(one.case.label for one in done))
    few = len(labels) <= MOST_LINES
    figure, axes = plt.subplots(2, 2, figsize=(10.5, 7 if few else 9), layout="constrained")
    draw = _lines if few else _bars
    for axis, (field, title, factor, scale) in zip(axes.flat, PANELS, strict=True):
        draw(axis, done, labels, field, factor)
        axis.set_title(title, fontsize=10)
        axis.set(**{"yscale" if few else "xscale": scale})
        axis.grid(alpha=0.3)
    handles, names = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=9)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def _lines(
    axis: "Axes", done: Sequence[Done], labels: Sequence[str], field: str, factor: float
) -> None:
    for label in labels:
        values = _by_rate(done, label, field, factor)
        axis.plot(list(values), list(values.values()), "o-", label=label, markersize=4)
    axis.set_xlabel("rate", fontsize=9)


def _bars(
    axis: "Axes", done: Sequence[Done], labels: Sequence[str], field: str, factor: float
) -> None:
    rates = sorted({one.case.rate for one in done})
    height = 0.8 / len(rates)
    for at, rate in enumerate(rates):
        values = [_by_rate(done, label, field, factor).get(rate, 0.0) for label in labels]
        places = [row + height * (at + 0.5) - 0.4 for row in range(len(labels))]
        axis.barh(places, values, height, label=f"rate {rate:g}")
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.invert_yaxis()


def _by_rate(done: Sequence[Done], label: str, field: str, factor: float) -> dict[float, float]:
    values: dict[float, list[float]] = {}
    for one in done:
        if one.case.label == label:
            values.setdefault(one.case.rate, []).append(getattr(one.figures, field))
    return {rate: factor * mean(values[rate]) for rate in sorted(values)}


def write(done: Sequence[Done], folder: Path, command: str) -> None:
    """LAB.md, lab.png and lab.html in `folder`. NoMatplotlib."""
    text = table(done)
    folder.mkdir(parents=True, exist_ok=True)
    plot(done, folder / "lab.png")
    (folder / "LAB.md").write_text(
        f"# The lab's figures\n\nRendered by `{command}`; do not edit. Virtual time; means over "
        f"the seeds. Goodput: the share of requests with {SLO}. What all this means, and what it "
        f"leaves out, is in bench/lab/README.md.\n\n![four figures by rate](lab.png)\n\n{text}"
    )
    image = base64.b64encode((folder / "lab.png").read_bytes()).decode()
    (folder / "lab.html").write_text(
        "<!doctype html><meta charset=utf-8><title>Headgate lab</title>"
        "<style>body{font:15px system-ui;max-width:80em;margin:2em auto}img{max-width:100%}"
        "table{border-collapse:collapse}td,th{padding:.2em .7em;text-align:right}"
        "td:first-child{text-align:left}tr:nth-child(even){background:#f4f4f4}</style>"
        f"<h1>Headgate lab</h1><p><code>{html.escape(command)}</code></p>"
        f'<img src="data:image/png;base64,{image}">{_tables(text)}\n'
    )


def _tables(text: str) -> str:
    """The Markdown of `table` as HTML."""
    out, rows = [], False
    for line in text.splitlines():
        if not line.startswith("|"):
            out.append("</table>" if rows else "")
            out.append(f"<p>{html.escape(line.replace('**', ''))}</p>" if line else "")
            rows = False
        elif not line.startswith("| ---"):
            cells = [html.escape(cell.strip()) for cell in line.strip("|").split("|")]
            out.append(("" if rows else "<table>") + "<tr><td>" + "<td>".join(cells))
            rows = True
    out.append("</table>" if rows else "")
    return "\n".join(filter(None, out))
