"""The lab's figures as a table, as plots and as one page."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from bench.lab.figures import Figures
from bench.lab.run import Done

__all__ = ["plot", "table", "write"]

COLUMNS = (
    ("TTFT mean s", "ttft_mean_s", "{:.2f}"),
    ("p90", "ttft_p90_s", "{:.2f}"),
    ("p99", "ttft_p99_s", "{:.1f}"),
    ("TPOT mean ms", "tpot_mean_s", "{:.0f}"),
    ("E2E p90 s", "e2e_p90_s", "{:.1f}"),
    ("hit ratio", "hit_ratio", "{:.3f}"),
    ("imbalance", "imbalance", "{:.2f}"),
    ("goodput", "goodput", "{:.3f}"),
)


def table(done: Sequence[Done]) -> str:
    """Markdown: a block per trace and rate, a row per label, means over the seeds."""
    lines = []
    for trace, rate in dict.fromkeys((one.case.trace, one.case.rate) for one in done):
        some = [one for one in done if (one.case.trace, one.case.rate) == (trace, rate)]
        plan = some[0].case.plan
        seeds = len({one.case.plan.seed for one in some})
        lines += [
            f"{Path(trace).stem} x{rate:g}: {some[0].figures.requests} requests, {plan.pods} pods "
            f"of {plan.profile}, {plan.cache_tokens:,} tokens of KV cache each, {seeds} seeds",
            "",
            "| | " + " | ".join(name for name, _, _ in COLUMNS) + " |",
            "| --- |" + " ---: |" * len(COLUMNS),
        ]
        for label in dict.fromkeys(one.case.label for one in some):
            rows = [one.figures for one in some if one.case.label == label]
            lines.append(f"| {label} | " + " | ".join(_cells(rows)) + " |")
        lines.append("")
    return "\n".join(lines)


def _cells(rows: Sequence[Figures]) -> list[str]:
    cells = []
    for name, field, form in COLUMNS:
        value = mean(getattr(row, field) for row in rows)
        cells.append(form.format(1e3 * value if name.endswith("ms") else value))
    return cells


def plot(done: Sequence[Done], path: Path) -> None:
    """Goodput and mean TTFT by rate, a line per label. ImportError: matplotlib is not there."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    rates = sorted({one.case.rate for one in done})
    for label in dict.fromkeys(one.case.label for one in done):
        by_rate = [
            [one.figures for one in done if (one.case.label, one.case.rate) == (label, rate)]
            for rate in rates
        ]
        known = [(rate, rows) for rate, rows in zip(rates, by_rate, strict=True) if rows]
        x = [rate for rate, _ in known]
        axes[0].plot(x, [mean(r.goodput for r in rows) for _, rows in known], "o-", label=label)
        axes[1].plot(x, [mean(r.ttft_mean_s for r in rows) for _, rows in known], "o-")
    axes[0].set(xlabel="rate of the trace", ylabel="goodput (TTFT <= 2 s, TPOT <= 100 ms)")
    axes[1].set(xlabel="rate of the trace", ylabel="mean TTFT in s", yscale="log")
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write(done: Sequence[Done], folder: Path, command: str) -> None:
    """LAB.md, lab.png and lab.html in `folder`."""
    text = table(done)
    plot(done, folder / "lab.png")
    (folder / "LAB.md").write_text(
        f"# The lab's figures\n\nRendered by `{command}`; do not edit. Virtual time: see "
        f"[README.md](README.md).\n\n![goodput and TTFT by rate](lab.png)\n\n{text}"
    )
    image = base64.b64encode((folder / "lab.png").read_bytes()).decode()
    (folder / "lab.html").write_text(
        "<!doctype html><meta charset=utf-8><title>Headgate lab</title>"
        "<style>body{font:15px system-ui;max-width:70em;margin:2em auto}img{max-width:100%}"
        "table{border-collapse:collapse}td,th{padding:.2em .8em;text-align:right}"
        "td:first-child{text-align:left}tr:nth-child(even){background:#f4f4f4}</style>"
        f"<h1>Headgate lab</h1><p><code>{html.escape(command)}</code></p>"
        f'<img src="data:image/png;base64,{image}">{_tables(text)}'
    )


def _tables(text: str) -> str:
    """The Markdown of `table` as HTML."""
    out, rows = [], False
    for line in text.splitlines():
        if not line.startswith("|"):
            out.append("</table>" if rows else "")
            out.append(f"<p>{html.escape(line)}</p>" if line else "")
            rows = False
        elif not line.startswith("| ---"):
            cells = [html.escape(cell.strip()) for cell in line.strip("|").split("|")]
            out.append(("" if rows else "<table>") + "<tr><td>" + "<td>".join(cells))
            rows = True
    return "\n".join(out)
