"""The event scanner: what it knows must not depend on how the bytes came."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.http import _event_window
from gateway.http._events import EndMark

EVENTS = (
    b"data: a\n\n",
    b"data:b\r\n\r\n",
    b": comment\n\n",
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
    b'data: {"error":{"message":"x"}}\n\n',
    b'data: {"type":"response.completed","usage":{"input_tokens":5,"output_tokens":9}}\n\n',
    b'data: {"usage":{"prompt_tokens":3,"completion_tokens":4,'
    b'"prompt_tokens_details":{"cached_tokens":2}}}\n\n',
    b"data: [DONE]\n\n",
    b"\n",
    b"\r\n",
    b"id: 7\n\n",
    b"data: " + b"x" * 70_000 + b"\n\n",
    b"data: cut",
)


def cut(data, edges):
    at = sorted({edge % (len(data) + 1) for edge in edges} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(at)]


edges = st.lists(st.integers(0, 1 << 17), max_size=10)


@given(st.lists(st.sampled_from(EVENTS), max_size=6), edges, st.sampled_from(EndMark))
def test_pieces_are_as_good_as_the_whole(events, reads, mark):
    stream = b"".join(events)
    whole = _event_window.events([stream], mark)
    pieces = _event_window.events(cut(stream, reads), mark)
    if any(len(event) > 60_000 for event in events):
        # An event above the bound is looked into only where it came in one piece.
        assert (whole.n_events, whole.in_event) == (pieces.n_events, pieces.in_event)
    else:
        assert whole == pieces


@given(st.lists(st.sampled_from(EVENTS[:4]), max_size=8))
def test_data_events_are_counted_and_nothing_else(events):
    seen = _event_window.events([b"".join(events)])
    assert seen.n_events == sum(b"data:" in event for event in events)


@pytest.mark.parametrize(
    ("mark", "event"),
    [
        (EndMark.DONE, b"data: [DONE]\n\n"),
        (EndMark.DONE, b"data:[DONE]\r\n\r\n"),
        (EndMark.MESSAGE_STOP, b'event: message_stop\ndata: {"type":"message_stop"}\n\n'),
        (EndMark.RESPONSE_OVER, b'data: {"type":"response.completed"}\n\n'),
        (EndMark.RESPONSE_OVER, b'data: {"type":"response.incomplete"}\n\n'),
        (EndMark.RESPONSE_OVER, b'data: {"type":"response.failed"}\n\n'),
    ],
)
def test_end_marks(mark, event):
    assert _event_window.events([event], mark).over
    assert not _event_window.events([event[:-1]], mark).over


@given(st.binary(max_size=9000), edges)
def test_usage_near_the_end_of_a_json_body(text, reads):
    body = b'{"text":"' + text.hex().encode() + b'","usage":{"prompt_tokens": 12, '
    body += b'"completion_tokens": 34}}'
    for pieces in ([body], cut(body, reads)):
        seen = _event_window.json_body(pieces)
        assert (seen.tokens_in, seen.tokens_out, seen.cached) == (12, 34, -1)


@given(st.lists(st.binary(max_size=30), max_size=6))
def test_bytes_never_break_it(pieces):
    _event_window.events(pieces, EndMark.MESSAGE_STOP)
    _event_window.json_body(pieces)
