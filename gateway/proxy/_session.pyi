import asyncio
from enum import IntEnum

from gateway.proxy._plane import Plane

class Phase(IntEnum):
    HEAD = 0
    BODY = 1
    RUNNING = 2
    LINGER = 3
    CLOSED = 4

# A Cython class that has asyncio.Protocol's methods; the loop asks for no more.
class Session(asyncio.Protocol):
    phase: int
    def __init__(self, plane: Plane) -> None: ...
