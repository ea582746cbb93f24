"""The KV cache as blocks: reference counts, prefix cache, LRU eviction.

Pure bookkeeping. A block is either held (one or more sequences refer to it) or free; a free block
keeps its contents, and can be found again by hash, until it is handed out anew. Free blocks are
handed out least recently freed first. Only full blocks have a hash. Two blocks may hold the same
hash (a prompt of exactly k blocks reuses only k - 1, since its last token must be computed), so a
hash leaves the cache only with its last block.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

__all__ = ["BlockPool", "chain_hash", "root_hash"]


def root_hash(namespace: bytes) -> int:
    """The parent of a first block. Prompts of different namespaces (LoRA, salt) never share."""
    return int.from_bytes(blake2b(namespace, digest_size=8, person=b"kv-root").digest(), "big")


def chain_hash(parent: int, tokens: array[int]) -> int:
    """64-bit hash of a full block: of its token ids and of everything before it."""
    digest = blake2b(tokens, digest_size=8, key=parent.to_bytes(8, "big"))
    return int.from_bytes(digest.digest(), "big")


class BlockPool:
    """`capacity` blocks. Nothing blocks or raises; what does not fit is answered with None."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.evictions = 0
        """Blocks whose cached contents were given up for others."""
        self.removed: list[int] = []
        """Hashes evicted, one entry per block, until the owner clears the list."""
        self._untouched = capacity  # blocks never handed out need no entry anywhere
        self._refs: dict[int, int] = {}
        self._free: OrderedDict[int, None] = OrderedDict()
        self._hash_of: dict[int, int] = {}
        self._by_hash: dict[int, list[int]] = {}

    def __repr__(self) -> str:
        return f"<BlockPool {self.held}/{self.capacity} held, {len(self._by_hash)} hashes cached>"

    @property
    def free(self) -> int:
        """Blocks that can be handed out, cached contents included."""
        return self._untouched + len(self._free)

    @property
    def held(self) -> int:
        """Blocks that at least one sequence refers to."""
        return len(self._refs)

    @property
    def cached(self) -> int:
        """Distinct hashes that can be found."""
        return len(self._by_hash)

    @property
    def untouched(self) -> int:
        """Blocks never handed out: while there are any, nothing is evicted."""
        return self._untouched

    def refs(self, block: int) -> int:
        """How many sequences refer to the block."""
        return self._refs.get(block, 0)

    def match(self, hashes: Sequence[int], limit: int) -> list[int]:
        """Blocks of the longest cached prefix of `hashes`, at most `limit`. Changes nothing."""
        found: list[int] = []
        for key in hashes[:limit]:
            blocks = self._by_hash.get(key)
            if blocks is None:
                break
            found.append(blocks[0])
        return found

    def take(self, cached: Sequence[int], fresh: int) -> list[int] | None:
        """Refer to `cached` blocks and to `fresh` new ones; None, and no change, if too few."""
        revived = sum(1 for block in cached if block in self._free)
        if fresh > self.free - revived:
            return None
        for block in cached:
            self._free.pop(block, None)
            self._refs[block] = self._refs.get(block, 0) + 1
        return [*cached, *(self._hand_out() for _ in range(fresh))]

    def seal(self, block: int, key: int) -> None:
        """The held block is full and its contents have this hash."""
        self._hash_of[block] = key
        self._by_hash.setdefault(key, []).append(block)

    def release(self, blocks: Sequence[int]) -> None:
        """Give up one reference to each, last first: a prefix outlives its continuations."""
        for block in reversed(blocks):
            left = self._refs[block] - 1
            if left:
                self._refs[block] = left
            else:
                del self._refs[block]
                self._free[block] = None

    def forget(self) -> bool:
        """Drop every cached hash. False, and no change, while any block is held."""
        if self._refs:
            return False
        self._hash_of.clear()
        self._by_hash.clear()
        return True

    def hashes(self) -> Iterable[int]:
        """Every hash that can be found, in no order."""
        return self._by_hash.keys()

    def _hand_out(self) -> int:
        if self._untouched:
            self._untouched -= 1
            block = self._untouched
        else:
            block, _ = self._free.popitem(last=False)
            self._evict(block)
        self._refs[block] = 1
        return block

    def _evict(self, block: int) -> None:
        key = self._hash_of.pop(block, None)
        if key is None:
            return
        self.evictions += 1
        self.removed.append(key)
        twins = self._by_hash[key]
        twins.remove(block)
        if not twins:
            del self._by_hash[key]
