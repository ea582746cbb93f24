"""NVIDIA NIM: another engine inside, vLLM or SGLang or TensorRT-LLM, behind routes of its own."""

from engines.habits import Kind, MetricNames, Tell
from engines.vllm import VLLM

__all__ = ["NIM"]

NIM = Kind(
    name="nim",
    # its model list says what the engine inside says
    tells=(Tell("/v1/metadata", ("modelInfo",)),),
    health_path="/v1/health/ready",
    metrics_path="/v1/metrics",
    metrics=MetricNames(
        # without a prefix up to 1.x, the engine's own since
        running=("num_requests_running", *VLLM.metrics.running, "sglang:num_running_reqs"),
        waiting=("num_requests_waiting", *VLLM.metrics.waiting, "sglang:num_queue_reqs"),
        kv_usage=("gpu_cache_usage_perc", *VLLM.metrics.kv_usage, "sglang:token_usage"),
        kv_capacity_tokens=(*VLLM.metrics.kv_capacity_tokens, "sglang:max_total_num_tokens"),
        kv_blocks=VLLM.metrics.kv_blocks,
        block_size=(*VLLM.metrics.block_size, "sglang:page_size"),
        gpu_utilisation=("gpu_utilization",),
        generation_tokens=(
            "generation_tokens_total",
            *VLLM.metrics.generation_tokens,
            "sglang:generation_tokens_total",
        ),
        prompt_tokens=(
            "prompt_tokens_total",
            *VLLM.metrics.prompt_tokens,
            "sglang:prompt_tokens_total",
        ),
        requests=("request_finish_total", *VLLM.metrics.requests),
        request_s=("e2e_request_latency_seconds_sum", *VLLM.metrics.request_s),
    ),
    dying_answers=VLLM.dying_answers,
    cut_short=VLLM.cut_short,
)
