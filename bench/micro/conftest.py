"""`measure`: times a loop in C with pytest-benchmark and keeps nanoseconds per operation."""

from collections.abc import Callable

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

OPERATIONS = 1000
"""Per call. pytest-benchmark times the call: read its microseconds as nanoseconds per operation."""
CALLS = 30

Measure = Callable[[str, Callable[[int], float]], None]


@pytest.fixture
def measure(benchmark: BenchmarkFixture) -> Measure:
    """`measure("part:case", run)`; `run(n)` does n operations and tells the mean in ns.

    A case whose single operation is long takes fewer operations per call.
    """

    def measure(name: str, run: Callable[[int], float]) -> None:
        operations = min(OPERATIONS, max(10, int(5e6 / run(10))))
        found: list[float] = []
        benchmark.group = name.partition(":")[0]
        benchmark.pedantic(  # type: ignore[no-untyped-call]
            lambda: found.append(run(operations)), rounds=CALLS, warmup_rounds=2
        )
        benchmark.extra_info["name"] = name
        # The best: whatever else ran on the machine only ever adds.
        benchmark.extra_info["ns_per_operation"] = min(found)

    return measure
