"""All benchmarks but the soak, and the report: what `make bench` does.

    python -m bench.run [--quick]

The micro-benchmarks, then the proxies side by side (those of nginx and sglang-router that can be
had), then the idle gateway; about four minutes. The soak is `python -m bench.streams`.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench import compare, idle, report, results
from bench.machine import describe

__all__ = ["main", "micro"]

HERE = Path(__file__).resolve().parent


class _Case(msgspec.Struct):
    """One entry of pytest-benchmark's JSON."""

    extra_info: dict[str, str | float]


class _Cases(msgspec.Struct):
    benchmarks: list[_Case]


def micro(command: str = "python -m pytest bench/micro") -> results.Micro:
    """Run the files in bench/micro; RuntimeError if one fails."""
    machine = describe()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        path = Path(folder) / "micro.json"
        pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        done = subprocess.run(
            [*pytest, str(HERE / "micro"), f"--benchmark-json={path}"],
            cwd=HERE.parent,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"the micro-benchmarks failed:\n{done.stdout[-2000:]}")
        cases = msgspec.json.decode(path.read_bytes(), type=_Cases).benchmarks
    return results.Micro(
        machine=machine,
        command=command,
        ns={
            str(case.extra_info["name"]): float(case.extra_info["ns_per_operation"])
            for case in cases
        },
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="one short round: does it all work?")
    quick = parser.parse_args(arguments).quick
    print("micro-benchmarks ...", flush=True)
    results.save(micro())
    print("proxies side by side ...", flush=True)
    compare.main(["--rounds", "1", "--seconds", "0.5"] if quick else [])
    print("idle gateway ...", flush=True)
    idle.main(["--seconds", "2"] if quick else [])
    return report.main([])


if __name__ == "__main__":
    sys.exit(main())
