"""Processes and ports of this machine."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process as this machine will not know another: its number and when it started."""

    pid: int
    start: str

    def alive(self) -> bool:
        stat = read_stat(self.pid)
        return stat is not None and stat.start == self.start and stat.state != "Z"

    def kill(self, number: int) -> None:
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


@dataclass(frozen=True)
class Stat:
    state: str
    parent: int
    start: str


def read_stat(pid: int) -> Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name stands in parentheses and may hold both spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    return Stat(state=fields[0], parent=int(fields[1]), start=fields[19])


def descendants(pid: int) -> list[Process]:
    children: dict[int, list[Process]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := read_stat(int(entry))):
            children.setdefault(stat.parent, []).append(Process(int(entry), stat.start))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += [process.pid for process in below]
    return found


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def free_port() -> int:
    return free_ports(1)


def free_ports(count: int) -> int:
    """The first of that many consecutive ports that nobody listens on."""
    while True:
        with contextlib.ExitStack() as stack:
            first = 0
            with contextlib.suppress(OSError, OverflowError):
                for number in range(count):
                    probe = stack.enter_context(socket.socket())
                    probe.bind(("127.0.0.1", first and first + number))
                    first = first or int(probe.getsockname()[1])
                return first
