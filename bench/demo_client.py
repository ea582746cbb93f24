"""One request as a client sends it, and what can be learned from its answer.

Raw HTTP and server-sent events, so that nothing hides between the gateway and the screen.
"""

import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

__all__ = ["Answer", "ask", "chat"]


@dataclass(slots=True)
class Answer:
    """An answer while it comes and after it. Times in seconds from the moment of sending."""

    path: str
    is_stream: bool = False
    status: int = 0
    endpoint: str = "-"
    policy: str = "-"
    why: str = ""
    """The rest of `x-headgate-decision`, as text."""
    reason: str = ""
    """`x-headgate-reason`: why the gateway itself refused."""
    error: str = ""
    text: str = ""
    """What has come of a stream."""
    n_tokens: int = 0
    ttft_s: float = 0.0
    total_s: float = 0.0

    def take_headers(self, headers: Any) -> None:
        """Read what the gateway says about its decision."""
        self.reason = headers.get("x-headgate-reason", "")
        words = dict(
            word.partition("=")[::2]
            # behind the ';' are the candidates' terms
            for word in headers.get("x-headgate-decision", "").partition(";")[0].split()
        )
        self.endpoint = words.pop("endpoint", "-")
        self.policy = words.pop("policy", "-")
        if words.get("dispatches") == "1":
            del words["dispatches"]  # the usual case
        self.why = ", ".join(f"{name} {value}" for name, value in words.items())


def chat(
    question: str, stream: bool, max_tokens: int, before: Sequence[dict[str, str]] = ()
) -> dict[str, object]:
    """A body that OpenAI's and Anthropic's chat paths both take; `before`: earlier turns."""
    return {
        "model": "sim",
        "stream": stream,
        "max_tokens": max_tokens,
        "messages": [*before, {"role": "user", "content": question}],
    }


async def ask(
    session: aiohttp.ClientSession, answer: Answer, body: dict[str, object]
) -> AsyncIterator[str]:
    """Send a request; yields the text as it arrives, a token each in a stream. Fills `answer`."""
    start_s = time.monotonic()
    async with session.post(answer.path, json=body) as response:
        answer.status = response.status
        answer.take_headers(response.headers)
        answer.is_stream = response.content_type == "text/event-stream"
        if answer.is_stream:
            async for line in response.content:
                piece = _piece(line)
                if piece:
                    answer.n_tokens += 1
                    answer.ttft_s = answer.ttft_s or time.monotonic() - start_s
                    answer.text += piece
                    yield piece
        else:
            reply = await response.json()
            if response.status == 200:
                answer.n_tokens = reply["usage"]["completion_tokens"]
                yield reply["choices"][0]["message"]["content"]
            else:
                answer.error = reply["error"]["message"]
    answer.total_s = time.monotonic() - start_s


def _piece(line: bytes) -> str:
    """The text in one line of an event stream; empty if it has none."""
    if not line.startswith(b"data: {"):
        return ""
    event = json.loads(line.removeprefix(b"data: "))
    if event.get("choices"):  # OpenAI
        return str(event["choices"][0]["delta"].get("content") or "")
    if event.get("type") == "content_block_delta":  # Anthropic
        return str(event["delta"]["text"])
    return ""
