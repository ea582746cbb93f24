"""What the gateway has to know about an engine's habits on the wire: `Kind`, and all in `KINDS`.

To add an engine: a file beside `vllm.py` that makes a `Kind`, and a line in `KINDS`.
"""

from engines.habits import Kind, MetricNames
from engines.sglang import SGLANG
from engines.vllm import VLLM

__all__ = ["KINDS", "Kind", "MetricNames"]

OPENAI = Kind("openai", health_path="/v1/models")
"""Any server that speaks OpenAI over HTTP and of which nothing else is known."""

TRITON = Kind(
    "triton",
    health_path="/v2/health/live",
    models_path="/v2/repository/index",
    models_body=b'{"ready":true}',
    blames_engine=False,
)
"""Triton: its models by KServe's v2 protocol. /v2/health/ready fails while any model loads."""

KINDS: dict[str, Kind] = {kind.name: kind for kind in (VLLM, SGLANG, OPENAI, TRITON)}
