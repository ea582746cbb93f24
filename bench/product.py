"""The gateway alone, in front of mock engines: for measurements that compare nothing."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from bench import processes
from bench.gwbench import free_ports, start_engine
from bench.proxies import PROXIES, Place, environment, wait_until_answers

__all__ = ["Gateway", "serving"]


class Gateway(msgspec.Struct, frozen=True):
    """A running `headgate serve`."""

    port: int
    control_pid: int
    folder: Path
    """For the caller's files; gone when the gateway is."""

    @property
    def worker_pids(self) -> list[int]:
        """Its data workers."""
        return processes.tree(self.control_pid)[1:]


@contextlib.contextmanager
def serving(
    *, n_engines: int = 2, n_chunks: int = 32, gap_us: int = 5000, first_us: int = 0
) -> Iterator[Gateway]:
    """The gateway as bench.compare runs it, unpinned, and its engines; ends them all."""
    started: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        stack.callback(lambda: processes.end_all(started))
        engine_ports = free_ports(n_engines)
        for engine_port in engine_ports:
            started.append(
                start_engine(engine_port, n_chunks=n_chunks, gap_us=gap_us, first_us=first_us)
            )
        port, admin_port = free_ports(2)
        command = PROXIES["headgate"].command(Place(port, admin_port, engine_ports, folder))
        log_path = folder / "headgate.err"
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=log,
                env=environment(),
                start_new_session=True,
            )
        started.append(process)
        if not wait_until_answers(port, process, 60):
            raise RuntimeError(f"the gateway does not answer: {log_path.read_text()[-500:]}")
        yield Gateway(port, process.pid, folder)
