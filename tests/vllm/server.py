"""One vLLM server process on loopback."""

from __future__ import annotations

from pathlib import Path

from tests.real.process import Process, command_line, descendants, free_port
from tests.real.server import EngineServer, ServerError

MODEL = "tiny"
EMBEDDING_MODEL = "tiny-embed"
MAX_MODEL_TOKENS = 8192
# Twenty CPU seconds on an idle machine, and five times that where others share the cores.
START_S = 300.0

GENERATE_ARGS = [
    "--enable-auto-tool-choice",
    "--tool-call-parser=hermes",
    # Without it a random model may spend all its tokens on white space between two JSON tokens.
    '--structured-outputs-config={"backend":"xgrammar","disable_any_whitespace":true}',
]
ADAPTERS = ("adapter-0", "adapter-1")
CACHING_BLOCKS = 512
BLOCK_TOKENS = 32
# Tells what its cache holds, and of each request what of it was used. So small that it evicts.
CACHING_ARGS = [
    "--max-model-len=2048",
    f"--num-gpu-blocks-override={CACHING_BLOCKS}",
    "--enable-prompt-tokens-details",
    # On VLLM_HOST_IP, at ports of its own choice; GET /kv_event_sources tells which.
    '--kv-events-config={"enable_kv_cache_events":true,"publisher":"zmq",'
    '"endpoint":"tcp://*:0","replay_endpoint":"tcp://*:0","topic":"kv@tiny"}',
    "--enable-lora",
    f"--max-loras={len(ADAPTERS)}",
    "--max-lora-rank=8",
]
EMBED_ARGS = ["--runner=pooling", "--convert=embed"]
RENDER_ARGS = [
    "--host=127.0.0.1",
    "--enable-auto-tool-choice",
    "--tool-call-parser=hermes",
    "--uvicorn-log-level=warning",
    f"--max-model-len={MAX_MODEL_TOKENS}",
    f"--served-model-name={MODEL}",
]
COMMON_ARGS = [
    "--host=127.0.0.1",
    "--dtype=float32",
    "--seed=0",
    "--enforce-eager",
    "--max-num-seqs=32",
    "--uvicorn-log-level=warning",
    f"--max-model-len={MAX_MODEL_TOKENS}",
    # The CPU attention takes multiples of 32 only. 2048 such blocks are 32 MB for this model, and
    # hold eight answers of full length at once.
    f"--block-size={BLOCK_TOKENS}",
    "--num-gpu-blocks-override=2048",
]
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_LOOPBACK_IP": "127.0.0.1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    # A thread team on cores that others use too waits for its slowest member: one thread is faster.
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # Else the first request with logprobs calls a C++ compiler and waits for it.
    "TORCH_COMPILE_DISABLE": "1",
    "PYTHONWARNINGS": "ignore",
    # For /reset_prefix_cache.
    "VLLM_SERVER_DEV_MODE": "1",
}


class Server(EngineServer):
    """An API process, an EngineCore child and a worker below that."""

    START_LIMIT_S = START_S
    # Each start lists some forty routes.
    NOISE = " Route: "

    def __init__(self, python: Path, model: Path, name: str, args: list[str], served: str) -> None:
        super().__init__("vllm", name, free_port())
        self.environment = ENVIRONMENT
        self.command = [str(python.with_name("vllm")), "serve", str(model), *COMMON_ARGS]
        # The last of two equal options wins.
        self.command += [*args, f"--served-model-name={served}", f"--port={self.port}"]

    def core(self) -> Process:
        """The EngineCore child: the process that schedules and (through a worker) computes."""
        for process in descendants(self.pid):
            if "EngineCore" in command_line(process.pid):
                return process
        raise ServerError(f"{self.name} has no EngineCore process\n{self.log_tail()}")

    def running_requests(self) -> int:
        return int(self.metric("vllm:num_requests_running"))

    def generated_tokens(self) -> int:
        return int(self.metric("vllm:generation_tokens_total"))


class Renderer(Server):
    """vLLM's front without an engine: makes prompts of requests, and has a third of the memory."""

    def __init__(self, python: Path, model: Path, name: str) -> None:
        super().__init__(python, model, name, [], MODEL)
        vllm = str(python.with_name("vllm"))
        self.command = [vllm, "launch", "render", str(model), *RENDER_ARGS, f"--port={self.port}"]
