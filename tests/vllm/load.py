"""Requests in flight while something happens to an engine, and what became of each."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.vllm.server import MODEL

# Longer than anything here may take: a request that hangs is reported as hanging.
HANG_S = 120.0
DONE = "[DONE]"


@dataclass
class Call:
    """One completion. Prompts differ from call to call, or one prompt's cache would draw them all
    to the same replica."""

    number: int
    tokens: int
    stream: bool
    status: int = 0
    # The data of the events so far, of a stream; the whole answer otherwise.
    events: list[str] = field(default_factory=list)
    body: bytes = b""
    failure: str = ""
    ended_s: float = 0.0

    def request(self) -> dict[str, Any]:
        return {
            "model": MODEL,
            "prompt": f"{self.number} times the boat went down the river",
            "max_tokens": self.tokens,
            "temperature": 0,
            "stream": self.stream,
        }

    async def run(self, client: httpx.AsyncClient, url: str) -> None:
        try:
            async with (
                asyncio.timeout(HANG_S),
                client.stream("POST", f"{url}/v1/completions", json=self.request()) as answer,
            ):
                self.status = answer.status_code
                if self.stream and answer.status_code == 200:
                    await self._read_events(answer)
                else:
                    self.body = await answer.aread()
        except TimeoutError:
            self.failure = "hangs"
        except httpx.HTTPError as error:
            self.failure = repr(error)
        self.ended_s = time.monotonic()

    async def _read_events(self, answer: httpx.Response) -> None:
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                self.events.append(line.removeprefix("data: "))

    @property
    def completed(self) -> bool:
        """It ended as if nothing had happened: every token is there."""
        if self.failure or self.status != 200:
            return False
        if not self.stream:
            return bool(json.loads(self.body)["usage"]["completion_tokens"] == self.tokens)
        if self.events[-1:] != [DONE] or self.error is not None:
            return False
        return self._finish_reason() == "length"

    @property
    def aborted(self) -> bool:
        """The engine itself ended this stream, properly, and said that it gave up."""
        whole = self.stream and self.status == 200 and self.events[-1:] == [DONE]
        return whole and self.error is None and self._finish_reason() == "abort"

    def _finish_reason(self) -> str | None:
        reason: str | None = json.loads(self.events[-2])["choices"][0]["finish_reason"]
        return reason

    @property
    def error(self) -> dict[str, Any] | None:
        """The error a stream ended with, in the form OpenAI's libraries raise."""
        if self.failure or len(self.events) < 2 or self.events[-1] != DONE:
            return None
        last = json.loads(self.events[-2])
        error = last.get("error")
        return error if isinstance(error, dict) else None

    def __str__(self) -> str:
        kind = "stream" if self.stream else "whole"
        return (
            f"{kind} {self.number}: status {self.status}, failure {self.failure!r}, "
            f"{len(self.events)} events, ends {self.events[-2:]}, body {self.body[:300]!r}"
        )


class Load:
    """Calls that run beside the test; use inside one event loop and as a context manager."""

    def __init__(self, url: str) -> None:
        self.calls: list[Call] = []
        self._url = url
        self._client = httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None))
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Load:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    def start(self, count: int, *, tokens: int, stream: bool) -> list[Call]:
        calls = [Call(len(self.calls) + i, tokens, stream) for i in range(count)]
        self.calls += calls
        self._tasks += [asyncio.create_task(c.run(self._client, self._url)) for c in calls]
        return calls

    async def finish(self) -> None:
        await asyncio.gather(*self._tasks)


async def until(condition: Callable[[], bool], limit_s: float, what: str) -> float:
    """Poll, off the loop, because the conditions here ask servers; the seconds it took."""
    since_s = time.monotonic()
    while not await asyncio.to_thread(condition):
        if time.monotonic() - since_s > limit_s:
            raise AssertionError(f"not after {limit_s} s: {what}")
        await asyncio.sleep(0.02)
    return time.monotonic() - since_s


@contextlib.contextmanager
def explained(load: Load) -> Iterator[None]:
    """Say what became of every call when an assertion about them fails."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError("\n".join([str(error), *map(str, load.calls)])) from error
