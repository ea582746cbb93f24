"""The walker gives back what was framed, in whatever pieces it comes."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http import _window
from gateway.http._body import Framing
from gateway.http._head import Fault

CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
LENGTH = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n"
MAX_TRAILER_BYTES = 8192

BOUNDED = settings(max_examples=300, derandomize=True, deadline=None, database=None)


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


def cut(data: bytes, edges: list[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(edge % (len(data) + 1) for edge in edges)})
    return [data[a:b] for a, b in itertools.pairwise(bounds)]


@pytest.mark.parametrize(
    ("status", "fields", "to_head", "framing"),
    [
        (b"200", b"", False, Framing.UNTIL_CLOSE),
        (b"200", b"Content-Length: 5\r\n", False, Framing.LENGTH),
        (b"200", b"Transfer-Encoding: chunked\r\n", False, Framing.CHUNKED),
        (b"200", b"", True, Framing.NO_BODY),
        (b"200", b"Content-Length: 5\r\n", True, Framing.NO_BODY),
        (b"200", b"Transfer-Encoding: chunked\r\n", True, Framing.NO_BODY),
        (b"100", b"Content-Length: 5\r\n", False, Framing.NO_BODY),
        (b"101", b"", False, Framing.NO_BODY),
        (b"199", b"Transfer-Encoding: chunked\r\n", False, Framing.NO_BODY),
        (b"204", b"Transfer-Encoding: chunked\r\n", False, Framing.NO_BODY),
        (b"205", b"", False, Framing.UNTIL_CLOSE),
        (b"304", b"Content-Length: 5\r\n", False, Framing.NO_BODY),
        (b"500", b"", False, Framing.UNTIL_CLOSE),
    ],
)
def test_framing_of_responses(
    status: bytes, fields: bytes, to_head: bool, framing: Framing
) -> None:
    head = b"HTTP/1.1 " + status + b" x\r\n" + fields + b"\r\n"
    assert _window.body([], head, False, to_head).framing == framing


@pytest.mark.parametrize(
    ("fields", "framing"),
    [
        (b"", Framing.NO_BODY),
        (b"Content-Length: 0\r\n", Framing.LENGTH),
        (b"Transfer-Encoding: chunked\r\n", Framing.CHUNKED),
    ],
)
def test_framing_of_requests(fields: bytes, framing: Framing) -> None:
    head = b"POST / HTTP/1.1\r\nHost: a\r\n" + fields + b"\r\n"
    assert _window.body([], head, True).framing == framing


def test_a_head_that_frames_nothing() -> None:
    with pytest.raises(ValueError, match="refused or incomplete"):
        _window.body([], b"GET / HTTP/1.1\r\n\r\n", True)


def test_chunk_ends_and_the_last_chunk() -> None:
    data = chunked(b"hello", b" ", b"world") + b"0\r\nA: b\r\n\r\nrest"
    body = _window.body([data], CHUNKED, True)
    assert body == _window.Body(
        payload=b"hello world",
        chunk_ends=[10, 16, 26],
        ended=True,
        leftover=b"rest",
        fault=None,
        framing=Framing.CHUNKED,
        terminated=True,
        last_chunk=26,
    )


def test_terminated_once_the_last_size_is_known() -> None:
    data = chunked(b"hello") + b"0\r\n\r\n"
    known = len(chunked(b"hello")) + 3
    for size in range(len(data)):
        assert _window.body([data[:size]], CHUNKED, True).terminated is (size >= known)


def test_until_close_takes_everything() -> None:
    body = _window.body([b"a", b"", b"b\r\n\r\n"], b"HTTP/1.1 200 OK\r\n\r\n", False)
    assert (body.payload, body.ended, body.leftover) == (b"ab\r\n\r\n", False, b"")


def test_no_body_leaves_everything() -> None:
    body = _window.body([b"next"], b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", True)
    assert (body.payload, body.ended, body.leftover) == (b"", True, b"next")


def test_a_chunk_of_4_gib_is_counted_right() -> None:
    body = _window.body([b"ffffffff\r\n" + b"x" * 1000], CHUNKED, True)
    assert (body.payload, body.fault, body.ended) == (b"x" * 1000, None, False)


def test_a_huge_length_is_counted_right() -> None:
    body = _window.body([b"x" * 1000], LENGTH % (10**18 - 1), True)
    assert (body.payload, body.fault, body.ended) == (b"x" * 1000, None, False)


@pytest.mark.parametrize("step", [1, 7, 5000, 10**6])
def test_trailer_bytes(step: int) -> None:
    def walk(size: int) -> _window.Body:
        trailer = b"A: " + b"x" * (size - 5) + b"\r\n"
        data = b"0\r\n" + trailer + b"\r\n"
        return _window.body(cut(data, list(range(0, len(data), step))), CHUNKED, True)

    # the line feeds and the empty line do not count
    assert walk(MAX_TRAILER_BYTES).ended
    assert walk(MAX_TRAILER_BYTES * 2).fault == Fault.BAD_TRAILER


def test_many_small_trailers_add_up() -> None:
    body = _window.body([b"0\r\n" + b"A: b\r\n" * 8000], CHUNKED, True)
    assert body.fault == Fault.BAD_TRAILER


@BOUNDED
@given(
    st.lists(st.binary(min_size=1, max_size=300), max_size=12),
    st.lists(st.integers(0, 10_000), max_size=40),
    st.sampled_from([b"", b"A: b\r\n", b"A:\r\nB: c\r\n"]),
    st.binary(max_size=20),
)
def test_chunks_come_back(
    payload: list[bytes], edges: list[int], trailers: bytes, rest: bytes
) -> None:
    chunks = chunked(*payload)
    data = chunks + b"0\r\n" + trailers + b"\r\n" + rest
    body = _window.body(cut(data, edges), CHUNKED, True)
    assert body.payload == b"".join(payload)
    assert (body.ended, body.fault, body.leftover) == (True, None, rest)
    ends, end = [], 0
    for piece in payload:
        end += len(chunked(piece))
        ends.append(end)
    assert body.chunk_ends == ends


@BOUNDED
@given(st.binary(max_size=500), st.lists(st.integers(0, 1000), max_size=20), st.binary(max_size=20))
def test_lengths_come_back(payload: bytes, edges: list[int], rest: bytes) -> None:
    body = _window.body(cut(payload + rest, edges), LENGTH % len(payload), True)
    assert (body.payload, body.ended, body.fault) == (payload, True, None)
    assert body.leftover == rest
    assert body.chunk_ends == []


def test_mutated_chunks_never_break_the_walker() -> None:
    rng = random.Random(2)
    alphabet = b"\r\n 0123456789abcdefg;:\t\0x"
    for _ in range(20_000):
        data = bytearray(chunked(b"hello", b"x" * rng.randint(1, 40)) + b"0\r\nA: b\r\n\r\nrest")
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data))
            data[at : at + rng.randint(0, 2)] = bytes(rng.choices(alphabet, k=rng.randint(0, 2)))
        text = bytes(data)
        whole = _window.body([text], CHUNKED, True)
        pieces = _window.body(cut(text, [rng.randrange(100) for _ in range(5)]), CHUNKED, True)
        # where it is cut changes nothing of what is read
        assert pieces._replace(last_chunk=None, leftover=b"") == whole._replace(
            last_chunk=None, leftover=b""
        )
        if whole.fault is None:
            assert pieces.leftover == whole.leftover
