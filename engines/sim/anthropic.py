"""The Messages dialect: `/v1/messages` as vLLM serves it, over its own chat completions."""

from __future__ import annotations

from engines.sim.errors import ApiError
from engines.sim.reply import DONE, Generation, Reply, compact, sse_named

__all__ = ["MessagesReply"]

# An answer that its engine cut short has no word of its own here.
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "abort": "end_turn"}


class MessagesReply(Reply):
    """One answer as a message. A stream ends with `message_stop` and then vLLM's `[DONE]`."""

    def __init__(self, generation: Generation) -> None:
        super().__init__(generation)
        self.id = f"chatcmpl-{generation.id}"
        self._delta = (
            b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
            b'"delta":{"type":"text_delta","text":"'
        )

    def opening(self) -> list[bytes]:
        generation = self.generation
        message: dict[str, object] = {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "content": [],
            "model": generation.model,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": generation.prompt_tokens, "output_tokens": 0},
        }
        block = {"type": "text", "text": ""}
        return [
            sse_named("message_start", {"type": "message_start", "message": message}),
            sse_named(
                "content_block_start",
                {"type": "content_block_start", "index": 0, "content_block": block},
            ),
        ]

    def delta(self, at: int, first: int, last: int, finish: str | None) -> list[bytes]:
        text = self.text(at, first, last)
        return [self._delta + text + b'"}}\n\n'] if text else []

    def ending(self) -> list[bytes]:
        return [
            sse_named("content_block_stop", {"type": "content_block_stop", "index": 0}),
            sse_named(
                "message_delta",
                {
                    "type": "message_delta",
                    "delta": {"stop_reason": self._stop_reason},
                    "usage": self._usage(),
                },
            ),
            sse_named("message_stop", {"type": "message_stop"}),
            DONE,
        ]

    def whole(self) -> bytes:
        return compact(
            {
                "id": self.id,
                "type": "message",
                "role": "assistant",
                "content": [{"type": "text", "text": self.generation.choices[0].text}],
                "model": self.generation.model,
                "stop_reason": self._stop_reason,
                "usage": self._usage(),
            }
        )

    def broken(self, error: ApiError) -> list[bytes]:
        body = {"type": "error", "error": {"type": "internal_error", "message": error.message}}
        return [sse_named("error", body), DONE]

    @property
    def _stop_reason(self) -> str:
        return _STOP_REASONS[self.generation.choices[0].finish_reason]

    def _usage(self) -> dict[str, int]:
        generation = self.generation
        usage = {
            "input_tokens": generation.prompt_tokens,
            "output_tokens": generation.completion_tokens,
        }
        if generation.cached_details and generation.cached_tokens:
            usage["cache_read_input_tokens"] = generation.cached_tokens
        return usage
