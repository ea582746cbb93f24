"""vLLM: metric names old and new, and how it answers while it dies."""

from engines.habits import Kind, MetricNames

__all__ = ["VLLM"]

VLLM = Kind(
    name="vllm",
    metrics_path="/metrics",
    metrics=MetricNames(
        running=("vllm:num_requests_running",),
        waiting=("vllm:num_requests_waiting",),
        # renamed in 0.9; the gpu_ name stood beside it for some versions
        kv_usage=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
        generation_tokens=("vllm:generation_tokens_total", "vllm:generation_tokens"),
        prompt_tokens=("vllm:prompt_tokens_total", "vllm:prompt_tokens"),
        # the value is the time; label sets of old times stay
        adapters=(
            "vllm:lora_requests_info",
            "max_lora",
            ("running_lora_adapters", "waiting_lora_adapters"),
        ),
        cache_info=(("vllm:cache_config_info", "block_size", "num_gpu_blocks"),),
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
