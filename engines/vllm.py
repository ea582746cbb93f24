"""vLLM: metric names old and new, and how it answers while it dies."""

from engines.habits import Kind, MetricNames, Series

__all__ = ["VLLM"]

CACHE = "vllm:cache_config_info"

VLLM = Kind(
    name="vllm",
    owned_by=("vllm",),
    metrics_path="/metrics",
    metrics=MetricNames(
        running=("vllm:num_requests_running",),
        waiting=("vllm:num_requests_waiting",),
        # renamed in 0.9; the gpu_ name stood beside it for some versions
        kv_usage=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        # what blocks times block size say is too much where layers share blocks
        kv_capacity_tokens=(Series(CACHE, label="kv_cache_size_tokens"),),
        kv_blocks=(Series(CACHE, label="num_gpu_blocks"),),
        block_size=(Series(CACHE, label="block_size"),),
        generation_tokens=("vllm:generation_tokens_total", "vllm:generation_tokens"),
        prompt_tokens=("vllm:prompt_tokens_total", "vllm:prompt_tokens"),
        requests=("vllm:request_success_total",),
        request_s=("vllm:e2e_request_latency_seconds_sum",),
        # the value is the time; label sets of old times stay
        adapters=("vllm:lora_requests_info",),
        adapter_labels=("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
        sleep_state=("vllm:engine_sleep_state",),
        rank_label="engine",
    ),
    dying_answers=(
        # on SIGTERM with --shutdown-timeout: /health stays 200 while new requests get this
        (500, b"cannot schedule new futures after shutdown"),
        # the engine process is gone; the server follows within some seconds
        (500, b"EngineCore encountered an issue"),
    ),
    # on SIGTERM, sleep and pause: what runs ends with what it has so far, and 200
    cut_short=b'"finish_reason":"abort"',
)
