"""Hugging Face's text-generation-inference: metric names; its model list names the model alone."""

from engines.habits import Kind, MetricNames, Tell

__all__ = ["TGI"]

TGI = Kind(
    name="tgi",
    tells=(Tell("/info", ("router", "model_id"), "text-generation-router"),),
    metrics_path="/metrics",
    metrics=MetricNames(
        running=("tgi_batch_current_size",),
        waiting=("tgi_queue_size",),
        generation_tokens=("tgi_request_generated_tokens_sum",),
        prompt_tokens=("tgi_request_input_length_sum",),
        requests=("tgi_request_count",),
        request_s=("tgi_request_duration_sum",),
    ),
    # axum closes idle connections only where it is told to; here it is not
    keep_alive_s=60.0,
)
