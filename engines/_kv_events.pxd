"""What an engine tells of its KV cache, from the wire into a ReportedCache.

A payload is a batch `(ts, events, data_parallel_rank)`; batch and events are maps or arrays, as
the release has it (vLLM: events as arrays to 0.20, as maps from 0.24; SGLang: arrays). What does
not concern us is passed over: other fields and types of event, groups of a hybrid model whose
attention does not span the whole prompt, media other than the GPU's if nobody wants them.

A block that holds more than text (images, prompt embeddings: whatever stands in `extra_keys`
beside adapter and cache salt) gets a hash that no text has, and so do all behind it.
"""

from libc.stdint cimport int64_t, uint64_t

from engines._kv_event cimport Event
from engines._msgpack cimport Cursor, Hashes, Span, Tokens
from router._reported cimport ReportedCache

cdef class KvEvents:
    cdef readonly str model
    cdef readonly ReportedCache cache       # what the GPU holds
    cdef readonly ReportedCache others      # what other media hold; may be None
    cdef readonly size_t block_tokens       # 0: not known yet
    cdef readonly size_t n_batches
    cdef readonly size_t n_stored           # blocks, as often as they were
    cdef readonly size_t n_removed
    cdef readonly size_t n_clears           # that the engine reported
    cdef readonly size_t n_skipped          # events that do not concern us
    cdef int64_t group                      # the one we follow; -1: not known yet
    cdef Event event
    cdef Hashes hashes
    cdef Tokens tokens
    cdef bytes root_lora                    # of the root at hand, which has no salt
    cdef uint64_t root
    cdef int _events(self, Cursor* cursor) except -1
    cdef int _carry_out(self, Cursor* cursor) except -1
    cdef ReportedCache _cache_of(self, const Span* medium)
    cdef int _stored(self, ReportedCache cache, Cursor* cursor) except -1
    cdef int _stored_by_name(self, ReportedCache cache) except -1
    cdef int _store(self, ReportedCache cache, uint64_t root, bint is_salted) except -1
    cdef int _store_run(self, ReportedCache cache, bint has_parent, uint64_t parent, uint64_t root,
                        size_t first, size_t end) except -1
    cdef uint64_t _root(self, const Span* salt) except? 0
    cdef uint64_t _key_of(self, ReportedCache cache, uint64_t hash) noexcept
