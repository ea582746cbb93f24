"""What the prefix index takes per entry, with the maps from engines' hashes beside it.

    python -m bench.index_memory [--entries 10000000] [--endpoints 8]

One endpoint per block, as engines report them: resident memory of this process before and after.
"""

import argparse
import os
import sys
from array import array
from collections.abc import Sequence
from random import Random

from bench.processes import rss_bytes
from router._index import Index
from router._reported import ReportedCache

__all__ = ["bytes_per_entry", "main"]

CHUNK = 1024
SETS = 65536


def bytes_per_entry(entries: int, endpoints: int) -> float:
    """Fill an index, and measure. Takes some 50 ns per entry, and the memory that it finds."""
    before = rss_bytes([os.getpid()])
    index = Index(bytearray(Index.size(entries, SETS)), entries, SETS)
    caches = [ReportedCache(index, slot) for slot in range(endpoints)]
    random = Random(1)
    for at in range(0, entries, CHUNK):
        n = min(CHUNK, entries - at)
        hashes = array("Q", [random.getrandbits(64) | 1 for _ in range(n)])
        tokens = array("I", bytes(4 * n))
        for position in range(n):
            tokens[position] = at + position
        caches[at // CHUNK % endpoints].store(None, at + 1, hashes, tokens)
    held = sum(cache.n_blocks for cache in caches)
    if held != entries or index.n_dropped:
        raise RuntimeError(f"{held} of {entries} blocks, {index.n_dropped} dropped")
    return (rss_bytes([os.getpid()]) - before) / entries


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.index_memory", description=__doc__)
    parser.add_argument("--entries", type=int, default=10_000_000)
    parser.add_argument("--endpoints", type=int, default=8)
    given = parser.parse_args(arguments)
    if given.entries < 1 or not 1 <= given.endpoints <= 1024:
        parser.error("at least one entry, and 1 to 1024 endpoints")
    found = bytes_per_entry(given.entries, given.endpoints)
    print(f"{given.entries:,} entries at {given.endpoints} endpoints: {found:.1f} bytes per entry")
    return 0


if __name__ == "__main__":
    sys.exit(main())
