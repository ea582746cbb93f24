"""Triton as an endpoint: how it is probed."""

from engines.habits import Kind
from engines.nvidia import TRITON_METRICS

__all__ = ["TRITON"]

TRITON = Kind(
    name="triton",
    # Not `ready`: that is false while any model loads, and after any load that failed.
    health_path="/v2/health/live",
    models_path="/v2/repository/index",
    models_body=b'{"ready":true}',
    blames_engine=False,
    metrics_path="/metrics",
    metrics=TRITON_METRICS,
)
