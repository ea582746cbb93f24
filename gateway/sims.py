"""`headgate serve --sim N`: simulated engines in a child process, for trying things out."""

import asyncio
import logging
import re

from gateway.spawn import python_module

__all__ = ["Sims"]

log = logging.getLogger("headgate.sim")

READY = re.compile(rb"^(\S+) ready on (http://\S+)")
RESTART_S = 1.0
START_S = 30.0


class Sims:
    """One child process with `count` simulated engines; restarted on the same ports if it dies."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.urls: dict[str, str] = {}
        """Name -> URL, complete once `start` has returned."""
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start them and wait until all are ready. RuntimeError: they did not come up."""
        await self._spawn([0])
        try:
            async with asyncio.timeout(START_S):
                while len(self.urls) < self.count and await self._read_line():
                    pass
        except TimeoutError:
            pass
        if len(self.urls) < self.count:
            await self.stop()
            raise RuntimeError(f"only {len(self.urls)} of {self.count} simulated engines came up")
        self._task = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """End the child process."""
        if self._task is not None:
            self._task.cancel()
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def _spawn(self, ports: list[int]) -> None:
        options = ["--replicas", str(self.count), "--sigterm", "quit", "--until-eof"]
        for port in ports:
            options += ["--port", str(port)]
        command, env = python_module("headgate", "sim", *options)
        self._process = await asyncio.create_subprocess_exec(
            *command,
            env=env,
            stdin=asyncio.subprocess.PIPE,  # held open: its end tells the child that we are gone
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )

    async def _read_line(self) -> bool:
        """Take one line of the child's output. False at its end."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        found = READY.match(line)
        if found:
            self.urls[found[1].decode()] = found[2].decode()
        return bool(line)

    async def _keep(self) -> None:
        ports = [int(url.rpartition(":")[2]) for _, url in sorted(self.urls.items(), key=_number)]
        while True:
            while await self._read_line():
                pass
            assert self._process is not None
            code = await self._process.wait()
            log.error("the simulated engines ended (code %s); starting them again", code)
            await asyncio.sleep(RESTART_S)
            await self._spawn(ports)


def _number(item: tuple[str, str]) -> int:
    """sim-10 after sim-9."""
    return int(item[0].rpartition("-")[2])
