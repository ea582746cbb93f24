"""What Triton and NVIDIA's exporters say of loads: metric names, and what misleads in them."""

from engines.habits import MetricNames, Series
from engines.vllm import VLLM

__all__ = ["DCGM_METRICS", "TRITON_METRICS"]


def _requests(what: str) -> Series:
    return Series("nv_trt_llm_request_metrics", (("request_type", what),))


def _blocks(what: str) -> Series:
    return Series("nv_trt_llm_kv_cache_block_metrics", (("kv_cache_block_type", what),))


TRITON_METRICS = MetricNames(
    # The backends' own gauges, where they have any (vLLM's has in its newer versions). Triton
    # itself does not say what runs: nv_inference_exec_count only ever grows.
    # A server may have models of both backends.
    running=((_requests("scheduled"), "vllm:num_requests_running"),),
    # Triton's own is before the backend; what streams is not pending, and an ensemble never is.
    waiting=(
        (_requests("waiting"), "vllm:num_requests_waiting"),
        "nv_inference_pending_request_count",
    ),
    kv_usage=((_blocks("fraction"), "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),),
    kv_capacity_tokens=VLLM.metrics.kv_capacity_tokens,
    kv_blocks=(_blocks("max"), *VLLM.metrics.kv_blocks),
    block_size=(_blocks("tokens_per"), *VLLM.metrics.block_size),
    gpu_utilisation=("nv_gpu_utilization",),
    generation_tokens=VLLM.metrics.generation_tokens,
    prompt_tokens=VLLM.metrics.prompt_tokens,
    # Failed and cancelled streams count as successes. An ensemble's steps count beside it, once
    # per token behind one that streams.
    requests=("nv_inference_request_success",),
    # For what streams it ends as the backend has taken the request.
    request_s=(Series("nv_inference_request_duration_us", scale=1e-6),),
)

DCGM_METRICS = MetricNames(
    gpu_utilisation=(
        # in percent, and of any kernel; the other one is finer, and not on every GPU
        Series("DCGM_FI_DEV_GPU_UTIL", scale=0.01),
        "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
    ),
)
"""NVIDIA's exporter of GPU counters: one page for all GPUs of a host."""
