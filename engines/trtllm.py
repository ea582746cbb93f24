"""trtllm-serve, TensorRT-LLM's own OpenAI server: metric names, and where they are."""

from engines.habits import Kind, MetricNames

__all__ = ["TRTLLM"]

TRTLLM = Kind(
    name="trtllm",
    owned_by=("tensorrt_llm",),
    # /metrics is JSON of iterations there, and empties as it is read
    metrics_path="/prometheus/metrics",
    metrics=MetricNames(
        running=("trtllm_num_requests_running",),
        waiting=("trtllm_num_requests_waiting",),
        kv_usage=("trtllm_kv_cache_utilization",),
        kv_blocks=("trtllm_kv_cache_max_blocks",),
        block_size=("trtllm_kv_cache_tokens_per_block",),
        generation_tokens=("trtllm_generation_tokens_total",),
        prompt_tokens=("trtllm_prompt_tokens_total",),
        requests=("trtllm_request_success_total",),
        request_s=("trtllm_e2e_request_latency_seconds_sum",),
    ),
)
