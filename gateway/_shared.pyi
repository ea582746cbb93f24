from enum import IntEnum

from router._adapters import Adapters
from router._index import Index
from router._sessions import Sessions
from router._table import Table

LATENCY_BOUNDS_S: list[float]
SHORT_BOUNDS_S: list[float]
STATUSES: tuple[int | str, ...]
FIRST_GAUGE: int

class Count(IntEnum):
    ACCEPTED = 0
    COMPLETED = 1
    CANCELLED = 2
    FAILED = 3
    REFUSED = 4
    DISPATCHED = 8
    ANSWERED = 9
    ABANDONED = 10
    DIAL_FAILED = 11
    LOST = 12
    CONDEMNED = 13
    TIMED_OUT = 14
    TURNED_AWAY = 15
    MALFORMED = 16
    CUT = 17
    RETRY_DIAL = 20
    RETRY_REUSED = 21
    RETRY_LOST = 22
    RETRY_CONDEMNED = 23
    RETRY_STATUS = 24
    RETRY_DYING = 25
    RETRY_REFUSED_BY_BUDGET = 26
    CANCEL_CLIENT_GONE = 30
    CANCEL_CLIENT_SLOW = 31
    CANCEL_PIPELINE = 32
    CLIENT_OPENED = 36
    CLIENT_CLOSED = 37
    UPSTREAM_OPENED = 38
    UPSTREAM_CLOSED = 39
    CLIENT_BYTES_IN = 40
    CLIENT_BYTES_OUT = 41
    UPSTREAM_BYTES_IN = 42
    UPSTREAM_BYTES_OUT = 43
    EVENTS = 44
    TICKS = 45
    ACCESS_LOG_DROPPED = 46
    SENT_DROPPED = 47
    IDS_KNOWN = 48
    IDS_UNKNOWN = 49
    IDS_LATE = 50
    IDS_FULL = 51
    IDS_UNLOADED = 52
    BUFFERED_BYTES = 56
    WAITING_FOR_DIAL = 57
    HELD_REQUESTS = 58
    HELD_BYTES = 59
    N_COUNTS = 64

class Area(IntEnum):
    COUNTS = 0
    REASONS = 64
    LOOP_LAG = 128
    OWN_TIME = 150
    MODELS = 192
    MODEL_WIDTH = 128
    ENDPOINTS = 8384
    ENDPOINT_WIDTH = 64
    COLUMN = 73920

class ModelWord(IntEnum):
    M_STATUS = 0
    M_TTFT = 24
    M_ITL = 46
    M_TOTAL = 68
    M_TOKENS_IN = 90
    M_TOKENS_OUT = 91
    M_TOKENS_IN_ESTIMATED = 92
    M_TOKENS_OUT_ESTIMATED = 93
    M_CACHED_TOKENS = 94
    M_HELD = 96

class EndpointWord(IntEnum):
    E_STATUS = 0
    E_TTFT = 24
    E_DISPATCHED = 46
    E_ANSWERED = 47
    E_FAILED = 48
    E_ABANDONED = 49
    E_DIALS = 50
    E_DIALS_FAILED = 51
    E_BYTES_IN = 52
    E_BYTES_OUT = 53

class Shared:
    table: Table
    n_workers: int
    fd: int
    index: Index
    sessions: Sessions
    adapters: Adapters
    def __init__(self, fd: int, n_workers: int, index_blocks: int = ...) -> None: ...
    @staticmethod
    def size(n_workers: int, index_blocks: int = ...) -> int: ...
    @staticmethod
    def create(n_workers: int, index_blocks: int = ...) -> Shared: ...
    def count(self, index: int, worker: int | None = None) -> int: ...
    def block(self, index: int, n_words: int) -> list[int]: ...
    def lose_worker(self, worker: int, reason: int) -> int: ...
