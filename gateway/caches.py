"""What the endpoints' KV caches are assumed to hold, and what their steps are learned to take.

The control process's part of routing: it writes the shared prefix index from what the workers say
they sent, and the profiles in the endpoint table from what the workers observed.
"""

import logging
from array import array

from engines.metrics_text import AdaptersInUse
from engines.profile import Profile
from gateway.fleet import Member
from gateway.messages import Sent
from router import Adapters, AssumedCaches, Fit, Index, Table

__all__ = ["Caches"]

log = logging.getLogger("headgate.caches")

# Text to a token, in prose and in JSON, and the bytes of a block of text.
BYTES_PER_TOKEN = 4
BLOCK_BYTES = 256
# Of an engine that does not tell the size of its cache: a small GPU's.
UNKNOWN_TOKENS = 400_000
# From this share on what is added pushes something out.
FULL = 0.95


class Caches:
    """Everything here runs in the control process's loop, and takes no time worth naming."""

    def __init__(self, table: Table, index: Index, adapters: Adapters) -> None:
        self._table = table
        self._adapters = adapters
        self._assumed = AssumedCaches(index)
        self._fits: dict[int, Fit] = {}

    def open(self, member: Member, profile: Profile) -> None:
        """An endpoint came, or became another in its slot: nothing is known of it."""
        slot = member.slot
        self._table.set_row(slot, profile=(*profile.times, 0.0), full=False)
        self._assumed.open(slot, member.generation, _blocks(UNKNOWN_TOKENS))
        self._adapters.forget(slot)
        self._fits[slot] = Fit(self._table, slot)

    def forget(self, slot: int) -> None:
        """Its engine died: whatever it comes back with, its cache is empty."""
        if slot in self._fits:
            self._assumed.cache(slot).clear()
            self._adapters.forget(slot)

    def close(self, slot: int) -> None:
        """It left."""
        self._assumed.close(slot)
        self._fits.pop(slot, None)

    def on_capacity(self, slot: int, kv_tokens: float) -> None:
        """The engine told the size of its KV cache."""
        profile = self._table.profile(slot)
        if profile["kv_tokens"] != kv_tokens:
            self._table.set_row(slot, profile=(*list(profile.values())[:5], kv_tokens))
            self._assumed.cache(slot).resize(_blocks(kv_tokens))

    def on_adapters(self, slot: int, found: AdaptersInUse, now_s: float) -> None:
        """The engine told which LoRA adapters it has in use, and how many it keeps."""
        self._table.set_row(slot, max_loras=found.max_loras)
        self._adapters.used(slot, found.names, now_s)

    def on_sent(self, message: Sent) -> None:
        """Prompts went to engines."""
        try:
            self._assumed.sent(message.prompts)
        except ValueError as error:
            log.error("a worker's report: %s", error)

    def on_peers_sent(self, slot: int, blocks: bytes) -> None:
        """Another gateway sent a prompt of these blocks to an endpoint."""
        if slot in self._fits:
            keys = array("Q")
            keys.frombytes(blocks[: len(blocks) // 8 * 8])
            self._assumed.cache(slot).sent(keys)

    def tick(self) -> None:
        """Once a second: take in what was observed."""
        for slot, fit in self._fits.items():
            fit.update()
            cache = self._assumed.cache(slot)
            self._table.set_row(slot, full=cache.n_blocks >= FULL * cache.capacity)


def _blocks(kv_tokens: float) -> int:
    return max(1, int(kv_tokens * BYTES_PER_TOKEN / BLOCK_BYTES))
