"""Triton as an endpoint: how it is known, probed and scraped."""

from engines.habits import Kind, Tell
from engines.nvidia import TRITON_METRICS

__all__ = ["TRITON"]

TRITON = Kind(
    name="triton",
    tells=(Tell("/v2", ("name", "extensions"), "triton"),),
    # Not `ready`: that is false while any model loads, and after any load that failed.
    health_path="/v2/health/live",
    models_path="/v2/repository/index",
    models_body=b'{"ready":true}',
    blames_engine=False,
    metrics_path="/metrics",
    metrics_port_after=2,
    metrics=TRITON_METRICS,
)
