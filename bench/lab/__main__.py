"""Policies side by side on a virtual clock.

    python -m bench.lab TRACE [--rates 1.4,1.8] [--policies marginal-cost,...] [--seeds 3]
    python -m bench.lab TRACE --ablate
    python -m bench.lab chat --limit 20000 --rates 8,9,10

TRACE: a .jsonl in Mooncake's format or a .csv in Azure's, or `chat` or `agents`: conversations made
up on the spot, as many requests as --limit says, with --rates in requests per second. Writes
LAB.md, lab.png, lab.html and lab.json to --folder. A run of 12,000 requests takes 3 to 10 s of
one core.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.lab import report
from bench.lab.run import Case, Done, run_all, save
from bench.lab.world import Plan
from router import POLICIES

ABLATIONS: dict[str, dict[str, Any]] = {
    "marginal-cost": {},
    "without k_batch": {"options": {"k_batch": 0.0}},
    "without r_i": {"options": {"regrowth": 0.0}},
    "without k_pressure": {"options": {"k_pressure": 0.0}},
    "without k_memory": {"options": {"k_memory": 0.0}},
    "without decode": {"options": {"decode": 0.0}},
    "exact index": {"exact": True},
    "prompt times x 2": {"cost_factor": 2.0},
    "prompt times / 2": {"cost_factor": 0.5},
    "prompt times off, sigma 0.3": {"cost_noise": 0.3},
    "load polled each 1 s": {"poll_s": 1.0},
    "2 gateways, bus 20 ms": {"gateways": 2, "bus_delay_s": 0.02},
    "4 gateways, bus 20 ms": {"gateways": 4, "bus_delay_s": 0.02},
    "4 gateways, bus 50 ms": {"gateways": 4, "bus_delay_s": 0.05},
    "4 gateways, bus 200 ms": {"gateways": 4, "bus_delay_s": 0.2},
    "4 gateways, no bus": {"gateways": 4, "bus_delay_s": -1.0},
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.lab",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("trace", help="a file, or chat or agents")
    parser.add_argument("--rates", default="1.4,1.8", help="with commas")
    parser.add_argument("--policies", default=",".join(POLICIES), help="with commas")
    parser.add_argument("--ablate", action="store_true", help="marginal-cost, altered")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pods", type=int, default=8)
    parser.add_argument("--profile", default="70b-h100-tp4")
    parser.add_argument("--cache-tokens", type=int, default=2_000_000, help="of each pod")
    parser.add_argument("--limit", type=int, default=0, help="first requests only")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path("bench/lab/results"))
    given = parser.parse_args(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    try:
        report.need_matplotlib()
        done = run_all(_cases(given), given.processes, _tell)
    except (OSError, ValueError, report.NoMatplotlib) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 2
    save(done, given.folder / "lab.json")
    report.write(done, given.folder, shlex.join(["python", "-m", "bench.lab", *words]))
    print(report.table(done))
    print(f"written: LAB.md, lab.png, lab.html and lab.json in {given.folder}")
    return 0


def _cases(given: argparse.Namespace) -> list[Case]:
    """What the command line asks for. ValueError."""
    base = Plan(profile=given.profile, pods=given.pods, cache_tokens=given.cache_tokens)
    policies = {name: {"policy": name} for name in given.policies.split(",")}
    labels = {
        label: msgspec.structs.replace(base, **changes)
        for label, changes in (ABLATIONS if given.ablate else policies).items()
    }
    rates = [float(rate) for rate in given.rates.split(",")]
    if min(rates) <= 0 or given.seeds < 1 or given.processes < 1:
        raise ValueError("--rates must be above 0, --seeds and --processes at least 1")
    return [
        Case(label, msgspec.structs.replace(plan, seed=seed), given.trace, rate, given.limit)
        for rate in rates
        for label, plan in labels.items()
        for seed in range(given.seeds)
    ]


def _tell(done: Done) -> None:
    case, found = done.case, done.figures
    print(
        f"x{case.rate:g} {case.label}, seed {case.plan.seed}: goodput {found.goodput:.3f}, "
        f"TTFT {found.ttft_mean_s:.2f} s, hits {found.hit_ratio:.3f} "
        f"({done.took_s:.0f} s, {done.peak_bytes / 1e9:.1f} GB)",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
