"""What one simulated engine is told at its start."""

from __future__ import annotations

from dataclasses import dataclass

from engines.profile import Profile, profile_named
from engines.sim.core import Limits

__all__ = ["SIGTERM_KINDS", "SimConfig"]

SIGTERM_KINDS = ("hang", "drain", "quit")


@dataclass(frozen=True, slots=True, kw_only=True)
class SimConfig:
    """One engine. ValueError on construction if the sizes or names make no sense."""

    name: str = "sim-0"
    """For the ready line, `/sim/state`, and to address one engine through another."""
    model: str = "sim"
    """The served model: first in `/v1/models`, label `model_name` of the metrics."""
    aliases: tuple[str, ...] = ()
    """Further names of the same model (vLLM: more than one --served-model-name)."""
    adapters: tuple[str, ...] = ()
    """LoRA adapters loaded from the start; each is a model name whose parent is `model`."""
    profile: str = "demo"
    """Step model, a name in `profile.PROFILES`."""
    time_scale: float = 1.0
    """Real seconds per modelled second: 0.1 is ten times faster than the hardware."""
    block_size: int = 16
    """Tokens per KV block."""
    kv_tokens: int | None = None
    """KV cache size; None: the profile's."""
    runtime_adapters: bool = True
    """Adapters come and go, as with VLLM_ALLOW_RUNTIME_LORA_UPDATING=1; else 404."""
    dev_mode: bool = True
    """It can be put to sleep (vLLM: VLLM_SERVER_DEV_MODE=1); else these routes are 404."""
    switch_s: float = 0.0
    """How long loading an adapter, falling asleep and waking take."""
    max_model_len: int = 32768
    """Longest prompt plus answer, in tokens; lowered to what the KV cache holds."""
    max_num_seqs: int = 256
    """Sequences in one batch."""
    max_num_batched_tokens: int = 8192
    """Token budget of one step."""
    max_num_queued_reqs: int = 0
    """Waiting requests past which new ones are answered 503 as vLLM does; 0: no limit."""
    api_key: str | None = None
    """Required as a bearer token on /v1 paths if set."""
    seed: int = 0
    """Engines with equal seeds give equal answers to equal prompts."""
    default_max_tokens: int = 16
    """Answer length when the request names none (vLLM: 16 for completions only)."""
    prompt_tokens_details: bool = True
    """Report cached tokens in `usage`, as with --enable-prompt-tokens-details."""
    force_include_usage: bool = False
    """Send the usage chunk unasked, as with --enable-force-include-usage."""
    request_id_headers: bool = False
    """Answer with x-request-id, as with --enable-request-id-headers."""
    pooling: bool = True
    """Serve embeddings, rerank and score beside generation. A real engine does either; a 404
    answers them if False."""
    embedding_dims: int = 64
    """Length of an embedding."""
    keep_alive_s: float = 5.0
    """Idle time after which a kept connection is closed: uvicorn's default."""
    sigterm: str = "hang"
    """What SIGTERM does: `hang`, `drain` or `quit` (see `fault.py`)."""

    kv_events: str = ""
    """ZeroMQ address to publish KV events at, as `tcp://*:5557`; port 0: any. Empty: none are.
    A real vLLM binds an address with `*` and connects to any other; this one always binds."""
    kv_replay: str = ""
    """Where missed batches can be asked for; empty: nowhere."""

    def __post_init__(self) -> None:
        profile_named(self.profile)
        if self.sigterm not in SIGTERM_KINDS:
            raise ValueError(f"sigterm must be one of {', '.join(SIGTERM_KINDS)}")
        if self.time_scale < 0 or self.default_max_tokens < 1 or self.max_model_len < 2:
            raise ValueError("time_scale, default_max_tokens or max_model_len is out of range")
        for endpoint in filter(None, (self.kv_events, self.kv_replay)):
            host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
            if not endpoint.startswith("tcp://") or not host or not port.isdecimal():
                raise ValueError(f"{endpoint!r} is no tcp://HOST:PORT")
        if self.kv_replay and not self.kv_events:
            raise ValueError("kv_replay without kv_events")
        if self.limits.num_blocks < 1:
            raise ValueError("kv_tokens must hold at least one block")

    @property
    def limits(self) -> Limits:
        """Sizes for the core."""
        return Limits(
            block_size=self.block_size,
            num_blocks=(self.kv_tokens or profile_named(self.profile).kv_tokens) // self.block_size,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
        )

    @property
    def step_profile(self) -> Profile:
        """The profile on this engine's time scale."""
        return profile_named(self.profile).scaled(self.time_scale)

    @property
    def context_tokens(self) -> int:
        """`max_model_len`, or less if the KV cache is smaller."""
        return min(self.max_model_len, self.limits.num_blocks * self.block_size)
