"""What Python sees of the body walker: its vocabulary. `_window` runs it."""

from enum import IntEnum

class Framing(IntEnum):
    NO_BODY = 0
    LENGTH = 1
    CHUNKED = 2
    UNTIL_CLOSE = 3

class Step(IntEnum):
    MORE = 0
    DATA = 1
    CHUNK_END = 2
    END = 3
