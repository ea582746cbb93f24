"""Triton's gRPC messages as bytes: the fields of KServe's v2 protocol that a generation needs.

Field numbers: `inference.GRPCInferenceService` (its grpc_service.proto in Triton's `common`);
encoding: protobuf's. Written and read by hand because a stream brings one message per token, of
which a text and a few numbers are wanted.
"""

from libc.stdint cimport int64_t, uint64_t

cdef enum:
    MAX_OUTPUTS = 16        # of one response; further ones are not looked at

cdef struct Piece:
    # A part of a message, as it lies in memory.
    const char* start
    size_t size

cdef struct Output:
    Piece name
    Piece datatype
    Piece raw               # its contents

cdef struct Response:
    # A ModelStreamInferResponse.
    Piece error             # size 0: none
    bint is_final           # the last one of its request
    int n_outputs
    Output[MAX_OUTPUTS] outputs

# Find the parts of a message; False: it is none. They point into `p`.
cdef bint read_response(const char* p, size_t n, Response* response) noexcept nogil

# The output of this name; NULL: there is none.
cdef const Output* output_of(const Response* response, const char* name, size_t n) noexcept nogil

# Item `index` of a BYTES tensor (4 bytes of length before each); size 0 if there is none.
cdef Piece item_of(const Output* output, int index) noexcept nogil

# The first number of an integer tensor; -1: there is none.
cdef int64_t number_of(const Output* output) noexcept nogil
