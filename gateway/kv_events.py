"""The control process's subscriber to engines' KV events: all their publishers.

ZeroMQ is imported with the first subscription: who has no such engine does not pay for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from engines._kv_events import KvEvents
from engines.kv_sources import KvSource

if TYPE_CHECKING:
    import zmq

    from gateway.kv_subscription import KvSubscription

__all__ = ["KvSubscriber"]

MAX_SOCKETS = 16384
"""A subscription takes three, and one more while it replays; a gateway has up to 1024 engines."""


class KvSubscriber:
    """Runs inside one event loop, and is used from there only."""

    def __init__(self) -> None:
        self.subscriptions: list[KvSubscription] = []
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None

    def add(
        self,
        name: str,
        source: KvSource,
        events: KvEvents,
        on_change: Callable[[KvSubscription], None] = lambda _: None,
    ) -> KvSubscription:
        """Begin to follow a publisher; see `KvSubscription`. ValueError: no such address."""
        import zmq

        from gateway.kv_subscription import KvSubscription

        if self._context is None:
            self._context = zmq.Context()
            self._context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
        subscription = KvSubscription(self._context, name, source, events, on_change)
        self.subscriptions.append(subscription)
        return subscription

    def remove(self, subscription: KvSubscription) -> None:
        """Stop following it; what it knew is forgotten."""
        self.subscriptions.remove(subscription)
        subscription.close()

    def close(self) -> None:
        """Stop everything."""
        for subscription in list(self.subscriptions):
            self.remove(subscription)
        if self._context is not None:
            self._context.destroy(linger=0)
            self._context = None
