"""One sequence in the engine: what it asks for, and how far the core has got with it."""

from __future__ import annotations

from array import array
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum

__all__ = ["Job", "Phase"]


class Phase(Enum):
    """NEW -> WAITING <-> RUNNING -> ENDED. Preemption is the way back to WAITING."""

    NEW = "new"
    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(slots=True, eq=False)
class Job:
    """A prompt and the tokens the model will answer with, decided beforehand.

    The first group is the caller's, fixed once submitted. The second is written by the core alone
    and may be read by anybody. Times are seconds on the clock that `Core` is given; -1 means
    not yet.
    """

    id: Hashable
    prompt: array[int]
    output: array[int]
    """May be empty: the job ends when its prompt is computed (embeddings, scores)."""
    finish_reason: str = "length"
    """Reported with the last token."""
    namespace: bytes = b""
    """Prompts share cached blocks only within one namespace (LoRA, cache salt)."""
    adapter: str = ""
    """LoRA the job runs with, for metrics and KV events."""
    salt: str = ""
    """Cache salt, for KV events; `namespace` has it too."""
    owner: object = None
    """Whatever the caller wants to find again in the events."""
    index: int = 0
    """Which of the owner's jobs this is."""

    phase: Phase = Phase.NEW
    emitted: int = 0
    """Output tokens delivered."""
    known: int = field(init=False)
    """Tokens that exist so far: the prompt and what was delivered."""
    computed: int = 0
    """Tokens whose KV entries are in the cache."""
    cached_tokens: int = -1
    """Prompt tokens found in the prefix cache at the first admission."""
    preemptions: int = 0
    arrived_s: float = -1.0
    scheduled_s: float = -1.0
    first_token_s: float = -1.0
    last_token_s: float = -1.0
    tokens: array[int] = field(default_factory=lambda: array("I"))
    """Prompt and whole output, so that a slice is any block's contents."""
    blocks: list[int] = field(default_factory=list)
    hashes: list[int] = field(default_factory=list)
    sealed: int = 0
    """Leading blocks that are full and have their hash in the pool."""

    def __post_init__(self) -> None:
        self.known = len(self.prompt)
