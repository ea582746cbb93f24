"""The envelope scanner against Python's json, which is what the engines read bodies with."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy._envelope import JsonFault, probe

NAMES = (
    "model",
    "stream",
    "stream_options",
    "kv_transfer_params",
    "previous_response_id",
    "priority",
)

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(['"', "\\", '\\"', "{", "}", "[", "]", ",", ":", "\u2028"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=6) | st.sampled_from(NAMES), inner, max_size=3)
    ),
    max_leaves=8,
)


@st.composite
def spelled(draw, name):
    """A name as JSON, any of its letters escaped."""
    letters = [
        f"\\u{ord(c):04x}" if draw(st.integers(0, 4)) == 0 and ord(c) < 0x10000 else None
        for c in name
    ]
    plain = [json.dumps(c)[1:-1] for c in name]
    return '"' + "".join(e or p for e, p in zip(letters, plain, strict=True)) + '"'


@st.composite
def documents(draw):
    """(text, members in order): names may stand twice and be escaped, space may be anywhere."""
    space = st.sampled_from(["", " ", "\n", "\t\r\n"])
    members = draw(
        st.lists(st.tuples(st.sampled_from(NAMES) | st.text(max_size=6), values), max_size=6)
    )
    parts = [
        draw(space)
        + draw(spelled(name))
        + draw(space)
        + ":"
        + draw(space)
        + json.dumps(value, ensure_ascii=draw(st.booleans()))
        + draw(space)
        for name, value in members
    ]
    return draw(space) + "{" + ",".join(parts) + "}" + draw(space)


@given(documents())
def test_it_reads_what_json_reads(text):
    expected = json.loads(text)
    body = text.encode("utf-8", "surrogatepass")
    found = probe(body)
    assert isinstance(found, dict), (found, text)
    assert {name: json.loads(raw) for name, raw in found.items()} == {
        name: value for name, value in expected.items() if name in NAMES
    }


@given(documents(), st.data())
def test_cut_anywhere_it_is_refused(text, data):
    body = text.strip().encode("utf-8", "surrogatepass")
    size = data.draw(st.integers(0, len(body) - 1))
    assert isinstance(probe(body[:size]), JsonFault)


@given(documents(), st.sampled_from([b"{}", b"x", b"}", b",", b"\0", b'"a"']))
def test_bytes_behind_the_end_are_refused(text, behind):
    assert probe(text.encode("utf-8", "surrogatepass") + behind) == JsonFault.TRAILING


@given(st.binary(max_size=60))
def test_bytes_never_break_it(body):
    for data in (body, b"{" + body, b'{"model":' + body, b'{"' + body):
        found = probe(data)
        if isinstance(found, JsonFault):
            continue
        # What it lets through may still be no JSON; but if it is, both see the same model.
        try:
            expected = json.loads(data)
        except ValueError:
            continue
        assert json.loads(found.get("model", b"null")) == expected.get("model")


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b"", JsonFault.NOT_AN_OBJECT),
        (b"[]", JsonFault.NOT_AN_OBJECT),
        (b"\xef\xbb\xbf{}", JsonFault.NOT_AN_OBJECT),
        ('{"model":"x"}'.encode("utf-16-le"), JsonFault.BAD_MEMBER),
        (b'{"a":1,}', JsonFault.BAD_MEMBER),
        (b"{,}", JsonFault.BAD_MEMBER),
        (b"{'a':1}", JsonFault.BAD_MEMBER),
        (b'{"a"}', JsonFault.BAD_MEMBER),
        (b'{"a":}', JsonFault.BAD_MEMBER),
        (b'{"a":[}]}', JsonFault.UNBALANCED),
        (b'{"a":' + b"[" * 5 + b"]" * 5 + b"}", JsonFault.TOO_DEEP),
        (b'{"a":"', JsonFault.CUT_OFF),
        (b'{"a":"\\"}', JsonFault.CUT_OFF),
        (b'{"a":1', JsonFault.CUT_OFF),
    ],
)
def test_what_is_refused(body, fault):
    assert probe(body, 4) == fault


def test_depth_is_counted_to_the_bracket():
    assert probe(b'{"a":' + b"[" * 4 + b"]" * 4 + b"}", 4) == {}
