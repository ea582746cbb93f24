"""How one generation looks on the wire: the interface of the dialects, and what they share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from json import dumps

from engines.sim.errors import ApiError
from engines.sim.job import Job
from engines.sim.text import Answer, json_pieces

__all__ = ["DONE", "Choice", "Generation", "Reply", "compact", "sse", "sse_named"]

DONE = b"data: [DONE]\n\n"


def compact(value: object) -> bytes:
    """JSON as pydantic prints it: no spaces, UTF-8 unescaped."""
    return dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def sse(data: bytes) -> bytes:
    """One event."""
    return b"data: %b\n\n" % data


def sse_named(event: str, value: object) -> bytes:
    """One event with a name, as the Responses and Messages dialects have them."""
    return b"event: %b\ndata: %b\n\n" % (event.encode(), compact(value))


@dataclass(slots=True)
class Choice:
    """One answer of a generation and the job that computes it."""

    answer: Answer
    job: Job
    pieces: list[bytes] = field(init=False)
    """Each token's text, as the inside of a JSON string."""

    def __post_init__(self) -> None:
        self.pieces = json_pieces(self.answer.pieces)

    @property
    def text(self) -> str:
        """What has been delivered; all of the answer unless the engine cut it short."""
        return "".join(self.answer.pieces[: self.job.emitted])

    @property
    def finish_reason(self) -> str:
        """Why it ended: `stop`, `length`, or `abort` by the engine."""
        return self.job.finish_reason

    @property
    def stop_reason(self) -> str | None:
        """The stop string that ended it."""
        return self.answer.stop_reason if self.finish_reason == "stop" else None


@dataclass(slots=True)
class Generation:
    """One request that generates: its identity, options and choices in wire order."""

    id: str
    """Without the dialect's prefix."""
    model: str
    created: int
    fingerprint: str
    choices: list[Choice]
    prompts: int = 1
    """Prompts in the request; choices are prompt by prompt, `n` each."""
    stream: bool = False
    include_usage: bool = False
    continuous_usage: bool = False
    cached_details: bool = True
    logprobs: bool = False
    token_ids: bool = False

    @property
    def prompt_tokens(self) -> int:
        """Each prompt once, however many answers it gets."""
        step = len(self.choices) // self.prompts
        return sum(len(choice.job.prompt) for choice in self.choices[::step])

    @property
    def completion_tokens(self) -> int:
        """Tokens delivered so far, over all choices."""
        return sum(choice.job.emitted for choice in self.choices)

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens that came from the prefix cache, each prompt once."""
        step = len(self.choices) // self.prompts
        return sum(max(0, choice.job.cached_tokens) for choice in self.choices[::step])

    def usage(self) -> dict[str, object]:
        """The `usage` object of a whole response."""
        details = None
        if self.cached_details:
            details = {
                "cached_tokens": self.cached_tokens,
                "created_cache_tokens": None,
                "multimodal_tokens": None,
            }
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "completion_tokens": self.completion_tokens,
            "prompt_tokens_details": details,
            "completion_tokens_details": None,
        }

    def final_usage(self) -> dict[str, object]:
        """The `usage` object of the chunk that ends a stream."""
        usage: dict[str, object] = {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "completion_tokens": self.completion_tokens,
        }
        if self.cached_details:
            usage["prompt_tokens_details"] = {"cached_tokens": self.cached_tokens}
        return usage


class Reply(ABC):
    """One generation in one dialect. Calls come in the order of the methods below; `whole` instead
    of the others if the request was not for a stream. Every element returned is one SSE event.
    """

    def __init__(self, generation: Generation) -> None:
        self.generation = generation

    @abstractmethod
    def opening(self) -> list[bytes]:
        """What precedes the first token. Asked for when that token is there."""

    @abstractmethod
    def delta(self, at: int, first: int, last: int, finish: str | None) -> list[bytes]:
        """Tokens `first` to `last` of choice `at`; `finish` with the last one there is."""

    @abstractmethod
    def ending(self) -> list[bytes]:
        """What follows when every choice has finished."""

    @abstractmethod
    def whole(self) -> bytes:
        """The body of a response that is not a stream."""

    def fail(self) -> None:  # noqa: B027  (most dialects keep nothing)
        """The engine failed with nobody there to be told: for what is asked for later."""

    @abstractmethod
    def broken(self, error: ApiError) -> list[bytes]:
        """What ends a stream after a failure of the engine."""

    def text(self, at: int, first: int, last: int) -> bytes:
        """JSON-escaped text of tokens `first` to `last` of a choice."""
        pieces = self.generation.choices[at].pieces
        return pieces[first] if first == last else b"".join(pieces[first : last + 1])


def token_list(choice: Choice, first: int, last: int) -> Sequence[int]:
    """Ids of tokens `first` to `last`."""
    return choice.answer.tokens[first : last + 1].tolist()
