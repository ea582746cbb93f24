"""The OpenAI dialects, chat completions and completions, as vLLM 0.32 emits them.

Key order and nulls follow captures of the real server. A stream's events are made from byte
templates, with no JSON encoding per token.
"""

from __future__ import annotations

from abc import abstractmethod
from json import dumps

from engines.sim.errors import ApiError
from engines.sim.reply import (
    DONE,
    Choice,
    Generation,
    Reply,
    compact,
    sse,
    token_list,
)

__all__ = ["ChatReply", "CompletionReply"]


# Stands for the text while a frame is cut in two; JSON escapes keep it out of any real one.
_MARK = b"\0"


def _split(event: bytes) -> tuple[bytes, bytes]:
    before, _, after = event.partition(_MARK)
    return before, after


def _log_probability(token: int) -> float:
    """Some number for the probability of a token: fixed per token, never above zero."""
    return -(1 + token % 997) / 500


class _OpenAIReply(Reply):
    """Ids, usage and the end of a stream are the same in both."""

    prefix = ""
    object_name = ""
    chunk_name = ""

    def __init__(self, generation: Generation) -> None:
        super().__init__(generation)
        self.id = f"{self.prefix}{generation.id}"
        head = {"id": self.id, "object": self.chunk_name, "created": generation.created}
        head["model"] = generation.model
        self._head = b"data: " + compact(head)[:-1] + b',"choices":['
        self._fingerprint = b',"system_fingerprint":' + compact(generation.fingerprint)

        # Bytes before and after the text, per choice, of every event but a choice's last.
        self._frames: list[tuple[bytes, bytes]] = []
        self._plain = not (
            generation.continuous_usage or generation.logprobs or generation.token_ids
        )

    @abstractmethod
    def frame(self, at: int, text: bytes, first: int, last: int, finish: str | None) -> bytes:
        """One event with everything in it."""

    def delta(self, at: int, first: int, last: int, finish: str | None) -> list[bytes]:
        text = self.text(at, first, last)
        if finish is not None or not self._plain:
            return [self.frame(at, text, first, last, finish)]
        if not self._frames:
            marked = (self.frame(n, _MARK, 0, 0, None) for n in range(len(self.generation.choices)))
            self._frames = [_split(event) for event in marked]
        before, after = self._frames[at]
        return [before + text + after]

    def ending(self) -> list[bytes]:
        if not self.generation.include_usage:
            return [DONE]
        usage = b',"usage":' + compact(self.generation.final_usage())
        return [self._head + b"]" + usage + self._fingerprint + b"}\n\n", DONE]

    def broken(self, error: ApiError) -> list[bytes]:
        # Spaced, unlike everything else: this object comes from json.dumps, not from pydantic.
        return [sse(dumps({"error": error.fields()}).encode()), DONE]

    def _usage(self, choice: Choice, completion_tokens: int) -> bytes:
        if not self.generation.continuous_usage:
            return b""
        prompt = len(choice.job.prompt)
        return (
            b',"usage":{"prompt_tokens":%d,"total_tokens":%d,"completion_tokens":%d,'
            b'"completion_tokens_details":null}'
            % (prompt, prompt + completion_tokens, completion_tokens)
        )

    def _tail(self, choice: Choice, last: int, finish: str | None) -> bytes:
        """What follows the choices of a chunk."""
        usage = self._usage(choice, last + 1)
        if finish is not None and not self.generation.include_usage:
            return usage + self._fingerprint + b"}\n\n"
        return usage + b"}\n\n"

    def _envelope(self, choices: list[dict[str, object]]) -> dict[str, object]:
        return {
            "id": self.id,
            "object": self.object_name,
            "created": self.generation.created,
            "model": self.generation.model,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": self.generation.fingerprint,
            "usage": self.generation.usage(),
        }

    def _ids(self, choice: Choice, first: int, last: int) -> bytes:
        return compact(token_list(choice, first, last)) if self.generation.token_ids else b"null"

    def _all_ids(self, choice: Choice) -> list[int] | None:
        return (
            choice.answer.tokens[: choice.job.emitted].tolist()
            if self.generation.token_ids
            else None
        )


class ChatReply(_OpenAIReply):
    """`/v1/chat/completions`."""

    prefix = "chatcmpl-"
    object_name = "chat.completion"
    chunk_name = "chat.completion.chunk"

    def opening(self) -> list[bytes]:
        return [
            self._head + b'{"index":%d,"delta":{"role":"assistant","content":""},"logprobs":null,'
            b'"finish_reason":null}]'
            % at
            + self._usage(choice, 0)
            + b',"prompt_token_ids":null,"prompt_text":null}\n\n'
            for at, choice in enumerate(self.generation.choices)
        ]

    def frame(self, at: int, text: bytes, first: int, last: int, finish: str | None) -> bytes:
        choice = self.generation.choices[at]
        if finish is None:
            end = b"null"
        else:
            end = b'"%b","stop_reason":%b' % (finish.encode(), compact(choice.stop_reason))
        event = b'%b{"index":%d,"delta":{"content":"%b"},"logprobs":%b,"finish_reason":%b,' % (
            self._head,
            at,
            text,
            compact(self._logprobs(choice, first, last)),
            end,
        )
        ids = self._ids(choice, first, last)
        return event + b'"token_ids":%b}]' % ids + self._tail(choice, last, finish)

    def whole(self) -> bytes:
        body = self._envelope([self._choice(at) for at in range(len(self.generation.choices))])
        for key in ("prompt_logprobs", "prompt_token_ids", "prompt_text"):
            body[key] = None
        body.update(kv_transfer_params=None, ec_transfer_params=None, metrics=None)
        return compact(body)

    def _choice(self, at: int) -> dict[str, object]:
        choice = self.generation.choices[at]
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        message |= {"annotations": None, "audio": None, "function_call": None, "reasoning": None}
        return {
            "index": at,
            "message": message,
            "logprobs": self._logprobs(choice, 0, choice.job.emitted - 1),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
            "token_ids": self._all_ids(choice),
            "routed_experts": None,
        }

    def _logprobs(self, choice: Choice, first: int, last: int) -> dict[str, object] | None:
        if not self.generation.logprobs:
            return None
        content: list[dict[str, object]] = []
        answer = choice.answer
        for text, token in zip(
            answer.pieces[first : last + 1], answer.tokens[first : last + 1], strict=True
        ):
            entry: dict[str, object] = {"token": text, "logprob": _log_probability(token)}
            entry["bytes"] = list(text.encode())
            content.append({**entry, "top_logprobs": [entry]})
        return {"content": content}


class CompletionReply(_OpenAIReply):
    """`/v1/completions`."""

    prefix = "cmpl-"
    object_name = chunk_name = "text_completion"

    def opening(self) -> list[bytes]:
        return []

    def frame(self, at: int, text: bytes, first: int, last: int, finish: str | None) -> bytes:
        choice = self.generation.choices[at]
        event = (
            b'%b{"index":%d,"text":"%b","logprobs":%b,"finish_reason":%b,"stop_reason":%b,'
            b'"prompt_token_ids":null,"token_ids":%b}]'
            % (
                self._head,
                at,
                text,
                compact(self._logprobs(choice, first, last)),
                b"null" if finish is None else b'"%b"' % finish.encode(),
                compact(choice.stop_reason if finish else None),
                self._ids(choice, first, last),
            )
        )
        return event + self._tail(choice, last, finish)

    def whole(self) -> bytes:
        body = self._envelope([self._choice(at) for at in range(len(self.generation.choices))])
        body.update(kv_transfer_params=None, ec_transfer_params=None, metrics=None)
        return compact(body)

    def _choice(self, at: int) -> dict[str, object]:
        choice = self.generation.choices[at]
        prompt_ids = choice.job.prompt.tolist() if self.generation.token_ids else None
        return {
            "index": at,
            "text": choice.text,
            "logprobs": self._logprobs(choice, 0, choice.job.emitted - 1),
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
            "token_ids": self._all_ids(choice),
            "prompt_logprobs": None,
            "prompt_token_ids": prompt_ids,
            "routed_experts": None,
        }

    def _logprobs(self, choice: Choice, first: int, last: int) -> dict[str, object] | None:
        if not self.generation.logprobs:
            return None
        texts = choice.answer.pieces[first : last + 1]
        chances = [_log_probability(t) for t in choice.answer.tokens[first : last + 1]]
        start = sum(map(len, choice.answer.pieces[:first]))
        offsets = [start + sum(map(len, texts[:k])) for k in range(len(texts))]
        top = [{text: chance} for text, chance in zip(texts, chances, strict=True)]
        return {
            "text_offset": offsets,
            "token_logprobs": chances,
            "tokens": texts,
            "top_logprobs": top,
        }
