"""SGLang: metric names (it exports them with --enable-metrics only)."""

from engines.habits import Kind, MetricNames

__all__ = ["SGLANG"]

SGLANG = Kind(
    name="sglang",
    metrics_path="/metrics",
    metrics=MetricNames(
        running=("sglang:num_running_reqs",),
        waiting=("sglang:num_queue_reqs",),
        kv_usage=("sglang:token_usage",),
        generation_tokens=("sglang:generation_tokens_total",),
        prompt_tokens=("sglang:prompt_tokens_total",),
    ),
)
