"""What an idle gateway costs: resident memory and CPU time per second.

python -m bench.idle [--seconds 20]
"""

import argparse
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench import processes, results
from bench.machine import describe
from bench.product import serving

__all__ = ["main", "measure"]

SETTLE_S = 3.0
"""After the first answer: model lists read, start-up garbage freed."""


def measure(seconds: float, command: str = "python -m bench.idle") -> results.Idle:
    """Start a gateway with two engines, leave it alone, read it; blocks for `seconds` and some."""
    machine = describe()
    with serving() as gateway:
        time.sleep(SETTLE_S)
        control, workers = [gateway.control_pid], gateway.worker_pids
        before_s = processes.cpu_s(control), processes.cpu_s(workers)
        time.sleep(seconds)
        return results.Idle(
            machine=machine,
            command=command,
            seconds=seconds,
            control_rss_bytes=processes.rss_bytes(control),
            worker_rss_bytes=processes.rss_bytes(workers),
            control_pss_bytes=_pss_bytes(control),
            worker_pss_bytes=_pss_bytes(workers),
            control_cpu_ms_per_s=(processes.cpu_s(control) - before_s[0]) * 1e3 / seconds,
            worker_cpu_ms_per_s=(processes.cpu_s(workers) - before_s[1]) * 1e3 / seconds,
        )


def _pss_bytes(pids: Iterable[int]) -> int:
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    return total


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: measure, save, print the figures."""
    processes.exit_on_sigterm()
    parser = argparse.ArgumentParser(prog="python -m bench.idle", description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--folder", type=Path, default=results.FOLDER, help="for idle.json")
    given = parser.parse_args(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    result = measure(given.seconds, shlex.join(["python", "-m", "bench.idle", *words]))
    results.save(result, given.folder)
    print(
        f"control {result.control_rss_bytes / 1e6:.1f} MB"
        f" {result.control_cpu_ms_per_s:.2f} ms/s,"
        f" worker {result.worker_rss_bytes / 1e6:.1f} MB {result.worker_cpu_ms_per_s:.2f} ms/s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
