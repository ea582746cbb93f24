"""Usage mode `exact`: the stripper takes out what was not asked for, however the bytes come."""

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from gateway.proxy import _window
from gateway.proxy.usage import UsageStripper

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields, separators=(",", ":")).encode() + b"\n\n"


def delta(text: str) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": None}])


def finish(**fields: object) -> bytes:
    return event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}], **fields)


USAGE = event(choices=[], usage={"prompt_tokens": 1, "completion_tokens": 2})
PRINTED = event(choices=[], system_fingerprint="fp", usage={"completion_tokens": 2})
DONE = b"data: [DONE]\n\n"

# What an engine sends, and what a client that did not ask for usage shall see of it.
CASES = {
    "plain": ([delta("a"), finish(), USAGE, DONE], [delta("a"), finish(), DONE]),
    "fingerprint": (
        [delta("a"), finish(), PRINTED, DONE],
        [delta("a"), finish(system_fingerprint="fp"), DONE],
    ),
    "fingerprint already there": (
        [finish(system_fingerprint="own"), PRINTED, DONE],
        [finish(system_fingerprint="own"), DONE],
    ),
    "two choices": ([finish(), finish(), USAGE, DONE], [finish(), finish(), DONE]),
    "no usage": ([delta("a"), finish(), DONE], [delta("a"), finish(), DONE]),
    "usage without a finish": ([delta("a"), USAGE, DONE], [delta("a"), DONE]),
    "words about usage": (
        [delta('{"usage":{}}, "choices":[]'), finish(), USAGE, DONE],
        [delta('{"usage":{}}, "choices":[]'), finish(), DONE],
    ),
    "cut in the middle": ([delta("a"), b"data: {"], [delta("a"), b"data: {"]),
    "cut after the finish": ([finish()], [finish()]),
    "comments": ([b": ping\n\n", finish(), b": ping\n\n", DONE],) * 2,
}


def cut(data: bytes, edges: list[int]) -> list[bytes]:
    at = sorted({edge % (len(data) + 1) for edge in edges} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(at)]


edges = st.lists(st.integers(0, 4096), max_size=10)


@given(st.sampled_from(sorted(CASES)), edges)
def test_any_pieces(name, reads):
    sent, seen = (b"".join(events) for events in CASES[name])
    stripper = UsageStripper()
    out = b"".join(stripper.feed(piece) for piece in cut(sent, reads)) + stripper.finish()
    assert out == seen


@given(st.sampled_from(sorted(CASES)), edges, edges)
def test_behind_the_relay(name, chunks, reads):
    sent, seen = (b"".join(events) for events in CASES[name])
    wire = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in cut(sent, chunks)) + b"0\r\n\r\n"
    done = _window.relay(CHUNKED, cut(wire, reads), rewriter=UsageStripper(), http_1_0=True)
    assert done.ended
    assert b"".join(done.out) == seen


def test_usage_deeper_in_an_event_is_not_its_usage():
    event = b'data: {"choices":[],"x":{"usage":1}}\n\n'
    assert UsageStripper().feed(event) == event
