"""Chained 64-bit hashes of a prompt's blocks: equal hashes mean equal prompts up to that block.

A block is so many bytes: 256 of a prompt's text, or a KV block's token ids as uint32. The parent
of the first block is the root of a namespace (model, LoRA adapter, cache salt), so prompts of
different namespaces share no hash. 0 is never a hash.

The mixing step is the folded 128-bit product of wyhash (public domain, Wang Yi). It is fast and
spreads well; it does not resist an attacker, who could at worst mislead a routing decision.
"""

from libc.stdint cimport uint64_t

# The parent of first blocks.
cdef uint64_t root_of(const void* namespace, size_t size) noexcept nogil
# The hashes of all whole blocks of p[:size], into `out`; how many there are.
cdef size_t chain(uint64_t parent, const void* p, size_t size, size_t block_bytes,
                  uint64_t* out) noexcept nogil
