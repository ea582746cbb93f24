"""The `/metrics` page: vLLM's names, labels, buckets and meanings, fed from the core's steps.

Gauges are sampled when a batch ends, as in the real engine, so a core that stands still leaves a
page that stands still.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from engines.sim.core import Core, Event, Step

__all__ = ["CONTENT_TYPE", "Histogram", "Metrics"]

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"

_TTFT_S: tuple[float, ...] = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
)
_TTFT_S += (7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)
_TOKEN_S: tuple[float, ...] = (
    0.01,
    0.025,
    0.05,
    0.075,
    0.1,
    0.15,
    0.2,
    0.3,
    0.4,
    0.5,
    0.75,
    1.0,
    2.5,
)
_TOKEN_S += (5.0, 7.5, 10.0, 20.0, 40.0, 80.0)
_LONG_S: tuple[float, ...] = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0)
_LONG_S += (50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0)
_TOKENS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0)
_BATCH = tuple(float(2**k) for k in (0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14))
_COUNT = (1.0, 2.0, 5.0, 10.0, 20.0)
_PREEMPTED = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)

_REASONS = ("stop", "length", "abort", "error", "repetition")
_SLEEP_STATES = ("awake", "weights_offloaded", "discard_all")


class Histogram:
    """Counts per bucket and a sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value; a bucket's bound belongs to it."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


# name, help, bounds
_HISTOGRAMS = (
    ("request_prompt_tokens", "Prompt tokens of finished requests.", _TOKENS),
    ("request_generation_tokens", "Output tokens of finished requests.", _TOKENS),
    ("iteration_tokens_total", "Tokens computed by one engine step.", _BATCH),
    ("request_max_num_generation_tokens", "Largest output asked for by a request.", _TOKENS),
    ("request_params_n", "The n of requests.", _COUNT),
    ("request_params_max_tokens", "The max_tokens of requests.", _TOKENS),
    ("time_to_first_token_seconds", "From arrival to the first token.", _TTFT_S),
    ("inter_token_latency_seconds", "Between two tokens of one request.", _TOKEN_S),
    ("request_time_per_output_token_seconds", "Mean token time per request.", _TOKEN_S),
    ("e2e_request_latency_seconds", "From arrival to the last token.", _LONG_S),
    ("request_queue_time_seconds", "From arrival to the first step that took part.", _LONG_S),
    ("request_inference_time_seconds", "From the first step to the last token.", _LONG_S),
    ("request_prefill_time_seconds", "From the first step to the first token.", _LONG_S),
    ("request_decode_time_seconds", "From the first token to the last.", _LONG_S),
    ("request_num_preemptions", "How often a request was preempted.", _PREEMPTED),
    ("request_prefill_kv_computed_tokens", "Prompt tokens that were not cached.", _TOKENS),
)


@dataclass(slots=True)
class _Sample:
    """What the gauges show until the next batch ends."""

    running: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    adapters_running: str = ""
    adapters_waiting: str = ""


class Metrics:
    """One engine process's metrics, from zero at its start."""

    def __init__(self, model: str, started_unix_s: float, max_adapters: int) -> None:
        self.rejections = 0
        """Requests answered 503 because the queue was full."""
        self.sleep_state = "awake"
        self._labels = f'engine="0",model_name="{_escape(model)}"'
        self._model_label = f'model_name="{_escape(model)}"'
        self._started_unix_s = started_unix_s
        self._max_adapters = max_adapters
        self._sample = _Sample()
        self._lora: dict[tuple[str, str], float] = {("", ""): started_unix_s}
        self._success = dict.fromkeys(_REASONS, 0)
        self._histograms = {name: Histogram(bounds) for name, _, bounds in _HISTOGRAMS}

    def observe(self, core: Core, step: Step, unix_s: float) -> None:
        """Take in one step's outcome. Call it for every step, with or without events."""
        if step.batch_tokens:
            self._histograms["iteration_tokens_total"].observe(step.batch_tokens)
        for event in step.events:
            self._observe_event(event)
        running = {job.adapter for job in core.running if job.adapter}
        waiting = {job.adapter for job in core.waiting if job.adapter}
        self._sample = _Sample(
            len(core.running),
            len(core.waiting),
            core.pool.held / core.pool.capacity,
            ",".join(sorted(running)),
            ",".join(sorted(waiting)),
        )
        self._lora[(self._sample.adapters_running, self._sample.adapters_waiting)] = unix_s

    def aborted(self, count: int) -> None:
        """Requests ended by the engine itself (sleep, pause), not by their clients."""
        self._success["abort"] += count

    def _observe_event(self, event: Event) -> None:
        job, index, finish_reason, gap_s = event[:4]
        histograms = self._histograms
        if index > 0:
            histograms["inter_token_latency_seconds"].observe(gap_s)
        else:
            histograms["time_to_first_token_seconds"].observe(gap_s)
        if finish_reason is None:
            return
        self._success[finish_reason] += 1
        decode_s = job.last_token_s - job.first_token_s
        asked = max(len(job.output), 1)
        values = {
            "request_prompt_tokens": len(job.prompt),
            "request_generation_tokens": job.emitted,
            "request_max_num_generation_tokens": asked,
            "request_params_n": 1,
            "request_params_max_tokens": asked,
            "e2e_request_latency_seconds": job.last_token_s - job.arrived_s,
            "request_queue_time_seconds": job.scheduled_s - job.arrived_s,
            "request_inference_time_seconds": job.last_token_s - job.scheduled_s,
            "request_prefill_time_seconds": job.first_token_s - job.scheduled_s,
            "request_decode_time_seconds": decode_s,
            "request_num_preemptions": job.preemptions,
            "request_prefill_kv_computed_tokens": len(job.prompt) - job.cached_tokens,
        }
        if job.emitted > 1:
            per_token_s = decode_s / (job.emitted - 1)
            values["request_time_per_output_token_seconds"] = per_token_s
        for name, value in values.items():
            histograms[name].observe(max(0.0, value))

    def render(self, core: Core) -> bytes:
        """The page as Prometheus text."""
        lines: list[str] = []
        for part in (self._gauges(), self._counters(core), self._distributions(), self._info(core)):
            lines.extend(part)
        lines.append("")
        return "\n".join(lines).encode()

    def _gauges(self) -> Iterator[str]:
        sample = self._sample
        yield from self._gauge(
            "num_requests_running", "Requests in execution batches.", {"": sample.running}
        )
        yield from self._gauge(
            "num_requests_waiting", "Requests that wait to be processed.", {"": sample.waiting}
        )
        yield from self._gauge(
            "num_requests_waiting_by_reason",
            "Waiting requests by reason; the sum is num_requests_waiting.",
            {'reason="capacity"': sample.waiting, 'reason="deferred"': 0},
        )
        yield from self._gauge(
            "engine_sleep_state",
            "1 for the state the engine is in.",
            {f'sleep_state="{s}"': int(s == self.sleep_state) for s in _SLEEP_STATES},
        )
        yield from self._gauge(
            "kv_cache_usage_perc", "KV cache in use; 1 is all of it.", {"": sample.kv_usage}
        )

    def _counters(self, core: Core) -> Iterator[str]:
        totals = core.totals
        computed = totals.prompt_tokens - totals.cached_tokens
        plain = (
            ("prefix_cache_queries", "Tokens looked up in the prefix cache.", totals.query_tokens),
            ("prefix_cache_hits", "Tokens found in the prefix cache.", totals.hit_tokens),
            ("external_prefix_cache_queries", "Tokens looked up in other instances.", 0),
            ("external_prefix_cache_hits", "Tokens found in other instances.", 0),
            ("mm_cache_queries", "Multi-modal items looked up.", 0),
            ("mm_cache_hits", "Multi-modal items found.", 0),
            ("num_preemptions", "Preemptions.", totals.preemptions),
            ("prompt_tokens", "Prompt tokens processed.", totals.prompt_tokens),
            ("prompt_tokens_cached", "Prompt tokens that were cached.", totals.cached_tokens),
            ("generation_tokens", "Output tokens produced.", totals.output_tokens),
        )
        for name, text, value in plain:
            yield from self._counter(name, text, {"": value})
        yield from self._counter(
            "prompt_tokens_by_source",
            "Prompt tokens by where their KV entries came from.",
            {
                'source="local_compute"': computed,
                'source="local_cache_hit"': totals.cached_tokens,
                'source="external_kv_transfer"': 0,
            },
        )
        tiers = ("device", "host", "p2p", "disk", "external_unspecified")
        yield from self._counter(
            "prompt_tokens_cached_by_source",
            "Cached tokens by the tier that held them; counted at admission.",
            {f'source="{t}"': totals.hit_tokens if t == "device" else 0 for t in tiers},
        )
        yield from self._counter(
            "request_success",
            "Finished requests by reason.",
            {f'finished_reason="{reason}"': n for reason, n in self._success.items()},
        )
        name = "vllm:admission_rejections"
        yield f"# HELP {name}_total Requests refused because the queue was full."
        yield f"# TYPE {name}_total counter"
        label = f'{self._model_label},reason="max_num_queued_reqs"'
        yield f"{name}_total{{{label}}} {float(self.rejections)!r}"

    def _distributions(self) -> Iterator[str]:
        for name, text, bounds in _HISTOGRAMS:
            histogram = self._histograms[name]
            yield f"# HELP vllm:{name} {text}"
            yield f"# TYPE vllm:{name} histogram"
            seen = 0
            for bound, count in zip((*bounds, "+Inf"), histogram.counts, strict=True):
                seen += count
                labels = f'engine="0",le="{bound}",{self._model_label}'
                yield f"vllm:{name}_bucket{{{labels}}} {float(seen)!r}"
            yield f"vllm:{name}_count{{{self._labels}}} {float(seen)!r}"
            yield f"vllm:{name}_sum{{{self._labels}}} {histogram.sum!r}"
            yield from self._created(name, text, {"": 0})

    def _info(self, core: Core) -> Iterator[str]:
        name = "vllm:lora_requests_info"
        yield f"# HELP {name} Adapters in use; the series with the largest value holds."
        yield f"# TYPE {name} gauge"
        for (running, waiting), unix_s in self._lora.items():
            labels = f'max_lora="{self._max_adapters}",running_lora_adapters="{running}"'
            yield f'{name}{{{labels},waiting_lora_adapters="{waiting}"}} {unix_s!r}'
        name = "vllm:cache_config_info"
        yield f"# HELP {name} The cache's configuration, in its labels."
        yield f"# TYPE {name} gauge"
        limits = core.limits
        shown = {
            "block_size": limits.block_size,
            "cache_dtype": "auto",
            "enable_prefix_caching": True,
            "engine": 0,
            "gpu_memory_utilization": 0.92,
            "kv_cache_size_tokens": core.capacity_tokens,
            "num_cpu_blocks": None,
            "num_gpu_blocks": limits.num_blocks,
            "num_gpu_blocks_override": None,
            "prefix_caching_hash_algo": "sha256",
            "sliding_window": None,
        }
        labels = ",".join(f'{key}="{value}"' for key, value in shown.items())
        yield f"{name}{{{labels}}} 1.0"
        yield "# HELP process_start_time_seconds Start time of the process since unix epoch."
        yield "# TYPE process_start_time_seconds gauge"
        yield f"process_start_time_seconds {self._started_unix_s!r}"

    def _gauge(self, name: str, text: str, series: Mapping[str, float]) -> Iterator[str]:
        yield f"# HELP vllm:{name} {text}"
        yield f"# TYPE vllm:{name} gauge"
        yield from self._series(f"vllm:{name}", series)

    def _counter(self, name: str, text: str, series: Mapping[str, float]) -> Iterator[str]:
        yield f"# HELP vllm:{name}_total {text}"
        yield f"# TYPE vllm:{name}_total counter"
        yield from self._series(f"vllm:{name}_total", series)
        yield from self._created(name, text, series)

    def _created(self, name: str, text: str, series: Mapping[str, float]) -> Iterator[str]:
        """The start time that prometheus-client exports beside each counter and histogram."""
        yield f"# HELP vllm:{name}_created {text}"
        yield f"# TYPE vllm:{name}_created gauge"
        yield from self._series(f"vllm:{name}_created", dict.fromkeys(series, self._started_unix_s))

    def _series(self, name: str, series: Mapping[str, float]) -> Iterator[str]:
        for extra, value in series.items():
            labels = ",".join(sorted(filter(None, (*self._labels.split(","), extra))))
            yield f"{name}{{{labels}}} {float(value)!r}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
