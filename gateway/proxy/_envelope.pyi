from enum import IntEnum

class JsonFault(IntEnum):
    NOT_AN_OBJECT = -1
    CUT_OFF = -2
    UNBALANCED = -3
    TOO_DEEP = -4
    TRAILING = -5
    BAD_MEMBER = -6

def probe(body: bytes, depth: int = 128) -> dict[str, bytes] | JsonFault: ...
