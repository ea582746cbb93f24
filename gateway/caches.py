"""What the endpoints' KV caches hold, and what their steps are learned to take.

The control process's part of routing: it writes the shared prefix index, and the profiles in the
endpoint table from what the workers observed. What an endpoint holds is told by its engine's KV
events where they can be followed (exact), else assumed from what the workers say they sent.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engines._kv_events import KvEvents
from engines.kv_sources import KvSource
from engines.load import AdaptersInUse
from engines.profile import Profile
from gateway.fleet import Member
from gateway.kv_events import KvSubscriber
from gateway.messages import Sent
from router import Adapters, AssumedCaches, Fit, Index, Missing, ReportedCache, Table

if TYPE_CHECKING:
    from gateway.kv_subscription import KvSubscription

__all__ = ["Caches"]

log = logging.getLogger("headgate.caches")

# Tokens in a block of text: 256 bytes at 4 to a token.
TEXT_BLOCK_TOKENS = 64
# Of an engine that does not tell the size of its cache: a small GPU's.
UNKNOWN_TOKENS = 400_000
# From this share on what is added pushes something out.
FULL = 0.95


@dataclass(slots=True, eq=False)
class _Cache:
    """Of one endpoint."""

    member: Member
    fit: Fit
    missing: Missing
    kv_tokens: float = UNKNOWN_TOKENS
    subscription: KvSubscription | None = None
    """Of its engine's events."""
    is_exact: bool = False
    """They are followed: what was sent there says nothing more."""


class Caches:
    """Everything here runs in the control process's loop, and takes no time worth naming.

    `block_tokens(member)`: tokens in a block of the prompts that go there; 0: they are cut by
    their text. `on_change`: an engine has told the size of its blocks, which was not known.
    """

    def __init__(
        self,
        table: Table,
        index: Index,
        adapters: Adapters,
        block_tokens: Callable[[Member], int] = lambda member: 0,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._table = table
        self._index = index
        self._adapters = adapters
        self._block_tokens = block_tokens
        self._on_change = on_change
        self._assumed = AssumedCaches(index)
        self._subscriber = KvSubscriber()
        self._caches: dict[int, _Cache] = {}

    def open(self, member: Member, profile: Profile) -> None:
        """An endpoint came, or became another in its slot: nothing is known of it."""
        self.close(member.slot)
        self._table.set_row(member.slot, profile=(*profile.times, 0.0), full=False)
        cache = _Cache(member, Fit(self._table, member.slot), Missing(self._table, member.slot))
        self._caches[member.slot] = cache
        self._assume(cache)
        self._adapters.forget(member.slot)

    def close(self, slot: int) -> None:
        """It left."""
        cache = self._caches.pop(slot, None)
        if cache is not None and cache.subscription is not None:
            self._subscriber.remove(cache.subscription)
        self._assumed.close(slot)

    def stop(self) -> None:
        """Close everything."""
        for slot in list(self._caches):
            self.close(slot)
        self._subscriber.close()

    def forget(self, slot: int) -> None:
        """Its engine died: whatever it comes back with, its cache is empty."""
        cache = self._caches.get(slot)
        if cache is None:
            return
        self._adapters.forget(slot)
        if not cache.is_exact:
            self._assumed.cache(slot).clear()

    def follow(self, member: Member, source: KvSource) -> None:
        """Take the engine's own word from here on. ValueError: no such address.

        Again: dials anew if there is no connection.
        """
        cache = self._caches[member.slot]
        before = cache.subscription
        if before is not None:
            if before.source != source:
                before.restart(f"moved to {source.endpoint}", source)
            elif before.is_cut_off:
                # ZeroMQ never dials again where once something answered that was no publisher.
                before.restart(before.reason)
            return
        # An endpoint holds one base model, so the model's name need not tell blocks apart.
        events = KvEvents("", ReportedCache(self._index, member.slot))
        cache.subscription = self._subscriber.add(
            member.name, source, events, lambda _: self._on_kv_state(cache)
        )

    def subscription(self, slot: int) -> KvSubscription | None:
        """To an endpoint's KV events; None: it has none that we know of."""
        cache = self._caches.get(slot)
        return None if cache is None else cache.subscription

    def n_blocks(self, slot: int) -> int:
        """That an endpoint is believed to hold."""
        cache = self._caches[slot]
        if cache.is_exact and cache.subscription is not None:
            return cache.subscription.events.cache.n_blocks
        return self._assumed.cache(slot).n_blocks

    def describe(self, slot: int) -> dict[str, Any]:
        """What is known of an endpoint's cache, and from where."""
        cache = self._caches[slot]
        found: dict[str, Any] = {
            "known_by": "kv_events" if cache.is_exact else "what_was_sent",
            "blocks": self.n_blocks(slot),
            "block_tokens": self._block_tokens(cache.member) or TEXT_BLOCK_TOKENS,
            "capacity_tokens": cache.kv_tokens,
        }
        if (events := cache.subscription) is not None:
            found["kv_events"] = {
                "source": events.source.endpoint,
                "state": events.state.value,
                "reason": events.reason,
                "batches": events.n_live,
                "gaps": events.n_gaps,
                "replays": events.n_replays,
                "clears": events.n_clears,
                "faults": events.n_faults,
            }
        return found

    def on_capacity(self, slot: int, kv_tokens: float) -> None:
        """The engine told the size of its KV cache."""
        cache, profile = self._caches[slot], self._table.profile(slot)
        cache.kv_tokens = kv_tokens
        if profile["kv_tokens"] != kv_tokens:
            self._table.set_row(slot, profile=(*list(profile.values())[:5], kv_tokens))
            self._resize(cache)

    def on_progress(self, slot: int, tokens: float, now_s: float) -> None:
        """The engine's counter of tokens computed stands here: events must have told of them."""
        cache = self._caches[slot]
        if cache.subscription is not None:
            cache.subscription.on_progress(tokens, now_s)

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
        cache = self._caches.get(slot)
        if cache is not None and not cache.is_exact:
            keys = array("Q")
            keys.frombytes(blocks[: len(blocks) // 8 * 8])
            self._assumed.cache(slot).sent(keys)

    def tick(self) -> None:
        """Once a second: take in what was observed."""
        for slot, cache in self._caches.items():
            cache.fit.update()
            if cache.missing.update() and not cache.is_exact:
                log.info(
                    "%s: its engine finds nothing of what was sent there: its cache was emptied",
                    cache.member.name,
                )
                self._assumed.cache(slot).clear()
            self._resize(cache)
            self._table.set_row(slot, full=self.n_blocks(slot) >= FULL * self._capacity(cache))
            if cache.subscription is not None:
                told = cache.subscription.events.block_tokens
                if told and told != cache.member.block_tokens:
                    cache.member.block_tokens = told
                    self._on_change()

    def _resize(self, cache: _Cache) -> None:
        if not cache.is_exact:
            self._assumed.cache(cache.member.slot).resize(self._capacity(cache))

    def _capacity(self, cache: _Cache) -> int:
        """In blocks."""
        block_tokens = self._block_tokens(cache.member) or TEXT_BLOCK_TOKENS
        return max(1, int(cache.kv_tokens / block_tokens))

    def _assume(self, cache: _Cache) -> None:
        cache.is_exact = False
        member = cache.member
        self._assumed.open(member.slot, member.generation, self._capacity(cache))

    def _on_kv_state(self, cache: _Cache) -> None:
        assert cache.subscription is not None
        is_exact = not cache.subscription.is_lost
        if is_exact and not cache.is_exact:
            cache.is_exact = True
            self._assumed.close(cache.member.slot)
        elif cache.is_exact and not is_exact:
            self._assume(cache)
