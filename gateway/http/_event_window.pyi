"""The scanner of response bodies as Python values, for tests."""

from typing import NamedTuple

from gateway.http._events import EndMark

class Seen(NamedTuple):
    """What a scanner knows after some input; -1: not said."""

    n_events: int
    in_event: bool
    over: bool
    failed: bool
    tokens_in: int
    tokens_out: int
    cached: int

def events(pieces: list[bytes], end_mark: EndMark | int = 0) -> Seen:
    """Feed the pieces of an event stream."""

def json_body(pieces: list[bytes]) -> Seen:
    """Feed the pieces of a JSON body, and end it."""
