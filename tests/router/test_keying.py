"""A prompt's text to the hashes of its blocks, against the canonical form in plain Python."""

import json
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router._hash import block_hashes
from router._keying import text_keys

BLOCK = 256


def canonical(text: bytes) -> bytes:
    """White space outside strings left out; a string that does not end goes on to the end."""
    pieces = re.findall(rb'"(?:[^"\\]|\\.)*(?:"|\\?\Z)|[^"]', text, re.S)
    return b"".join(piece for piece in pieces if piece not in b" \n\t\r" or not piece)


def keys_of(text: bytes, namespace: bytes = b"m") -> list[int]:
    return list(block_hashes(namespace, canonical(text), BLOCK))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text('ab"\\ \n\té', max_size=200),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(' "\\'), inner, max_size=4),
    max_leaves=30,
)
SCRAPS = st.lists(
    st.sampled_from(
        [b'"', b"\\", b" ", b"\n", b"\t", b"\r", b"a" * 100, b"{", b"]", b"\0", b"\xff"]
    ),
    max_size=200,
).map(b"".join)


def spellings(value: Any) -> list[bytes]:
    return [
        json.dumps(value, separators=separators, indent=indent).encode()
        for separators in ((",", ":"), (", ", ": "), (" \t, ", " :\r\n"))
        for indent in (None, 0, 3)
    ]


@settings(deadline=None)
@given(JSON)
def test_space_outside_strings_does_not_count(value: Any) -> None:
    # Twice, and behind a block's worth of text, so that blocks come to be.
    value = ["x" * 250, value, value]
    compact, *others = spellings(value)
    expected = list(block_hashes(b"m", compact, BLOCK))
    for text in (compact, *others):
        assert list(text_keys(b"m", [text])) == expected


@settings(max_examples=300, deadline=None)
@given(SCRAPS)
def test_whatever_the_bytes_are(text: bytes) -> None:
    assert list(text_keys(b"m", [text])) == keys_of(text)


@settings(deadline=None)
@given(st.binary(max_size=2000), st.lists(st.integers(0, 2000), max_size=8))
def test_text_that_comes_in_pieces(text: bytes, cuts: list[int]) -> None:
    cuts = [0, *sorted(cuts), len(text)]
    pieces = [text[start:end] for start, end in pairwise(cuts)]
    assert list(text_keys(b"m", pieces, is_json=False)) == list(block_hashes(b"m", text, BLOCK))


def message(n: int, size: int = 300) -> dict[str, str]:
    return {"role": "user", "content": f"{n} " + "lorem " * (size // 6)}


@settings(deadline=None)
@given(st.lists(st.integers(1, 900), min_size=1, max_size=6), st.integers(1, 900))
def test_a_longer_conversation_begins_with_the_blocks_of_the_shorter(
    sizes: list[int], more: int
) -> None:
    turns = [message(n, size) for n, size in enumerate(sizes)]
    before = text_keys(b"m", [json.dumps(turns).encode()])
    after = text_keys(b"m", [json.dumps([*turns, message(99, more)]).encode()])
    # All but the last, which the closing bracket may stand in.
    same = (len(json.dumps(turns, separators=(",", ":"))) - 1) // BLOCK
    assert len(before) - same in (0, 1)
    assert after[:same] == before[:same]
    assert not set(after[same:]) & set(before[same:])


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (b'"a b', b'"ab'),
        (b'"a  b', b'"a b'),
        (b'"\\u00e9', '"é'.encode()),
        (b'"\\n', b'"\n'),
        (b'"\\/', b'"/'),
        (b'"\\" x', b'"\\"x'),
        (b'"\\\\" ,"', b'"\\\\" , " '),
        (b"[12, 3", b"[1, 23"),
    ],
)
def test_what_differs_as_sent_is_told_apart(one: bytes, other: bytes) -> None:
    tail = b"z" * 600
    first, second = text_keys(b"m", [one + tail]), text_keys(b"m", [other + tail])
    assert not set(first) & set(second)


def test_arrays_of_token_ids_are_keyed_by_their_numbers() -> None:
    ids = list(range(5000, 6000))
    loose, tight = json.dumps(ids).encode(), json.dumps(ids, separators=(",", ":")).encode()
    assert text_keys(b"m", [loose]) == text_keys(b"m", [tight])
    assert text_keys(b"m", [loose[:-1] + b", 7]"])[:-1] == text_keys(b"m", [tight])[:-1]


def test_namespaces_share_nothing() -> None:
    text = json.dumps([message(1, 3000)]).encode()
    found = [set(text_keys(name, [text])) for name in (b"a", b"b", b"ab", b"", b"a\0")]
    assert len(set().union(*found)) == sum(map(len, found)) > 0


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 511, 512, 5_000_000])
def test_only_whole_blocks_count(size: int) -> None:
    text = b'"' + b"y" * (size - 1) if size else b""
    keys = text_keys(b"m", [text])
    assert len(keys) == size // BLOCK
    assert len(set(keys)) == len(keys)
    assert 0 not in keys
    assert text_keys(b"m", []) == text_keys(b"m", [b"", b""]) == text_keys(b"m", [b" \n" * 500])
