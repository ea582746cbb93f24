"""Heads, framing and event streams."""

from bench import _micro
from bench.micro.conftest import Measure
from bench.micro.messages import ANSWER, ANSWER_HEAD, EVENTS, REQUEST_HEAD, STREAM_HEAD, chunk

CHUNKED = b"".join(chunk(event) for event in EVENTS) + b"0\r\n\r\n"


def test_parse_request_head(measure: Measure) -> None:
    measure("head:request, 17 fields", lambda n: _micro.head_ns(REQUEST_HEAD, n))


def test_parse_response_head(measure: Measure) -> None:
    measure("head:response, 4 fields", lambda n: _micro.head_ns(STREAM_HEAD, n, False))


def test_walk_content_length(measure: Measure) -> None:
    measure("body:Content-Length, 1 KB", lambda n: _micro.body_ns(ANSWER, ANSWER_HEAD, n))


def test_walk_chunks(measure: Measure) -> None:
    measure("body:33 chunks", lambda n: _micro.body_ns(CHUNKED, STREAM_HEAD, n))


def test_scan_events(measure: Measure) -> None:
    measure("scan:one event per read", lambda n: _micro.scan_ns(EVENTS, n))


def test_scan_joined_events(measure: Measure) -> None:
    joined = [b"".join(EVENTS)]
    measure("scan:33 events in one read", lambda n: _micro.scan_ns(joined, n))


def test_scan_split_events(measure: Measure) -> None:
    data = b"".join(EVENTS)
    pieces = [data[at : at + 100] for at in range(0, len(data), 100)]
    measure("scan:reads of 100 B, across events", lambda n: _micro.scan_ns(pieces, n))


def test_build_request_head(measure: Measure) -> None:
    measure("build:request, 17 fields", lambda n: _micro.build_ns(REQUEST_HEAD, n))


def test_build_response_head(measure: Measure) -> None:
    measure("build:response, 4 fields", lambda n: _micro.build_ns(STREAM_HEAD, n, False))
