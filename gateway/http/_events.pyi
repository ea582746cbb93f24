from enum import IntEnum

class EndMark(IntEnum):
    NO_MARK = 0
    DONE = 1
    MESSAGE_STOP = 2
    RESPONSE_OVER = 3

# Its methods are C only; `_event_window` feeds one from Python.
class Scanner: ...
