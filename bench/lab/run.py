"""Plans times rates times seeds, on as many processes as wanted, and their figures as JSON."""

import gc
import resource
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import msgspec

from bench.lab.figures import Figures, figures_of
from bench.lab.traces import arrivals_of
from bench.lab.world import Plan, World

__all__ = ["Case", "Done", "load", "run_all", "save"]


class Case(msgspec.Struct, frozen=True):
    """One run. `label`: what it is called in tables; of several seeds the mean is shown."""

    label: str
    plan: Plan
    trace: str
    """See `arrivals_of`."""
    rate: float
    limit: int = 0


class Done(msgspec.Struct, frozen=True):
    """A run and what came of it."""

    case: Case
    figures: Figures
    took_s: float
    peak_bytes: int
    """Most memory that its process had held when it ended; earlier runs there count too."""


def run_all(
    cases: Sequence[Case], processes: int, tell: Callable[[Done], None] = lambda done: None
) -> list[Done]:
    """Run them, `processes` at a time; `tell` hears of each as it ends. In order of `cases`.

    ValueError, OSError: see `arrivals_of` and `World.run`.
    """
    if processes == 1:
        return [_told(_run(case), tell) for case in cases]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        return [_told(one, tell) for one in pool.map(_run, cases)]


def _told(done: Done, tell: Callable[[Done], None]) -> Done:
    tell(done)
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
    arrivals = arrivals_of(case.trace, rate=case.rate, seed=case.plan.seed, limit=case.limit)
    # Millions of objects and no cycles: looking for them would be a third of the time.
    gc.disable()
    try:
        served = World(case.plan).run(arrivals)
    finally:
        gc.enable()
    return Done(
        case,
        figures_of(served, case.plan.pods),
        time.monotonic() - began_s,
        1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    )
