"""What a measurement ran on: enough to judge the figures, nothing that names the machine."""

import os
import platform
import time
from pathlib import Path

import msgspec

__all__ = ["Machine", "describe"]


class Machine(msgspec.Struct, frozen=True):
    """Read once per report."""

    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    python: str
    load_average: float
    """Over the last minute: what else ran at the start."""
    date: str


def describe() -> Machine:
    """This machine, now."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(memory_bytes / 2**30, 1),
        # The numbers alone: distributions put build machines' names behind them.
        kernel="Linux " + platform.release().split("-")[0],
        python=platform.python_version(),
        load_average=round(os.getloadavg()[0], 1),
        date=time.strftime("%Y-%m-%d", time.gmtime()),
    )


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()
