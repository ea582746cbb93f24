"""Triton as an endpoint: how it is known, probed and scraped."""

import re

from engines.habits import Kind, Tell
from engines.nvidia import TRITON_METRICS

__all__ = ["TRITON", "header_to_set"]

# "expecting header 'admin-key'"
_WANTED_HEADER = re.compile(r"expecting header '([^']+)'")

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


def header_to_set(words: str) -> str:
    """What to configure, by what Triton says where a part of its API wants a header; empty: it says
    nothing of one."""
    found = _WANTED_HEADER.search(words)
    return f'set `control_header: "{found[1]}: ..."`' if found else ""
