"""Plans times rates times seeds, each in a process of its own, and their figures as JSON."""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec

from bench.lab.figures import Figures, figures_of
from bench.lab.traces import read_trace
from bench.lab.world import Plan, World

__all__ = ["Case", "Done", "run_all"]


class Case(msgspec.Struct, frozen=True):
    """One run. `label`: what it is called in tables; of several seeds the mean is shown."""

    label: str
    plan: Plan
    trace: str
    rate: float
    limit: int = 0
    """First requests of the trace; 0: all."""


class Done(msgspec.Struct, frozen=True):
    """A run and what came of it."""

    case: Case
    figures: Figures
    took_s: float


def run_all(
    cases: Sequence[Case], processes: int, tell: Callable[[Done], None] = lambda done: None
) -> list[Done]:
    """Run them, `processes` at a time; `tell` hears of each as it ends. In order of `cases`."""
    done = []
    with ProcessPoolExecutor(processes) as pool:
        for one in pool.map(_run, cases):
            tell(one)
            done.append(one)
    return done


def save(done: Iterable[Done], path: Path) -> None:
    """As JSON, for the report."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(msgspec.json.format(msgspec.json.encode(list(done))))


def load(path: Path) -> list[Done]:
    """What `save` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=list[Done])


def _run(case: Case) -> Done:
    began_s = time.monotonic()
    arrivals = read_trace(Path(case.trace), rate=case.rate, seed=case.plan.seed, limit=case.limit)
    served = World(case.plan).run(arrivals)
    return Done(case, figures_of(served, case.plan.pods), time.monotonic() - began_s)
