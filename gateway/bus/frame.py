"""What gateways say to each other: one frame per message, safe to read from anybody.

A frame is a byte VERSION, 8 bytes of the sender's incarnation, and MessagePack of one tagged
array. Cells hold values, not differences: applied twice or late they do no harm. Times travel as
ages, since no two processes share a clock. Fields may be added at an array's end within a
version; whatever else changes takes another.
"""

import hashlib
from typing import Annotated

import msgspec
from msgspec import Meta

from gateway.bus.work import Work

__all__ = [
    "MAX_CELLS",
    "MAX_FRAME_BYTES",
    "MAX_INSERT_BLOCKS",
    "Beat",
    "Cell",
    "Delta",
    "FrameError",
    "Insert",
    "Message",
    "Sender",
    "Vector",
    "VersionError",
    "cell_of",
    "decode",
    "encode",
    "endpoint_hash",
    "prefix",
    "work_of",
]

VERSION = 1
HEAD_BYTES = 9
MAX_CELLS = 1024
"""As many as a table has slots; a cell takes at most 68 bytes."""
MAX_INSERT_BLOCKS = 2048
"""Of all inserts in a message: 16 KiB. At 20 ms a message these are 100,000 blocks/s."""
MAX_FRAME_BYTES = 256 << 10
MAX_SECONDS = 1.0e6

Hash = Annotated[int, Meta(ge=0)]
"""MessagePack has no integer above 2**64 - 1."""
Int32 = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Tokens = Annotated[int, Meta(ge=0, le=2**53)]
Seconds = Annotated[float, Meta(ge=0, le=MAX_SECONDS)]
Blocks = Annotated[bytes, Meta(max_length=8 * MAX_INSERT_BLOCKS)]


class FrameError(ValueError):
    """Not a frame that we could have sent."""


class VersionError(FrameError):
    """A frame of another version: from a gateway that is being rolled out, or rolled back."""


class Sender(msgspec.Struct, array_like=True, frozen=True):
    """A gateway's process."""

    name: Annotated[str, Meta(min_length=1, max_length=200)]
    """Of the gateway; a restart keeps it."""
    born_ms: Hash
    """Unix time of its start: of two incarnations of one name the later one counts."""
    incarnation: Hash
    """Random per start."""


class Cell(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """All that one gateway has put on one endpoint; see `Load` in router/_table.pxd."""

    endpoint: Hash
    """`endpoint_hash` of its name."""
    in_flight: Int32
    prefilling: Int32
    prefill_s: Seconds
    prefill_tokens: Tokens
    kv_tokens: Tokens
    anchor_age_s: Seconds = 0.0
    unseen_s: Seconds = 0.0
    """Left to compute, of prompts whose first token nobody will see."""


class Insert(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A prompt went to an endpoint: its cache will hold these blocks."""

    endpoint: Hash
    blocks: Blocks
    """Chained hashes from the prompt's first block on, 8 bytes each, little-endian."""


class Delta(msgspec.Struct, array_like=True, frozen=True, tag="d"):
    """What changed since the message before; `seq` counts them from 1, without holes."""

    sender: Sender
    seq: Hash
    cells: Annotated[list[Cell], Meta(max_length=MAX_CELLS)]
    inserts: Annotated[list[Insert], Meta(max_length=MAX_INSERT_BLOCKS)]


class Beat(msgspec.Struct, array_like=True, frozen=True, tag="b"):
    """Nothing changed since `Delta` number `seq`; who has missed that one can tell by it."""

    sender: Sender
    seq: Hash


class Vector(msgspec.Struct, array_like=True, frozen=True, tag="v"):
    """Everything, as of `Delta` number `seq`: what is not in `cells` is zero."""

    sender: Sender
    seq: Hash
    cells: Annotated[list[Cell], Meta(max_length=MAX_CELLS)]


Message = Delta | Beat | Vector

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Message)


def endpoint_hash(name: str) -> int:
    """What an endpoint is called on the bus: 64 bits of its name, the same in every gateway."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def prefix(sender: Sender) -> bytes:
    """How all frames of a sender begin, and nobody else's."""
    return bytes([VERSION]) + sender.incarnation.to_bytes(8, "little")


def encode(message: Message) -> bytes:
    """The frame of a message."""
    return prefix(message.sender) + _encoder.encode(message)


def decode(frame: bytes) -> Message:
    """The message in a frame. VersionError, FrameError: there is none."""
    if len(frame) > MAX_FRAME_BYTES:
        raise FrameError(f"{len(frame)} bytes, more than {MAX_FRAME_BYTES}")
    if frame and frame[0] != VERSION:
        raise VersionError(f"version {frame[0]}, not {VERSION}")
    try:
        message: Message = _decoder.decode(memoryview(frame)[HEAD_BYTES:])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError(str(error)) from None
    if int.from_bytes(frame[1:HEAD_BYTES], "little") != message.sender.incarnation:
        raise FrameError("head and body name two senders")
    if isinstance(message, Delta) and any(len(insert.blocks) % 8 for insert in message.inserts):
        raise FrameError("block hashes of a length that is no multiple of 8")
    return message


def cell_of(endpoint: int, work: Work, now_s: float) -> Cell:
    """Own work as it travels. What a race of reader and writer made negative is none."""
    in_flight, prefilling, prefill_s, anchor_s, unseen_until_s, prefill_tokens, kv_tokens = work
    age_s = now_s - anchor_s if prefilling > 0 else 0.0
    unseen_s = unseen_until_s - now_s
    return Cell(  # without min and max, which took half of the time
        endpoint,
        in_flight if in_flight > 0 else 0,
        prefilling if prefilling > 0 else 0,
        prefill_s if 0.0 < prefill_s < MAX_SECONDS else 0.0,
        prefill_tokens if prefill_tokens > 0 else 0,
        kv_tokens if kv_tokens > 0 else 0,
        age_s if 0.0 < age_s < MAX_SECONDS else 0.0,
        unseen_s if 0.0 < unseen_s < MAX_SECONDS else 0.0,
    )


def work_of(cell: Cell, now_s: float) -> Work:
    """A peer's cell that arrived at `now_s`, in our own time."""
    return (
        cell.in_flight,
        cell.prefilling,
        cell.prefill_s,
        now_s - cell.anchor_age_s if cell.prefilling else 0.0,
        now_s + cell.unseen_s if cell.unseen_s else 0.0,
        cell.prefill_tokens,
        cell.kv_tokens,
    )
