"""Request envelopes and relayed bodies."""

import pytest

from bench import _micro
from bench.micro.conftest import Measure
from bench.micro.messages import (
    ANSWER,
    ANSWER_HEAD,
    EVENTS,
    REQUEST_BODIES,
    STREAM_HEAD,
    chunk,
)

CHUNKS = [chunk(event) for event in EVENTS] + [b"0\r\n\r\n"]


@pytest.mark.parametrize("size", REQUEST_BODIES)
def test_read_envelope(measure: Measure, size: str) -> None:
    body = REQUEST_BODIES[size]
    measure(f"envelope:{size}", lambda n: _micro.envelope_ns(body, n))


def test_relay_events(measure: Measure) -> None:
    measure(
        "relay:one event per read",
        lambda n: _micro.relay_ns(STREAM_HEAD, CHUNKS, "events", n),
    )


def test_relay_split_chunks(measure: Measure) -> None:
    data = b"".join(CHUNKS)
    pieces = [data[at : at + 100] for at in range(0, len(data), 100)]
    measure(
        "relay:reads of 100 B, across events",
        lambda n: _micro.relay_ns(STREAM_HEAD, pieces, "events", n),
    )


def test_relay_answer(measure: Measure) -> None:
    measure(
        "relay:whole JSON answer, 1 KB",
        lambda n: _micro.relay_ns(ANSWER_HEAD, [ANSWER], "json", n),
    )
