"""The whole product as a process of its own, over simulated engines."""

import asyncio
import json
import re
import signal
import sys

import httpx
import uvloop

from engines.sim import SimConfig, SimEngine

__all__ = ["Product", "play_product", "until"]


class Product:
    """`python -m headgate serve` on free ports."""

    async def start(self, engines, folder, text=""):
        path = folder / "headgate.yaml"
        path.write_text(
            "listen: {port: 0}\nadmin: {port: 0, token: t}\n"
            "health: {interval_s: 0.2, backoff_s: 0.2, slow_start_s: 0}\n"
            f"engines: {json.dumps([engine.url for engine in engines])}\n" + text
        )
        self.process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "headgate",
            "serve",
            "--config",
            str(path),
            stderr=asyncio.subprocess.PIPE,
        )
        self.lines = []
        found = {}
        while len(found) < 2:
            line = (await asyncio.wait_for(self.process.stderr.readline(), 20)).decode()
            assert line, self.lines
            self.lines.append(line)
            for word in ("listening", "admin"):
                match = re.search(rf"{word} on (http://\S+)", line)
                if match:
                    found[word] = match[1]
        self.url, self.admin = found["listening"], found["admin"]
        self._reader = asyncio.create_task(self._read())
        self.client = httpx.AsyncClient(
            base_url=self.url,
            timeout=30,
            trust_env=False,
            limits=httpx.Limits(max_connections=None),
        )
        # Ready is one engine; the tests want all of them, and a worker that has heard so.
        await until(lambda: self.all_up(len(engines)))
        await until(lambda: self.all_known(len(engines)))

    async def _read(self):
        while line := await self.process.stderr.readline():
            self.lines.append(line.decode())

    async def metrics(self):
        async with httpx.AsyncClient(trust_env=False) as client:
            text = (await client.get(self.admin + "/metrics")).text
        found = {}
        for line in text.splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                found[name] = float(value)
        return found

    async def all_up(self, n):
        return len(await self.up()) == n

    async def all_known(self, n):
        """Whether a worker would send requests to so many engines."""
        if n == 0:
            return True
        async with httpx.AsyncClient(base_url=self.admin, trust_env=False) as client:
            answer = await client.post(
                "/admin/explain",
                json={"path": "/v1/completions", "body": '{"model": "sim", "prompt": "x"}'},
                headers={"authorization": "Bearer t"},
            )
        return len(answer.json().get("candidates", ())) == n

    async def up(self):
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(
                self.admin + "/admin/endpoints", headers={"authorization": "Bearer t"}
            )
        return [e["name"] for e in answer.json()["data"] if e["state"].lower() == "ready"]

    async def stop(self):
        await self.client.aclose()
        if self.process.returncode is None:
            for _ in range(2):
                self.process.send_signal(signal.SIGTERM)
                await asyncio.sleep(0.05)
        code = await asyncio.wait_for(self.process.wait(), 20)
        self._reader.cancel()
        return code


async def until(condition):
    """Wait for a condition, plain or awaitable; the scene's own limit is the patience."""
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return
        await asyncio.sleep(0.02)


def play_product(folder, scene, n_engines=2, text="", **config):
    """Run a scene with a gateway over so many engines; `text`: more of its configuration."""

    async def main():
        engines = [SimEngine(SimConfig(name=f"sim-{i}", **config)) for i in range(n_engines)]
        for engine in engines:
            await engine.start()
        house = Product()
        try:
            async with asyncio.timeout(90):
                await house.start(engines, folder, text)
                await scene(house, engines)
        finally:
            code = await house.stop()
            for engine in engines:
                await engine.stop()
        assert code == 0
        assert not [line for line in house.lines if "Traceback" in line]

    uvloop.run(main())
