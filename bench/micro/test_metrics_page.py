"""A metrics page, from its bytes to the load it tells of: nanoseconds per page."""

from time import perf_counter_ns

from bench.metrics_page import LINES, vllm_page
from bench.micro.conftest import Measure
from engines.kind import KINDS
from engines.load import LoadReader


def test_vllm(measure: Measure) -> None:
    page = vllm_page(running=3)
    assert 0.9 * LINES < page.count(b"\n") < 1.1 * LINES
    reader = LoadReader(KINDS["vllm"].metrics)
    assert reader.read(page).running == 3.0

    def run(n: int) -> float:
        started = perf_counter_ns()
        for _ in range(n):
            reader.read(page)
        return (perf_counter_ns() - started) / n

    measure("metrics page:vllm, 68 KB", run)
