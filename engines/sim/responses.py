"""The Responses dialect: `/v1/responses`, its named events, and the store of what was answered."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from engines.sim.errors import ApiError
from engines.sim.exchange import Exchange
from engines.sim.reply import Generation, Reply, compact, sse_named

__all__ = ["ResponseStore", "ResponsesReply", "Stored"]


class ResponsesReply(Reply):
    """One answer as a response object. A stream has no `[DONE]`; its last event has a name."""

    def __init__(self, generation: Generation, fields: dict[str, Any]) -> None:
        super().__init__(generation)
        self.id = f"resp_{generation.id}"
        self.status = "in_progress"
        self._fields = fields
        self._item_id = f"msg_{generation.id}"
        self._sequence = -1

    def opening(self) -> list[bytes]:
        item = {"id": self._item_id, "content": [], "role": "assistant"}
        item |= {"status": "in_progress", "type": "message"}
        return [
            self._event("response.created", response=self.body()),
            self._event("response.in_progress", response=self.body()),
            self._event("response.output_item.added", output_index=0, item=item),
            self._part("response.content_part.added", part=_part("")),
        ]

    def delta(self, at: int, first: int, last: int, finish: str | None) -> list[bytes]:
        self._sequence += 1
        return [
            b'event: response.output_text.delta\ndata: {"content_index":0,"delta":"%b",'
            b'"item_id":"%b","logprobs":[],"output_index":0,"sequence_number":%d,'
            b'"type":"response.output_text.delta"}\n\n'
            % (self.text(at, first, last), self._item_id.encode(), self._sequence)
        ]

    def ending(self) -> list[bytes]:
        text = self.generation.choices[0].text
        self.close()
        return [
            self._part("response.output_text.done", text=text, logprobs=[]),
            self._part("response.content_part.done", part=_part(text)),
            self._event("response.output_item.done", output_index=0, item=self._item()),
            self._event("response.completed", response=self.body()),
        ]

    def whole(self) -> bytes:
        self.close()
        return compact(self.body())

    def fail(self) -> None:
        self.status = "failed"

    def broken(self, error: ApiError) -> list[bytes]:
        self.fail()
        fields = {"code": str(error.status), "message": error.message, "param": error.param}
        return [self._event("error", **fields)]

    def close(self) -> None:
        """The answer is complete: cut by its limit, or ended by itself."""
        cut = self.generation.choices[0].finish_reason == "length"
        self.status = "incomplete" if cut else "completed"

    def body(self) -> dict[str, object]:
        """The response object in its present state."""
        done = self.status in ("completed", "incomplete")
        cut = {"reason": "max_output_tokens"} if self.status == "incomplete" else None
        ask = self._fields
        return {
            "id": self.id,
            "created_at": self.generation.created,
            "incomplete_details": cut,
            "instructions": ask.get("instructions"),
            "metadata": ask.get("metadata"),
            "model": self.generation.model,
            "object": "response",
            "output": [self._item()] if done else [],
            "parallel_tool_calls": True,
            "temperature": ask.get("temperature", 1.0),
            "tool_choice": ask.get("tool_choice", "auto"),
            "tools": ask.get("tools", []),
            "top_p": ask.get("top_p", 1.0),
            "background": bool(ask.get("background")),
            "max_output_tokens": len(self.generation.choices[0].answer.tokens),
            "max_tool_calls": None,
            "previous_response_id": ask.get("previous_response_id"),
            "prompt": None,
            "reasoning": None,
            "service_tier": "auto",
            "status": self.status,
            "text": None,
            "top_logprobs": None,
            "truncation": "disabled",
            "usage": self._usage() if done else None,
            "user": ask.get("user"),
        }

    def _item(self) -> dict[str, object]:
        return {
            "id": self._item_id,
            "content": [_part(self.generation.choices[0].text)],
            "role": "assistant",
            "status": self.status,
            "type": "message",
        }

    def _usage(self) -> dict[str, object]:
        generation = self.generation
        return {
            "input_tokens": generation.prompt_tokens,
            "input_tokens_details": {"cached_tokens": generation.cached_tokens},
            "output_tokens": generation.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": generation.prompt_tokens + generation.completion_tokens,
        }

    def _part(self, name: str, **fields: object) -> bytes:
        where = {"content_index": 0, "item_id": self._item_id, "output_index": 0}
        return self._event(name, **where, **fields)

    def _event(self, name: str, **fields: object) -> bytes:
        self._sequence += 1
        return sse_named(name, {**fields, "sequence_number": self._sequence, "type": name})


def _part(text: str) -> dict[str, object]:
    return {"annotations": [], "text": text, "type": "output_text", "logprobs": None}


@dataclass(slots=True)
class Stored:
    """A response that can be asked for again, and the conversation that leads to its successor."""

    reply: ResponsesReply
    messages: list[dict[str, Any]]
    exchange: Exchange | None
    """Its work in the background; None for a response in the foreground."""

    def conversation(self) -> list[dict[str, Any]]:
        """The turns so far, the answer included."""
        text = self.reply.generation.choices[0].text
        return [*self.messages, {"role": "assistant", "content": text}]


@dataclass(slots=True)
class ResponseStore:
    """The latest responses by id. A real engine's store grows without end; this one forgets."""

    capacity: int = 1024
    _by_id: OrderedDict[str, Stored] = field(default_factory=OrderedDict)

    def put(self, stored: Stored) -> None:
        """Remember a response, at the cost of the oldest."""
        self._by_id[stored.reply.id] = stored
        if len(self._by_id) > self.capacity:
            self._by_id.popitem(last=False)

    def get(self, response_id: str) -> Stored:
        """The response of that id. Raises ApiError as vLLM does."""
        if not response_id.startswith("resp_"):
            message = (
                f"Invalid 'response_id': '{response_id}'. Expected an ID that begins with 'resp_'."
            )
            raise ApiError(400, message, "invalid_request_error", "response_id")
        stored = self._by_id.get(response_id)
        if stored is None:
            message = f"Response with id '{response_id}' not found."
            raise ApiError(404, message, "invalid_request_error", "response_id")
        return stored
