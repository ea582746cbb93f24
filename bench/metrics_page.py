"""A metrics page as a vLLM has it that has served for a while: names, order and size (68 KB)."""

from collections.abc import Iterator

from engines.sim.config import SimConfig
from engines.sim.core import Core
from engines.sim.metrics import Metrics

__all__ = ["LINES", "vllm_page"]

LINES = 835
"""Of the page of a vLLM 0.32 that this one is made after."""

# Histograms of vLLM's that the simulated engine has none of, and its web framework's.
OTHERS = ("vllm:sleep_mode_operation_duration_seconds", "http_request_duration_highr_seconds")
HANDLERS = (
    "/health",
    "/is_sleeping",
    "/load",
    "/metrics",
    "/sleep",
    "/tokenize",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/load_lora_adapter",
    "/v1/models",
    "/v1/unload_lora_adapter",
    "/version",
    "/wake_up",
)


def vllm_page(running: int = 0) -> bytes:
    """The page of an engine with so many requests."""
    config = SimConfig(model="tiny")
    page = Metrics(config.model, 1795212000.25, 4).render(Core(config.step_profile, config.limits))
    gauge = b'vllm:num_requests_running{engine="0",model_name="tiny"} '
    assert gauge in page
    page = page.replace(gauge + b"0.0", gauge + b"%d.0" % running)
    lines = [*_process(), *page.decode().splitlines(), *_framework()]
    return "\n".join([*lines, ""]).encode()


def _process() -> Iterator[str]:
    for name in ("objects_collected_total", "objects_uncollectable_total", "collections_total"):
        yield f"# HELP python_gc_{name} Of the garbage collector, by generation."
        yield f"# TYPE python_gc_{name} counter"
        for generation in range(3):
            yield f'python_gc_{name}{{generation="{generation}"}} {1234.0 * (generation + 1)}'


def _framework() -> Iterator[str]:
    for name in OTHERS:
        yield from _head(name, "histogram")
        for bound in range(20):
            yield f'{name}_bucket{{engine="0",le="{bound / 4}",model_name="tiny"}} {61.0 + bound}'
    for name in ("requests_total", "requests_created", "request_duration_seconds_created"):
        yield from _head(f"http_{name}", "gauge")
        for handler in HANDLERS:
            for status in ("2xx", "4xx", "5xx"):
                labels = f'handler="{handler}",method="POST",status="{status}"'
                yield f"http_{name}{{{labels}}} 1795212076.9190114"
    for name in ("request_size_bytes", "response_size_bytes"):
        yield from _head(f"http_{name}", "summary")
        for handler in HANDLERS:
            for part in ("count", "sum", "created"):
                yield f'http_{name}_{part}{{handler="{handler}"}} 1795212087.3587008'
    yield from _head("http_request_duration_seconds", "histogram")
    for handler in HANDLERS:
        for limit in ("0.1", "0.5", "1.0", "+Inf"):
            labels = f'handler="{handler}",le="{limit}",method="POST"'
            yield f"http_request_duration_seconds_bucket{{{labels}}} 61.0"


def _head(name: str, kind: str) -> Iterator[str]:
    yield f"# HELP {name} What a web framework's instrumentation counts of its requests."
    yield f"# TYPE {name} {kind}"
