"""A model as the data path sees it."""

from libc.stdint cimport int32_t, int64_t, uint64_t

from router._demand cimport Demand

cdef class Served:
    cdef readonly str name
    cdef bytes key                  # the name as UTF-8
    cdef int32_t* slots             # endpoints that list it
    cdef readonly int n_slots
    cdef int64_t* words             # its counters in this worker's column
    cdef bint exact_usage
    cdef uint64_t root              # of its prompts' block hashes, by their text
    cdef uint64_t adapter           # the same of a LoRA adapter; 0: it is none
    cdef readonly str lora          # its name, if it is an adapter
    cdef readonly str tokenizer     # of plane.tokenizing; '': prompts go by their text
    cdef size_t block_tokens        # in a block of token ids
    cdef bint asks                  # an engine is asked for them
    cdef Demand demand              # kept from fleet to fleet
    cdef bint is_native             # its endpoints are those that speak KServe's v2 protocol
    cdef bint is_held_by(self, int slot) noexcept nogil
