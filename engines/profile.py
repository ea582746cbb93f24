"""How long one engine step takes, and how much KV cache there is: a model and a GPU in six numbers.

A step's time is linear in what the batch holds, the shape that measurements of chunked-prefill
engines show:

    t = base + per_chunk_token * chunk_tokens + per_chunk_token_ctx * sum(chunk * context)
             + per_decode_seq * decodes + per_decode_ctx * sum(context of the decodes)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["PROFILES", "Profile", "profile_named"]


@dataclass(frozen=True, slots=True)
class Profile:
    """The step model of one model on one engine. All times in seconds."""

    name: str
    base_s: float
    """Cost of any step at all: reading the weights once, launching the kernels."""
    chunk_token_s: float
    """Per prompt token computed (linear layers)."""
    chunk_token_ctx_s: float
    """Per prompt token and token of context before it (attention)."""
    decode_seq_s: float
    """Per sequence that decodes one token."""
    decode_ctx_s: float
    """Per token of context that a decoding sequence reads from the KV cache."""
    kv_tokens: int
    """KV cache size at gpu_memory_utilization 0.9."""
    natural_end_tokens: int = 0
    """Mean answer length at which the model stops by itself; 0: always runs to max_tokens."""

    @property
    def times(self) -> tuple[float, float, float, float, float]:
        """The five times, in the order of the formula."""
        return (
            self.base_s,
            self.chunk_token_s,
            self.chunk_token_ctx_s,
            self.decode_seq_s,
            self.decode_ctx_s,
        )

    def step_s(
        self, chunk_tokens: int, chunk_ctx: float, decodes: int, decode_ctx_tokens: int
    ) -> float:
        """Duration of a step. `chunk_ctx` is the sum over chunks of tokens x mean context."""
        return (
            self.base_s
            + self.chunk_token_s * chunk_tokens
            + self.chunk_token_ctx_s * chunk_ctx
            + self.decode_seq_s * decodes
            + self.decode_ctx_s * decode_ctx_tokens
        )

    def scaled(self, factor: float) -> Profile:
        """The same profile with every time multiplied by `factor` (0.1: ten times faster)."""
        return replace(
            self,
            base_s=self.base_s * factor,
            chunk_token_s=self.chunk_token_s * factor,
            chunk_token_ctx_s=self.chunk_token_ctx_s * factor,
            decode_seq_s=self.decode_seq_s * factor,
            decode_ctx_s=self.decode_ctx_s * factor,
        )


# The GPU rows come from published linear-layer timings (H100) and the HBM bandwidth of each part;
# they are for bf16 weights. H200 rows are not calibrated on the part itself.
PROFILES: dict[str, Profile] = {
    p.name: p
    for p in (
        Profile("8b-h100", 8e-3, 33e-6, 1.3e-9, 20e-6, 55e-9, 390_000),
        Profile("8b-h200", 6.5e-3, 32e-6, 1.3e-9, 20e-6, 38e-9, 815_000),
        Profile("70b-h100-tp4", 19e-3, 62e-6, 1.66e-9, 50e-6, 34e-9, 405_000),
        Profile("70b-h200-tp4", 15e-3, 60e-6, 1.6e-9, 50e-6, 24e-9, 1_070_000),
        Profile("70b-h100-tp8", 12e-3, 36e-6, 9e-10, 50e-6, 18e-9, 1_240_000),
        # Watchable on a terminal: about 50 tokens/s per stream, a cache small enough to fill.
        Profile("demo", 18e-3, 50e-6, 1.3e-9, 30e-6, 40e-9, 131_072),
        # No time passes in a step: for tests of behaviour, and of the gateway's own cost.
        Profile("instant", 0.0, 0.0, 0.0, 0.0, 0.0, 262_144),
    )
}


def profile_named(name: str) -> Profile:
    """The profile of that name. Raises ValueError naming the known ones."""
    try:
        return PROFILES[name]
    except KeyError:
        known = ", ".join(PROFILES)
        raise ValueError(f"unknown profile {name!r}; known profiles: {known}") from None
