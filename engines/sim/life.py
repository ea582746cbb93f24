"""Where an engine's process stands between its start and its end."""

from enum import Enum

__all__ = ["Life"]


class Life(Enum):
    """SERVING -> HANGING | DRAINING | DYING -> EXITED; `heal` leads from any back to SERVING."""

    SERVING = "serving"
    HANGING = "hanging"
    """SIGTERM at vLLM's defaults: nothing runs, nobody is told."""
    DRAINING = "draining"
    """SIGTERM with a shutdown timeout: what runs finishes, nothing new begins."""
    DYING = "dying"
    """The core is dead, its server not yet gone."""
    EXITED = "exited"
