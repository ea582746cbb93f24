"""What the gateway has to know about an engine's habits on the wire: `Kind`, and all in `KINDS`.

To add an engine: a file beside `vllm.py` that makes a `Kind`, and a line in `KINDS`.
"""

from engines.habits import Kind, MetricNames, Series, Tell
from engines.llamacpp import LLAMACPP
from engines.nim import NIM
from engines.ollama import OLLAMA
from engines.sglang import SGLANG
from engines.tgi import TGI
from engines.triton.kind import TRITON
from engines.trtllm import TRTLLM
from engines.vllm import VLLM

__all__ = ["AUTO", "KINDS", "UNTOLD", "Kind", "MetricNames", "Series", "Tell"]

AUTO = "auto"
"""In place of a kind's name: it is asked."""

OPENAI = Kind("openai", health_path="/v1/models")
"""Any server that speaks OpenAI over HTTP and of which nothing else is known."""

UNTOLD = OPENAI.name
"""What a server is that has not told, or does not."""

# In the order in which a server is asked whether it is this: what wraps another comes first.
KINDS: dict[str, Kind] = {
    kind.name: kind for kind in (NIM, VLLM, SGLANG, TRTLLM, LLAMACPP, OLLAMA, TGI, TRITON, OPENAI)
}
