"""SGLang: metric names (it exports them with --enable-metrics only)."""

from engines.habits import Kind, MetricNames, Series, Tell

__all__ = ["SGLANG"]

CACHE = "sglang:cache_config_info"

SGLANG = Kind(
    name="sglang",
    owned_by=("sglang",),
    tells=(
        Tell("/server_info", ("model_path", "max_total_num_tokens")),
        Tell("/get_server_info", ("model_path", "max_total_num_tokens")),
    ),
    metrics_path="/metrics",
    metrics=MetricNames(
        running=("sglang:num_running_reqs",),
        waiting=("sglang:num_queue_reqs",),
        kv_usage=("sglang:token_usage",),
        kv_capacity_tokens=("sglang:max_total_num_tokens",),
        # gauges since 0.5.11, labels before
        kv_blocks=("sglang:num_pages", Series(CACHE, label="num_pages")),
        block_size=("sglang:page_size", Series(CACHE, label="page_size")),
        generation_tokens=("sglang:generation_tokens_total",),
        prompt_tokens=("sglang:prompt_tokens_total",),
        requests=("sglang:num_requests_total",),
        request_s=("sglang:e2e_request_latency_seconds_sum",),
        rank_label="dp_rank",
    ),
    # an abort by the server itself ends what runs with what it has so far, and 200
    cut_short=b'"finish_reason":"abort"',
)
