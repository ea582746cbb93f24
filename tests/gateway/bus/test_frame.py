"""Frames: what is said is heard, and what is no frame is refused, whatever it is."""

import contextlib

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.bus import endpoint_hash
from gateway.bus.frame import (
    MAX_CELLS,
    MAX_FRAME_BYTES,
    MAX_INSERT_BLOCKS,
    Beat,
    Cell,
    Delta,
    FrameError,
    Insert,
    Sender,
    Vector,
    VersionError,
    cell_of,
    decode,
    encode,
    prefix,
)

SENDER = Sender("pod-a:8080", 1_700_000_000_000, 2**64 - 1)
CELL = Cell(2**64 - 1, 3, 2, 0.5, 1000, 5000, 0.1, 0.0)
DELTA = Delta(SENDER, 7, [CELL], [Insert(5, bytes(range(16)))])
HEAD = prefix(SENDER)


def body(message):
    """The plain lists of a message, to be spoiled."""
    return msgspec.msgpack.decode(msgspec.msgpack.encode(message))


def frame(*path, value):
    """The frame of DELTA with another value at a place."""
    tree = body(DELTA)
    at = tree
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return HEAD + msgspec.msgpack.encode(tree)


# places in the tree: tag, sender, seq, cells, inserts
MALFORMED = {
    "empty": b"",
    "version only": b"\x01",
    "head only": HEAD,
    "no MessagePack": HEAD + b"\xc1",
    "text": b"\x01hello world, this is no frame",
    "cut": encode(DELTA)[:-1],
    "something behind": encode(DELTA) + b"\x00",
    "a map": HEAD + msgspec.msgpack.encode({"tag": "d"}),
    "a pickle": HEAD + b"\x80\x04\x95\x00\x00\x00\x00",
    "no such tag": frame(0, value="x"),
    "too short": HEAD + msgspec.msgpack.encode(["d", body(SENDER)]),
    "another sender's head": prefix(Sender("x", 1, 5)) + encode(DELTA)[9:],
    "no name": frame(1, 0, value=""),
    "a long name": frame(1, 0, value="x" * 201),
    "a name that is bytes": frame(1, 0, value=b"pod"),
    "a name that is no UTF-8": encode(Beat(Sender("xyz", 1, 1), 1)).replace(
        b"xyz", b"\xff\xfe\xfd"
    ),
    "a negative number": frame(2, value=-1),
    "a number that is text": frame(2, value="7"),
    "a number that is none": frame(2, value=7.5),
    "a hash below 0": frame(3, 0, 0, value=-1),
    "in_flight beyond int32": frame(3, 0, 1, value=2**31),
    "prefilling below 0": frame(3, 0, 2, value=-1),
    "NaN seconds": frame(3, 0, 3, value=float("nan")),
    "infinite seconds": frame(3, 0, 3, value=float("inf")),
    "negative seconds": frame(3, 0, 3, value=-0.5),
    "tokens beyond reason": frame(3, 0, 5, value=2**63),
    "an endless anchor": frame(3, 0, 6, value=1e300),
    "nil": frame(3, 0, 1, value=None),
    "too many cells": frame(3, value=[body(CELL)] * (MAX_CELLS + 1)),
    "a cell too short": frame(3, 0, value=[1, 2, 3]),
    "blocks of odd length": frame(4, 0, 1, value=bytes(15)),
    "blocks as text": frame(4, 0, 1, value="x" * 16),
    "too many blocks": frame(4, 0, 1, value=bytes(8 * MAX_INSERT_BLOCKS + 8)),
    "too many inserts": frame(4, value=[[1, b""]] * (MAX_INSERT_BLOCKS + 1)),
    "too long": HEAD + bytes(MAX_FRAME_BYTES),
    "deeper than a stack": HEAD + b"\x96\xa1d" + b"\x91" * 100_000,
    "deep where nobody looks": encode(DELTA)[:9]
    + b"\x96"
    + encode(DELTA)[10:]
    + b"\x91" * 100_000
    + b"\x00",
}


@pytest.mark.parametrize("what", MALFORMED)
def test_what_is_malformed_is_refused(what):
    with pytest.raises(FrameError) as caught:
        decode(MALFORMED[what])
    assert not isinstance(caught.value, VersionError)


@pytest.mark.parametrize("version", [0, 2, 255])
def test_other_versions_are_told_apart(version):
    with pytest.raises(VersionError, match=f"version {version}"):
        decode(bytes([version]) + encode(DELTA)[1:])
    with pytest.raises(VersionError):
        decode(bytes([version]))


@pytest.mark.parametrize("message", [DELTA, Beat(SENDER, 0), Vector(SENDER, 2**63, [CELL])])
def test_what_is_said_is_heard(message):
    assert decode(encode(message)) == message
    assert encode(message).startswith(HEAD)


def test_fields_may_be_added_within_a_version():
    tree = body(DELTA)
    tree[3][0].append("later")
    tree.append({"later": [1, 2]})
    assert decode(HEAD + msgspec.msgpack.encode(tree)) == DELTA


def test_the_largest_messages_fit():
    worst = Cell(2**64 - 1, 2**31 - 1, 2**31 - 1, 0.1, 2**53, 2**53, 0.1, 0.1)
    inserts = [Insert(2**64 - 1, bytes(8))] * MAX_INSERT_BLOCKS
    message = Delta(
        Sender("x" * 200, 2**64 - 1, 2**64 - 1), 2**64 - 1, [worst] * MAX_CELLS, inserts
    )
    assert decode(encode(message)) == message
    assert len(encode(message)) < MAX_FRAME_BYTES


def test_a_race_of_reader_and_writer_makes_no_malformed_cell():
    cell = cell_of(1, (-1, -2, -1e-18, 0.0, 0.0, -5, -6), 10.0)
    assert cell == Cell(1, 0, 0, 0.0, 0, 0, 0.0, 0.0)
    decode(encode(Delta(SENDER, 1, [cell], [])))


@given(st.binary(max_size=200))
@example(b"\x01" + b"\x00" * 8 + b"\x95")
def test_any_bytes(data):
    for candidate in (data, HEAD + data):
        with contextlib.suppress(FrameError):
            decode(candidate)


@given(st.data())
def test_any_spoiled_byte(data):
    spoiled = bytearray(encode(DELTA))
    for _ in range(data.draw(st.integers(1, 4))):
        spoiled[data.draw(st.integers(0, len(spoiled) - 1))] = data.draw(st.integers(0, 255))
    try:
        message = decode(bytes(spoiled))
    except FrameError:
        return
    assert decode(encode(message)) == message


def test_an_endpoints_hash_is_the_same_everywhere():
    assert endpoint_hash("pod-a:8000") == 0x1F393962DD2745D1
    assert endpoint_hash("pod-a:8000") != endpoint_hash("pod-a:8001")
    assert endpoint_hash("\u00e9") < 2**64
