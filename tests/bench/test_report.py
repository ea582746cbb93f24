"""The rendered report: every figure comes from the results, and missing ones are said so."""

import pytest

from bench import report, results
from bench.machine import Machine, describe
from bench.report import render

MACHINE = Machine(
    cpu="A CPU",
    cores=2,
    memory_gib=8.0,
    kernel="Linux 6.1",
    python="3.12.1",
    load_average=0.5,
    date="2026-01-02",
)


def row(proxy, workload="plain", cpu_us=10.0, ttfb_ms=1.0, number=0):
    return results.Row(
        round=number,
        workload=workload,
        proxy=proxy,
        cpu_us=cpu_us,
        worker_cpu_us=cpu_us,
        units=1000,
        bad=0,
        rps=1.0,
        ttfb_p50_ms=ttfb_ms,
        ttfb_p99_ms=ttfb_ms,
        rss_bytes=1,
    )


def comparison(*rows):
    return results.Comparison(
        machine=MACHINE,
        command="python -m bench.compare",
        versions={"headgate": "1.2.3"},
        connections=64,
        seconds=3.0,
        rounds=1,
        rows=list(rows),
        missing={"smg": "it is not there"},
    )


def soak(**changes):
    fields = {
        "machine": MACHINE,
        "command": "python -m bench.streams",
        "streams": 1000,
        "events_per_s": 20.0,
        "seconds": 60.0,
        "ok": 1000,
        "non200": 0,
        "errors": 0,
        "short": 0,
        "measured_events_per_s": 20_000.0,
        "gap_p99_ms": 51.0,
        "worker_cpu_share": 0.4,
        "rss_before_bytes": 50_000_000,
        "rss_samples_bytes": [60_240_000] * 9,
        "rss_after_bytes": 60_000_000,
    }
    return results.Soak(**(fields | changes))


IDLE = results.Idle(
    machine=MACHINE,
    command="python -m bench.idle",
    seconds=20.0,
    control_rss_bytes=50_000_000,
    worker_rss_bytes=40_000_000,
    control_pss_bytes=1,
    worker_pss_bytes=1,
    control_cpu_ms_per_s=1.0,
    worker_cpu_ms_per_s=1.0,
)


def bar_lines(**found):
    text = render(
        report.Found(**({"comparison": None, "soak": None, "idle": None, "micro": None} | found))
    )
    return [line for line in text.splitlines() if "<=" in line]


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (
            {
                "comparison": comparison(
                    row("headgate-least-requests", cpu_us=14), row("nginx", cpu_us=10)
                )
            },
            "| CPU per short request, to nginx | <= 1.5 x | 1.40 x | yes |",
        ),
        (
            {
                "comparison": comparison(
                    row("headgate-least-requests", cpu_us=16), row("nginx", cpu_us=10)
                )
            },
            "| CPU per short request, to nginx | <= 1.5 x | 1.60 x | **no** |",
        ),
        (
            {"comparison": comparison(row("headgate"))},
            "| CPU per short request, to nginx | <= 1.5 x | not measured | - |",
        ),
        (
            {
                "comparison": comparison(
                    row("direct", "stream", ttfb_ms=0.5), row("headgate", "stream", ttfb_ms=0.75)
                )
            },
            "| time to first byte added over direct, p50 | <= 1 ms | 0.25 ms | yes |",
        ),
        (
            {"soak": soak(short=1, ok=999)},
            "| streams that failed or were cut early | <= 0 | 1.00 | **no** |",
        ),
        ({"soak": soak()}, "| worker memory per stream | <= 12 KiB | 10.00 KiB | yes |"),
        (
            {"soak": soak(rss_samples_bytes=[60_000_000, 61_000_000, 64_096_000])},
            "| growth of it while the streams run | <= 1 KiB | 4.00 KiB | **no** |",
        ),
        (
            {"idle": IDLE},
            "| idle RSS, control process and one worker | <= 100 MB | 90.00 MB | yes |",
        ),
    ],
)
def test_bars(found, line):
    assert line in bar_lines(**found)


def test_nothing_measured_is_said_of_every_bar():
    lines = bar_lines()
    assert len(lines) == len(report.BARS)
    assert all("not measured" in line for line in lines)


def test_median_of_the_rounds_counts():
    rows = [row("nginx", cpu_us=us, number=i) for i, us in enumerate((9.0, 50.0, 10.0))]
    assert comparison(*rows).median("nginx", "plain") == 10.0
    assert comparison(*rows[:2]).median("nginx", "plain") == 29.5
    assert comparison(*rows).spread("nginx", "plain") == (9.0, 50.0)


def test_ratio_is_taken_within_a_round():
    found = comparison(
        *(row("nginx", cpu_us=us, number=i) for i, us in enumerate((10.0, 100.0, 10.0))),
        *(row("headgate", cpu_us=us, number=i) for i, us in enumerate((12.0, 120.0, 12.0))),
    )
    assert found.ratio("headgate", "nginx", "plain") == pytest.approx(1.2)


def test_missing_peers_are_named():
    found = report.Found(comparison(row("headgate"), row("nginx")), None, None, None)
    assert "Not measured: smg: it is not there." in render(found)


def test_results_come_back_as_they_were_saved(tmp_path):
    for result in (comparison(row("nginx")), soak(), IDLE):
        results.save(result, tmp_path)
        assert results.load(type(result), tmp_path) == result
    assert results.load(results.Micro, tmp_path) is None


def test_command_renders_a_file(tmp_path, capsys):
    results.save(soak(), tmp_path)
    out = tmp_path / "RESULTS.md"
    assert report.main(["--folder", str(tmp_path), "--out", str(out)]) == 0
    assert "## Many streams at once" in out.read_text()
    assert str(out) in capsys.readouterr().out


def test_machine_is_described_without_its_name():
    import platform

    machine = describe()
    assert machine.cores >= 1
    assert platform.node() not in repr(machine) or not platform.node()
