"""Parts of the data path as Python values, for tests: the relay of response bodies, the queue."""

from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

class Relayed(NamedTuple):
    """What a relay made of its input so far."""

    out: list[bytes]
    """What went out after each piece; the last is of `finish`, if the connection's end was told."""
    ended: bool
    finished: bool
    """`finish` said that the body is whole."""
    fault: int
    """Negative: that piece was refused, and nothing behind it was fed."""
    rest: int
    """Bytes of the last piece that belong to another message."""
    n_events: int
    tokens_out: int
    takes_events: list[bool]
    """After each piece: could events be put behind what has gone out?"""
    endings: list[bytes]
    """After each piece: what would have ended the body with `ending_frames`."""
    shape: int

def relay(
    head: bytes,
    pieces: list[bytes],
    kind: int = 0,
    end_mark: int = 0,
    http_1_0: bool = False,
    to_head: bool = False,
    rewriter: Any = None,
    eof: bool = False,
    ending_frames: bytes = b"",
) -> Relayed:
    """Relay the pieces of a body that `head` frames. ValueError: not a response's head."""

class Queue:
    """A `Waiting` whose guests go when `has_room(wants)` says so."""

    n: int
    n_bytes: int
    asked: list[Hashable]
    """Names, in the order in which they were asked whether there is room for them."""
    went: list[Hashable]
    expelled: list[Hashable]
    told: list[Hashable]
    def __init__(
        self, most: int, most_bytes: int, has_room: Callable[[Hashable], bool]
    ) -> None: ...
    def join(
        self,
        name: Hashable,
        wants: Hashable,
        priority: int,
        since_s: float,
        n_bytes: int,
        now_s: float,
        only: int = -1,
    ) -> bool:
        """False: it was not taken."""

    def leave(self, name: Hashable, now_s: float) -> None: ...
    def n_ahead(self, wants: Hashable, priority: int, since_s: float) -> int: ...
    def is_ahead(self, wants: Hashable, priority: int, since_s: float) -> bool: ...
    def free(self, slot: int) -> None: ...
    def is_due(self, slot: int) -> bool: ...
    def turn(self, now_s: float) -> None: ...
    def tell(self, now_s: float) -> None: ...
    def turn_in_s(self, now_s: float) -> int: ...

def triton_answer(
    generation: Any, prompts: list[str], messages: Iterable[tuple[int, bytes]]
) -> bytes:
    """What a client gets of `messages`: ModelStreamInferResponses, each of a choice."""
