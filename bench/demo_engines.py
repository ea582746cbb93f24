"""What the demo's gateway stands before: simulated engines, or a real Triton."""

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["KINDS", "Engines", "EnginesError", "start"]

KINDS = ("sim", "triton")
N_SIMULATED = 4
STOP_S = 15.0
ROOT = Path(__file__).parent.parent


class EnginesError(Exception):
    """They did not come up; the text has what they said."""


@dataclass(frozen=True)
class Engines:
    """Engines that run, and how `headgate serve` is told of them."""

    name: str
    count: int
    model: str
    arguments: tuple[str, ...]
    has_messages: bool = True
    """Anthropic's dialect is served."""


@contextlib.asynccontextmanager
async def start(kind: str) -> AsyncIterator[Engines]:
    """Of one of KINDS; ends what it started. EnginesError."""
    if kind == "sim":
        name = f"{N_SIMULATED} simulated engines, which answer with words of the question"
        yield Engines(name, N_SIMULATED, "sim", ("--sim", str(N_SIMULATED)))
        return
    async with _triton() as engines:
        yield engines


@contextlib.asynccontextmanager
async def _triton() -> AsyncIterator[Engines]:
    """The server is real, and lies with the tests; the text of its model is made up."""
    if not (ROOT / "tests" / "triton" / "serve.py").exists():
        raise EnginesError("a real Triton comes with the sources of Headgate, not with its wheel")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.triton.serve"),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = await process.stdout.readline()
        if not line:
            raise EnginesError("Triton did not start; it says why above")
        said = json.loads(line)
        with tempfile.NamedTemporaryFile("w", suffix=".yaml") as config:
            # JSON is YAML.
            json.dump({"models": {said["model"]: {"tokenizer": said["tokenizer"]}}}, config)
            config.flush()
            arguments = ("--engine", f"triton={said['url']}", "--config", config.name)
            name = "a real Triton, whose model answers with words picked at random"
            yield Engines(name, 1, said["model"], arguments, has_messages=False)
    finally:
        process.stdin.close()
        try:
            async with asyncio.timeout(STOP_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
