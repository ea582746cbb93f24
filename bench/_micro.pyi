"""Loops in C around the parts of the data path: mean nanoseconds per operation.

Each runs `rounds` times over the same input, which must be one the gateway accepts: ValueError.
"""

from array import array

from router._index import Matcher
from router._policy import Policy
from router._router import Router
from router._table import Table

def head_ns(data: bytes, rounds: int, is_request: bool = True) -> float:
    """Measure and parse a head."""

def body_ns(data: bytes, head_data: bytes, rounds: int, is_request: bool = False) -> float:
    """Walk a whole body, in one input, as its head frames it."""

def scan_ns(pieces: list[bytes], rounds: int) -> float:
    """Scan one piece of an event stream's payload; the last piece ends in `data: [DONE]`."""

def envelope_ns(body: bytes, rounds: int) -> float:
    """Read the envelope of a request's JSON body."""

def relay_ns(head_data: bytes, pieces: list[bytes], kind: str, rounds: int) -> float:
    """Relay one piece of a response body, which the pieces are together.

    `kind`: 'events', 'json' or 'opaque'.
    """

def pick_ns(policy: Policy, table: Table, n_slots: int, rounds: int) -> float:
    """Pick among slots 0 to n_slots - 1 and book the request on worker 0's load."""

def decisions_ns(
    router: Router, namespace: bytes, texts: list[bytes], n_slots: int, rounds: int
) -> list[int]:
    """Route a prompt's text among slots 0 to n_slots - 1, from JSON to the booking: each time.

    CPU time of the thread, so that a busy machine does not count; a clock's reading is in it.
    ValueError if the policy reads prompts and none of them was found anywhere.
    """

def match_ns(matcher: Matcher, prompts: list[array[int]], n_slots: int, rounds: int) -> float:
    """Look up one block of prompts."""

def build_ns(data: bytes, rounds: int, is_request: bool = True) -> float:
    """Write the head anew from its parsed form, as one bytes object."""
