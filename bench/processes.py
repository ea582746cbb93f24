"""Processes from outside: CPU time and memory of a process tree, read from /proc (Linux)."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

__all__ = ["cpu_s", "end_all", "exit_on_sigterm", "rss_bytes", "tree"]

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def exit_on_sigterm() -> None:
    """Let SIGTERM unwind the stack: what was started is then ended."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))


def tree(pid: int) -> list[int]:
    """The process and all its descendants, itself first."""
    found, todo = [], [pid]
    while todo:
        pid = todo.pop()
        found.append(pid)
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                todo += [int(child) for child in task.read_text().split()]
            except OSError:
                continue  # the thread has ended meanwhile
    return found


def cpu_s(pids: Iterable[int]) -> float:
    """User and system time that the processes have used so far, in steps of a clock tick."""
    ticks = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks * TICK_S


def rss_bytes(pids: Iterable[int]) -> int:
    """Resident memory, summed; pages that two of them share count twice."""
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES
        except OSError:
            continue
    return total


def end_all(processes: Iterable[subprocess.Popen[bytes]], grace_s: float = 3.0) -> None:
    """End processes that were started in sessions of their own, with all they have started."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        _signal(process, signal.SIGTERM)
    deadline_s = time.monotonic() + grace_s
    for process in running:
        try:
            process.wait(max(0.01, deadline_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGKILL)
            process.wait()


def _signal(process: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
