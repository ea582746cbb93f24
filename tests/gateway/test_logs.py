"""What reaches the gateway's log, as a process of its own writes it."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import logging
from gateway.logs import configure_logs
configure_logs("info", "json")
logging.getLogger({logger!r}).{level}("it happened")
"""


@pytest.mark.parametrize(
    ("logger", "level", "told"),
    [
        ("headgate.grpc", "info", True),
        ("headgate.grpc", "debug", False),
        # Garbage on the admin port is worth a warning to uvicorn.
        ("uvicorn.error", "warning", False),
        ("uvicorn.error", "error", True),
    ],
)
def test_what_is_told_and_in_the_format_asked_for(logger, level, told):
    command = [sys.executable, "-c", SCRIPT.format(logger=logger, level=level)]
    log = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    messages = [json.loads(line)["message"] for line in log.splitlines()]
    assert messages == (["it happened"] if told else [])
