"""What can be done to an engine, and how long that may take. Light: the command line has it too."""

from collections.abc import Mapping
from enum import StrEnum

__all__ = ["GRACE_S", "TIMEOUT_S", "Action"]


class Action(StrEnum):
    """What can be done to an engine."""

    LOAD = "load"
    UNLOAD = "unload"
    LOAD_ADAPTER = "load_adapter"
    UNLOAD_ADAPTER = "unload_adapter"
    SLEEP = "sleep"
    WAKE = "wake"


TIMEOUT_S: Mapping[Action, float] = {
    Action.LOAD: 600.0,
    Action.UNLOAD: 120.0,
    Action.LOAD_ADAPTER: 120.0,
    Action.UNLOAD_ADAPTER: 60.0,
    Action.SLEEP: 120.0,
    Action.WAKE: 300.0,
}
"""How long a caller waits who does not say."""
GRACE_S = 30.0
"""For requests that run when an engine is to sleep: most answers are over by then."""
