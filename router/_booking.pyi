from enum import IntEnum

from router._table import Table

class Stage(IntEnum):
    NONE = 0
    WAITING = 1
    PRODUCING = 2

class Booker:
    table: Table
    worker: int
    def __init__(self, table: Table, worker: int) -> None: ...
