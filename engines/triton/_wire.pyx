"""See _wire.pxd."""

import struct

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

cdef enum:
    # Wire types.
    VARINT = 0
    FIXED64 = 1
    LENGTH = 2
    FIXED32 = 5


cdef inline bint read_varint(const char** p, const char* end, uint64_t* value) noexcept nogil:
    cdef int shift = 0
    cdef uint8_t byte
    value[0] = 0
    while p[0] < end and shift < 64:
        byte = <uint8_t>p[0][0]
        p[0] += 1
        value[0] |= <uint64_t>(byte & 0x7f) << shift
        if byte < 0x80:
            return True
        shift += 7
    return False


cdef bint next_field(const char** p, const char* end, int* number, Piece* piece,
                     uint64_t* value) noexcept nogil:
    """One field: a length-delimited one in `piece`, a varint in `value`. False: malformed."""
    cdef uint64_t key, size
    cdef int wire
    piece.start = NULL
    piece.size = 0
    value[0] = 0
    if not read_varint(p, end, &key) or key >> 3 == 0 or key >> 3 > 0x1fffffff:
        return False
    number[0] = <int>(key >> 3)
    wire = key & 7
    if wire == VARINT:
        return read_varint(p, end, value)
    if wire == LENGTH:
        if not read_varint(p, end, &size):
            return False
        piece.start = p[0]
    elif wire == FIXED64:
        size = 8
    elif wire == FIXED32:
        size = 4
    else:
        return False
    if size > <uint64_t>(end - p[0]):
        return False
    piece.size = size
    p[0] += size
    return True


cdef bint read_response(const char* p, size_t n, Response* response) noexcept nogil:
    cdef const char* end = p + n
    cdef int number
    cdef uint64_t value
    cdef Piece piece
    memset(response, 0, sizeof(Response))
    while p < end:
        if not next_field(&p, end, &number, &piece, &value):
            return False
        if number == 1:
            response.error = piece
        elif number == 2 and not read_infer(piece, response):
            return False
    return True


cdef bint read_infer(Piece message, Response* response) noexcept nogil:
    """A ModelInferResponse: outputs in order, their contents in the same order beside them."""
    cdef const char* p = message.start
    cdef const char* end = p + message.size
    cdef int number, n_raw = 0
    cdef uint64_t value
    cdef Piece piece
    while p < end:
        if not next_field(&p, end, &number, &piece, &value):
            return False
        if number == 4:
            if is_final(piece):
                response.is_final = True
        elif number == 5:
            if response.n_outputs < MAX_OUTPUTS:
                if not read_output(piece, &response.outputs[response.n_outputs]):
                    return False
                response.n_outputs += 1
        elif number == 6:
            if n_raw < MAX_OUTPUTS:
                response.outputs[n_raw].raw = piece
            n_raw += 1
    return True


cdef bint read_output(Piece message, Output* output) noexcept nogil:
    cdef const char* p = message.start
    cdef const char* end = p + message.size
    cdef int number
    cdef uint64_t value
    cdef Piece piece
    while p < end:
        if not next_field(&p, end, &number, &piece, &value):
            return False
        if number == 1:
            output.name = piece
        elif number == 2:
            output.datatype = piece
    return True


cdef bint is_final(Piece entry) noexcept nogil:
    """Of the parameters' entries: {"triton_final_response": true}."""
    cdef const char* p = entry.start
    cdef const char* end = p + entry.size
    cdef int number
    cdef uint64_t value
    cdef Piece piece, key, parameter
    memset(&key, 0, sizeof(Piece))
    memset(&parameter, 0, sizeof(Piece))
    while p < end:
        if not next_field(&p, end, &number, &piece, &value):
            return False
        if number == 1:
            key = piece
        elif number == 2:
            parameter = piece
    # An InferParameter: field 1, a varint, is its truth value.
    return (
        key.size == 21 and memcmp(key.start, b"triton_final_response", 21) == 0
        and parameter.size >= 2 and parameter.start[0] == 0x08 and parameter.start[1] == 1
    )


cdef const Output* output_of(const Response* response, const char* name, size_t n) noexcept nogil:
    cdef int index
    for index in range(response.n_outputs):
        if response.outputs[index].name.size == n and (
                memcmp(response.outputs[index].name.start, name, n) == 0):
            return &response.outputs[index]
    return NULL


cdef Piece item_of(const Output* output, int index) noexcept nogil:
    cdef Piece found
    cdef const char* p
    cdef const char* end
    cdef uint32_t size
    found.start = NULL
    found.size = 0
    if output == NULL or output.raw.start == NULL:
        return found
    p = output.raw.start
    end = p + output.raw.size
    while end - p >= 4:
        memcpy(&size, p, 4)
        p += 4
        if size > <size_t>(end - p):
            break
        if index == 0:
            found.start = p
            found.size = size
            break
        index -= 1
        p += size
    return found


cdef int64_t number_of(const Output* output) noexcept nogil:
    cdef int32_t small
    cdef uint32_t natural
    cdef int64_t large
    if output == NULL or output.raw.start == NULL or output.datatype.size < 5:
        return -1
    if output.datatype.start[output.datatype.size - 2] == c"6":
        if output.raw.size < 8:
            return -1
        memcpy(&large, output.raw.start, 8)
        return max(large, -1)
    if output.raw.size < 4:
        return -1
    if output.datatype.start[0] == c"U":
        memcpy(&natural, output.raw.start, 4)
        return natural
    memcpy(&small, output.raw.start, 4)
    return max(small, -1)


# -- requests


def varint(unsigned long long number):
    """A number as protobuf writes it."""
    out = bytearray()
    while number > 0x7f:
        out.append(number & 0x7f | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def field(int number, bytes content):
    """A length-delimited field."""
    return varint(number << 3 | LENGTH) + varint(len(content)) + content


# How an item of each datatype lies in a tensor's raw contents; BYTES has a length before it.
PACKING = {
    "BOOL": "<?", "INT32": "<i", "INT64": "<q", "UINT32": "<I", "UINT64": "<Q", "FP32": "<f",
}


def raw_contents(datatype, values):
    """A tensor's contents. KeyError: a datatype that is not known here; struct.error,
    OverflowError: a value does not fit."""
    if datatype == "BYTES":
        return b"".join([struct.pack("<I", len(value)) + value for value in values])
    return b"".join([struct.pack(PACKING[datatype], value) for value in values])


def encode_request(model, id, tensors, parameters):
    """A ModelInferRequest. `tensors`: (name, datatype, shape, values) each; `parameters`: name to
    bool."""
    out = [field(1, model.encode()), field(3, id)]
    for name, value in parameters.items():
        # map entry {1: key, 2: InferParameter{1: bool}}
        truth = field(2, varint(1 << 3 | VARINT) + varint(value))
        out.append(field(4, field(1, name.encode()) + truth))
    for name, datatype, shape, _ in tensors:
        dims = b"".join([varint(size) for size in shape])
        out.append(field(5, field(1, name.encode()) + field(2, datatype.encode()) + field(3, dims)))
    for _, datatype, _, values in tensors:
        out.append(field(7, raw_contents(datatype, values)))
    return b"".join(out)
