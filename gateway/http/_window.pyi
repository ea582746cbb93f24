"""The sans-IO layer as Python values, for tests, benchmarks and debugging."""

from typing import NamedTuple

from gateway.http._body import Framing
from gateway.http._head import Fault, FieldId

class Head(NamedTuple):
    """A parsed head. Of a request `status` is 0; of a response the first three are empty."""

    method: bytes
    target: bytes
    path: bytes
    status: int
    minor: int
    fields: list[tuple[bytes, bytes, FieldId]]
    content_length: int | None
    chunked: bool
    close: bool
    expect_continue: bool
    upgrade: bool
    indices: dict[str, int]
    size: int

class Body(NamedTuple):
    """What a walk over a body found; `chunk_ends` are offsets from the body's first byte."""

    payload: bytes
    chunk_ends: list[int]
    ended: bool
    leftover: bytes
    fault: Fault | None
    framing: Framing
    terminated: bool
    last_chunk: int | None

def head_end(data: bytes, seen: int = 0) -> int | Fault:
    """Size of the head that begins `data`, 0 if it is not all there."""

def request(data: bytes) -> Head | Fault | None:
    """The head that begins `data`; None if it is not all there."""

def response(data: bytes) -> Head | Fault | None:
    """The head that begins `data`; None if it is not all there."""

def parse_request_unmeasured(data: bytes) -> Head | Fault:
    """The request parser alone, without `head_end` before it: for fuzzing."""

def parse_response_unmeasured(data: bytes) -> Head | Fault:
    """The response parser alone, without `head_end` before it: for fuzzing."""

def body(data_pieces: list[bytes], head: bytes, is_request: bool, to_head: bool = False) -> Body:
    """Walk the pieces, one input each, as the body that `head` frames.

    A head that is itself refused or incomplete is a ValueError.
    """
