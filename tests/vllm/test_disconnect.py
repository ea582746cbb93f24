"""A client that goes away frees the engine: nobody pays for tokens that nobody reads."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine
from typing import Any

import anthropic
import httpx
import openai
import pytest

from tests.vllm.server import MODEL, Server

pytestmark = pytest.mark.engines

# Generous for machines that others use too; under a second is usual.
CEILING_S = 5.0
START_S = 30.0
# A quarter of a minute and more of computing: an answer that merely ended is not taken for freed.
TOKENS = 8000
MESSAGES: list[Any] = [{"role": "user", "content": "Tell me a story about the river."}]
EVENTS = 20


async def leave_openai_stream(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(
            model=MODEL, messages=MESSAGES, max_tokens=TOKENS, stream=True
        )
        for _ in range(EVENTS):
            await anext(stream)
        await stream.close()


async def leave_anthropic_stream(url: str) -> None:
    async with anthropic.AsyncAnthropic(base_url=url, api_key="none", max_retries=0) as client:
        stream = await client.messages.create(
            model=MODEL, messages=MESSAGES, max_tokens=TOKENS, stream=True
        )
        for _ in range(EVENTS):
            await anext(stream)
        await stream.close()


async def leave_before_the_answer(url: str) -> None:
    body = {"model": MODEL, "prompt": "Once upon a time", "max_tokens": TOKENS}
    async with httpx.AsyncClient(timeout=60) as client:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.5):
                await client.post(f"{url}/v1/completions", json=body)
                pytest.fail("the answer came before the client left")


async def leave_several_choices(url: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.completions.create(
            model=MODEL, prompt="Once upon a time", n=4, max_tokens=TOKENS // 4, stream=True
        )
        for _ in range(EVENTS):
            await anext(stream)
        await stream.close()


LEAVE: dict[str, Callable[[str], Coroutine[None, None, None]]] = {
    "openai_stream": leave_openai_stream,
    "anthropic_stream": leave_anthropic_stream,
    "before_the_answer": leave_before_the_answer,
    "several_choices": leave_several_choices,
}


def running_requests(servers: list[Server]) -> int:
    return sum(server.running_requests() for server in servers)


def wait_idle(servers: list[Server], limit_s: float) -> float:
    since_s = time.monotonic()
    while running_requests(servers):
        assert time.monotonic() - since_s < limit_s, f"still running after {limit_s} s"
        time.sleep(0.01)
    return time.monotonic() - since_s


@pytest.mark.parametrize("how", LEAVE)
def test_disconnect_frees_the_engine(
    base_url: str, pair: list[Server], how: str, figure: Callable[[str], None]
) -> None:
    wait_idle(pair, START_S)
    before = sum(server.generated_tokens() for server in pair)
    asyncio.run(LEAVE[how](base_url))
    freed_s = wait_idle(pair, CEILING_S)
    spent = sum(server.generated_tokens() for server in pair) - before
    assert 0 < spent < TOKENS * 0.9
    figure(f"disconnect, {how}: engine free after {freed_s * 1000:.0f} ms ({spent} tokens made)")


def test_many_disconnects_at_once(
    base_url: str, pair: list[Server], figure: Callable[[str], None]
) -> None:
    async def leave_all() -> None:
        await asyncio.gather(*(leave_openai_stream(base_url) for _ in range(8)))

    wait_idle(pair, START_S)
    asyncio.run(leave_all())
    freed_s = wait_idle(pair, CEILING_S)
    figure(f"disconnect, 8 streams at once: engines free after {freed_s * 1000:.0f} ms")
