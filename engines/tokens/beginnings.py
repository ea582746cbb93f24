"""Beginnings of conversations and their ids: of one that goes on, only what is new is looked at."""

from __future__ import annotations  # array is no generic before Python 3.12

from array import array
from collections import OrderedDict
from threading import Lock
from typing import NamedTuple

__all__ = ["Beginning", "Beginnings"]

LARGEST_SHARE = 4
"""Of the memory, that one may take: a quarter."""
ENTRY_BYTES = 400
"""What an entry takes beyond its texts and its ids."""


class Beginning(NamedTuple):
    """Of a text, up to a special token."""

    text: str
    """With that token: what stands behind it does not change how the text before it is cut."""
    n_chars: int
    """Without it."""
    ids: array[int]
    """Of these characters."""


class Beginnings:
    """One for each opening, the latest. May be used by several threads at once.

    An opening is what tells one conversation from another. `memory_bytes` bounds what is kept.
    """

    def __init__(self, memory_bytes: int) -> None:
        self.held_bytes = 0
        self._memory_bytes = memory_bytes
        self._known: OrderedDict[str, Beginning] = OrderedDict()
        self._lock = Lock()

    def find(self, opening: str, text: str) -> Beginning | None:
        """What is known of a text, if anything."""
        with self._lock:
            known = self._known.get(opening)
            if known is None or not text.startswith(known.text):
                return None
            self._known.move_to_end(opening)
            return known

    def keep(self, opening: str, beginning: Beginning) -> None:
        """In place of what was known for this opening; a large part of all is not kept."""
        size = _size(opening, beginning)
        if size > self._memory_bytes // LARGEST_SHARE:
            return
        with self._lock:
            before = self._known.pop(opening, None)
            if before is not None:
                self.held_bytes -= _size(opening, before)
            self._known[opening] = beginning
            self.held_bytes += size
            while self.held_bytes > self._memory_bytes:
                self.held_bytes -= _size(*self._known.popitem(last=False))

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._known.clear()
            self.held_bytes = 0


def _size(opening: str, beginning: Beginning) -> int:
    texts = sum(len(one) if one.isascii() else 4 * len(one) for one in (opening, beginning.text))
    return ENTRY_BYTES + texts + len(beginning.ids) * beginning.ids.itemsize
