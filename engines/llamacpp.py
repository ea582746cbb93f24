"""llama.cpp's server: metric names (it exports them with --metrics only, else answers 501)."""

from engines.habits import Kind, MetricNames, Tell

__all__ = ["LLAMACPP"]

LLAMACPP = Kind(
    name="llamacpp",
    owned_by=("llamacpp",),
    tells=(Tell("/props", ("total_slots",)),),
    metrics_path="/metrics",
    metrics=MetricNames(
        running=("llamacpp:requests_processing",),
        # beyond its slots
        waiting=("llamacpp:requests_deferred",),
        # gone since slots share one cache
        kv_usage=("llamacpp:kv_cache_usage_ratio",),
        generation_tokens=("llamacpp:tokens_predicted_total",),
        prompt_tokens=("llamacpp:prompt_tokens_total",),
    ),
    # some builds of 2025 and 2026 do not look after the client
    ends_with_connection=False,
)
