"""What the gateway says of itself on standard error: one line per happening, text or JSON."""

import json
import logging
import sys
import time

__all__ = ["configure_logs"]


def configure_logs(level: str, style: str) -> None:
    """Set up the root of our loggers. Safe to call again (reload)."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if style == "json" else _Text())
    root = logging.getLogger("headgate")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(level.upper())
    logging.getLogger("asyncio").handlers[:] = [handler]
    # The admin port's server: our bugs, not the garbage that anybody may send there.
    logging.getLogger("uvicorn").handlers[:] = [handler]
    logging.getLogger("uvicorn").setLevel(logging.ERROR)


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s.%(msecs)03d %(levelname)-7s %(message)s", "%H:%M:%S")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
