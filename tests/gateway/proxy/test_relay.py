"""The relay, by properties: whatever the engine's chunks and the network's reads are.

Expected values come from the payload that was generated, never from a second relay.
"""

import itertools

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy import _window

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\n\r\n"
EVENTS, JSON, OPAQUE = 0, 1, 2
AS_SENT, CHUNKS, BARE = 0, 1, 2
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error":{}}\n\n'

events = st.one_of(
    st.binary(max_size=40).map(
        lambda text: b"data: " + text.replace(b"\n", b"").replace(b"\r", b"") + b"\n\n"
    ),
    st.sampled_from(
        [
            b": comment\n\n",
            b"event: x\r\ndata: y\r\n\r\n",
            b"\n",
            b'data: {"usage":{"completion_tokens":7}}\n\n',
            b"data: " + b"z" * 3000 + b"\n\n",
            b"id: 1\ndata: a\ndata: b\n\n",
        ]
    ),
)
streams = st.lists(events, max_size=8).map(b"".join)


def cut(data: bytes, edges: list[int]) -> list[bytes]:
    """The data in pieces; edges are taken modulo its size, none is empty."""
    at = sorted({edge % (len(data) + 1) for edge in edges} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(at)]


def chunked(pieces: list[bytes], trailers: bytes = b"") -> bytes:
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces if piece)
    return body + b"0\r\n" + trailers + b"\r\n"


def read(wire: bytes, *, whole: bool = True) -> bytes:
    """What a strict client makes of a chunked body."""
    client = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 22)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    client.receive_data(CHUNKED + wire)
    payload = b""
    while True:
        event = client.next_event()
        if isinstance(event, h11.Data):
            payload += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            assert whole
            assert not event.headers, "trailers were passed on"
            assert client.trailing_data[0] == b""
            return payload
        elif event is h11.NEED_DATA:
            assert not whole, "the message does not end"
            return payload


def ends_whole(payload: bytes) -> bool:
    """Whether an event could be put behind this: it ends with an empty line, or is empty."""
    lines = payload.replace(b"\r\n", b"\n")
    return lines in (b"", b"\n") or lines.endswith(b"\n\n") or lines.strip(b"\n") == b""


edges = st.lists(st.integers(0, 1 << 16), max_size=12)
trailers = st.sampled_from([b"", b"X: y\r\n", b"A: 1\r\nB: 2\r\n"])


@given(streams, edges, edges, trailers)
def test_chunks_go_out_as_whole_events_and_nothing_is_lost(payload, chunks, reads, trailer):
    wire = chunked(cut(payload, chunks), trailer)
    done = _window.relay(CHUNKED, cut(wire, reads), EVENTS, ending_frames=ERROR)
    assert (done.ended, done.fault, done.rest, done.shape) == (True, 0, 0, AS_SENT)
    assert read(b"".join(done.out)) == payload
    sent = b""
    for out, takes, ending in zip(done.out[:-1], done.takes_events, done.endings, strict=False):
        sent += out
        assert takes
        said = read(sent + ending)
        assert said.endswith(ERROR)
        before = said.removesuffix(ERROR)
        assert payload.startswith(before)
        assert ends_whole(before)


@given(streams, edges)
def test_a_stream_until_the_end_of_the_connection(payload, reads):
    payload += DONE
    done = _window.relay(UNTIL_CLOSE, cut(payload, reads), EVENTS, 1, eof=True, ending_frames=ERROR)
    assert (done.finished, done.shape) == (True, CHUNKS)
    assert read(b"".join(done.out)) == payload
    sent = b""
    for out, takes, ending in zip(done.out[:-1], done.takes_events, done.endings, strict=False):
        sent += out
        assert takes
        assert ends_whole(read(sent + ending).removesuffix(ERROR))


@given(streams, edges)
def test_such_a_stream_without_its_mark_was_cut(payload, reads):
    done = _window.relay(UNTIL_CLOSE, cut(payload, reads), EVENTS, 1, eof=True)
    assert not done.finished


@given(streams, edges, edges)
def test_http_1_0_clients_get_the_payload_alone(payload, chunks, reads):
    wire = chunked(cut(payload, chunks))
    done = _window.relay(CHUNKED, cut(wire, reads), EVENTS, http_1_0=True, ending_frames=ERROR)
    assert (done.ended, done.shape) == (True, BARE)
    assert b"".join(done.out) == payload
    sent = b""
    for out, ending in zip(done.out[:-1], done.endings, strict=False):
        sent += out
        assert ending == ERROR
        assert ends_whole(sent)


@given(st.binary(max_size=200), edges, edges, trailers)
def test_other_bodies_keep_their_chunks(payload, chunks, reads, trailer):
    pieces = cut(payload, chunks)
    wire = chunked(pieces, trailer)
    done = _window.relay(CHUNKED, cut(wire, reads), OPAQUE)
    assert done.ended
    assert b"".join(done.out) == chunked(pieces)
    assert not any(done.takes_events)


@given(st.binary(max_size=200), edges, st.binary(max_size=20))
def test_a_length_is_kept_to(payload, reads, behind):
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(payload)
    done = _window.relay(head, [*cut(payload, reads), behind], OPAQUE)
    assert b"".join(done.out) == payload
    if payload:
        assert done.ended


@given(st.integers(0, 30), edges, edges)
def test_counts_and_usage_do_not_depend_on_the_reads(n, chunks, reads):
    payload = b'data: {"choices":[]}\n\n: ping\n\n' * n
    payload += b'data: {"usage":{"prompt_tokens":3,"completion_tokens":%d}}\n\n' % n + DONE
    wire = chunked(cut(payload, chunks))
    done = _window.relay(CHUNKED, cut(wire, reads), EVENTS, 1)
    assert (done.n_events, done.tokens_out) == (n + 1, n)


@given(st.integers(1, 200_000), edges, edges)
def test_a_large_event_passes_and_makes_the_stream_abort_only(size, chunks, reads):
    payload = b"data: a\n\ndata: " + b"x" * size + b"\n\ndata: b\n\n"
    wire = chunked(cut(payload, chunks))
    done = _window.relay(CHUNKED, cut(wire, reads), EVENTS, ending_frames=ERROR)
    assert read(b"".join(done.out)) == payload
    fed = sent = 0
    whole = b""
    for piece, out, takes, ending in zip(
        cut(wire, reads), done.out, done.takes_events, done.endings, strict=False
    ):
        fed += len(piece)
        sent += len(out)
        whole += out
        assert fed - sent <= 64 * 1024 + 16, "more is held than may be"
        if takes and fed < len(wire):
            assert ends_whole(read(whole + ending).removesuffix(ERROR))


@pytest.mark.parametrize("bad", [b"x\r\n", b"5;a=b\r\n", b"5\n", b"2\r\nabc\r\n", b"\r\n"])
@given(streams, edges, edges)
def test_a_fault_leaves_what_can_be_ended(bad, payload, chunks, reads):
    wire = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in cut(payload, chunks) if p) + bad
    done = _window.relay(CHUNKED, cut(wire, reads), EVENTS, ending_frames=ERROR)
    assert done.fault < 0
    sent = b"".join(done.out)
    ending = (
        done.endings[-1]
        if done.endings
        else _window.relay(CHUNKED, [b"1"], EVENTS, ending_frames=ERROR).endings[0]
    )
    assert payload.startswith(read(sent + ending).removesuffix(ERROR))


@pytest.mark.parametrize("status", [204, 304])
def test_answers_without_a_body_end_at_once(status):
    head = b"HTTP/1.1 %d X\r\nTransfer-Encoding: chunked\r\n\r\n" % status
    assert _window.relay(head, [], OPAQUE).ended
    assert _window.relay(CHUNKED, [], OPAQUE, to_head=True).ended


def test_what_is_no_head_is_a_value_error():
    with pytest.raises(ValueError, match="head"):
        _window.relay(b"HTTP/1.1 200 OK\r\n", [])
