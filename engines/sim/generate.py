"""The generating routes: chat completions, completions, responses, messages."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from secrets import token_hex
from time import time
from typing import Any

from engines.sim.anthropic import MessagesReply
from engines.sim.body import Fields, Sampling, chat_prompt, parse_body, prompts_of, sampling_of
from engines.sim.config import SimConfig
from engines.sim.errors import ApiError, bad_value, field_missing
from engines.sim.exchange import Backend, Exchange
from engines.sim.http import Request
from engines.sim.job import Job
from engines.sim.models import Model, ModelTable
from engines.sim.reply import Choice, Generation, Reply, compact
from engines.sim.response import Response
from engines.sim.responses import ResponsesReply, ResponseStore, Stored
from engines.sim.text import compose
from engines.sim.wire import ChatReply, CompletionReply

__all__ = ["Generator", "fields_of", "request_id"]

FINGERPRINT = "vllm-0.32.0-5160cafe"


def request_id(request: Request) -> str:
    """The client's X-Request-Id, or 16 hex digits."""
    return request.headers.get("x-request-id") or token_hex(8)


def fields_of(request: Request) -> Fields:
    """The request's JSON object. Raises ApiError."""
    return parse_body(request.headers.get("content-type", ""), request.body)


@dataclass(slots=True)
class Generator:
    """Each route takes a whole request, and answers it now or through an exchange. Raises ApiError
    for what is to be refused; the caller puts that into the route's dialect."""

    config: SimConfig
    models: ModelTable
    store: ResponseStore
    backend: Backend

    def chat(self, request: Request, response: Response) -> None:
        """`POST /v1/chat/completions`."""
        fields = fields_of(request)
        prompt = chat_prompt(fields)
        sampling = sampling_of(fields, ("max_completion_tokens", "max_tokens"))
        generation = self._generation(request, fields, [prompt], sampling)
        self._begin(ChatReply(generation), response)

    def completions(self, request: Request, response: Response) -> None:
        """`POST /v1/completions`: one or several prompts, text or token ids."""
        fields = fields_of(request)
        prompts = prompts_of(fields, "prompt")
        sampling = sampling_of(fields)
        if not prompts or not all(prompts):
            raise ApiError(400, "The decoder prompt cannot be empty")
        generation = self._generation(request, fields, prompts, sampling)
        self._begin(CompletionReply(generation), response)

    def messages(self, request: Request, response: Response) -> None:
        """`POST /v1/messages`."""
        fields = fields_of(request)
        if "max_tokens" not in fields:
            raise field_missing("max_tokens", len(fields))
        prompt = chat_prompt(fields)
        sampling = sampling_of({**fields, "stop": fields.get("stop_sequences"), "n": 1})
        generation = self._generation(request, fields, [prompt], sampling)
        self._begin(MessagesReply(generation), response, "anthropic")

    def count_tokens(self, request: Request, response: Response) -> None:
        """`POST /v1/messages/count_tokens`."""
        fields = fields_of(request)
        self.models.resolve(fields.get("model"))
        response.send(200, compact({"input_tokens": len(chat_prompt(fields))}))
        self.backend.settle(response, "finished")

    def responses(self, request: Request, response: Response) -> None:
        """`POST /v1/responses`, in the foreground or the background."""
        fields = fields_of(request)
        turns = self._turns(fields)
        prompt = chat_prompt({**fields, "messages": turns, "system": fields.get("instructions")})
        sampling = sampling_of({**fields, "n": 1}, ("max_output_tokens",))
        generation = self._generation(request, fields, [prompt], sampling)
        reply = ResponsesReply(generation, dict(fields))
        background = bool(fields.get("background")) and not sampling.stream
        if background:
            reply.status = "queued"
        exchange = self._exchange(reply, None if background else response)
        exchange.begin()
        if fields.get("store", True):
            self.store.put(Stored(reply, turns, exchange if background else None))
        if background:
            response.send(200, compact(reply.body()))
            self.backend.settle(response, "finished")

    def retrieve(self, response: Response, response_id: str) -> None:
        """`GET /v1/responses/{id}`."""
        response.send(200, compact(self.store.get(response_id).reply.body()))

    def cancel(self, response: Response, response_id: str) -> None:
        """`POST /v1/responses/{id}/cancel`: only what runs in the background can be cancelled."""
        stored = self.store.get(response_id)
        if stored.exchange is None:
            message = "Cannot cancel a synchronous response."
            raise ApiError(400, message, "invalid_request_error", "response_id")
        if stored.reply.status in ("queued", "in_progress"):
            self.backend.cancel(stored.exchange)
            stored.reply.status = "cancelled"
        response.send(200, compact(stored.reply.body()))
        self.backend.settle(response, "finished")

    def answer(
        self, request: Request, model: Model, prompt: array[int], sampling: Sampling
    ) -> Choice:
        """One answer to one prompt, as the routes that are not in an OpenAI dialect need it."""
        return self._choice(f"{request_id(request)}-0-0", model, prompt, sampling, 0)

    def _turns(self, fields: Fields) -> list[dict[str, Any]]:
        if "input" not in fields:
            raise field_missing("input", len(fields))
        given = fields["input"]
        turns: list[dict[str, Any]] = []
        previous = fields.get("previous_response_id")
        if previous:
            turns = self.store.get(str(previous)).conversation()
        if isinstance(given, str):
            return [*turns, {"role": "user", "content": given}]
        if not isinstance(given, list):
            raise ApiError(400, "input must be a string or a list", "Bad Request", "body.input")
        items = (item if isinstance(item, dict) else {"content": item} for item in given)
        return turns + [{"role": "user", **item} for item in items]

    def _generation(
        self,
        request: Request,
        fields: Fields,
        prompts: Sequence[array[int]],
        sampling: Sampling,
    ) -> Generation:
        model = self.models.resolve(fields.get("model"))
        id = request_id(request)
        choices = [
            self._choice(f"{id}-{at}-{copy}", model, prompt, sampling, copy)
            for at, prompt in enumerate(prompts)
            for copy in range(sampling.n)
        ]
        return Generation(
            id=id,
            model=model.name,
            created=int(time()),
            fingerprint=FINGERPRINT,
            choices=choices,
            prompts=len(prompts),
            stream=sampling.stream,
            include_usage=sampling.include_usage or self.config.force_include_usage,
            continuous_usage=sampling.include_usage and sampling.continuous_usage,
            cached_details=self.config.prompt_tokens_details,
            logprobs=bool(fields.get("logprobs")),
            token_ids=bool(fields.get("return_token_ids")),
        )

    def _choice(
        self, id: str, model: Model, prompt: array[int], sampling: Sampling, copy: int
    ) -> Choice:
        config = self.config
        answer = compose(
            prompt,
            self._max_tokens(prompt, sampling),
            seed=f"{config.seed}/{copy}/{model.adapter}".encode(),
            stop=sampling.stop,
            min_tokens=sampling.min_tokens,
            natural_end_tokens=0 if sampling.ignore_eos else config.step_profile.natural_end_tokens,
        )
        namespace = f"{model.adapter}/{sampling.salt}".encode()
        job = Job(
            id,
            prompt,
            answer.tokens,
            answer.finish_reason,
            namespace,
            model.adapter,
            sampling.salt,
        )
        return Choice(answer, job)

    def _max_tokens(self, prompt: array[int], sampling: Sampling) -> int:
        """The answer's limit. Raises ApiError if prompt and answer do not fit the context."""
        context, size = self.config.context_tokens, len(prompt)
        limit = sampling.max_tokens
        if limit is not None and limit > context:
            raise bad_value(
                "max_tokens",
                limit,
                f"max_tokens={limit} cannot be greater than max_model_len={context}. "
                "Please request fewer output tokens.",
            )
        opening = f"This model's maximum context length is {context} tokens. However, "
        if size >= context:
            least = max(size, context + 1) if size > context else size
            raise bad_value(
                "input_tokens",
                least,
                f"{opening}your prompt contains at least {least} input tokens, which exceeds "
                "this limit even without any output tokens. Please reduce the length of the "
                "input prompt.",
            )
        if limit is not None and size + limit > context:
            raise bad_value(
                "input_tokens",
                size,
                f"{opening}you requested {limit} output tokens and your prompt contains at least "
                f"{size} input tokens, for a total of at least {size + limit} tokens. Please "
                "reduce the length of the input prompt or the number of requested output tokens.",
            )
        return min(self.config.default_max_tokens if limit is None else limit, context - size)

    def _begin(self, reply: Reply, response: Response, dialect: str = "openai") -> None:
        self._exchange(reply, response, dialect).begin()

    def _exchange(
        self, reply: Reply, response: Response | None, dialect: str = "openai"
    ) -> Exchange:
        generation = reply.generation
        jobs = [choice.job for choice in generation.choices]
        stream = reply if generation.stream and response is not None else None
        return Exchange(self.backend, jobs, response, reply.whole, stream, dialect, reply.fail)
