"""The routes that do not answer token by token: models, tokens, pooling, adapters, audio."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.parser import BytesParser
from email.policy import HTTP
from functools import partial
from hashlib import blake2b
from time import time

from engines.sim.body import Fields, chat_prompt, prompts_of, sampling_of
from engines.sim.chat import content_text
from engines.sim.config import SimConfig
from engines.sim.errors import ApiError, Detail, bad_value, field_missing
from engines.sim.exchange import Exchange
from engines.sim.generate import Generator, fields_of, request_id
from engines.sim.http import Request
from engines.sim.job import Job
from engines.sim.models import Model, ModelTable
from engines.sim.pooling import embeddings_body, rerank_body, score_body
from engines.sim.reply import compact
from engines.sim.response import Response
from engines.sim.text import detokenize, tokenize

__all__ = ["Plain"]


@dataclass(slots=True)
class Plain:
    """Each route takes a whole request. Raises ApiError for what is to be refused."""

    config: SimConfig
    models: ModelTable
    generator: Generator

    def list_models(self, request: Request, response: Response) -> None:
        """`GET /v1/models`."""
        response.send(200, compact(self.models.listing(int(time()))))

    def model(self, response: Response, name: str) -> None:
        """`GET /v1/models/{id}`."""
        model = self.models.resolve(name)
        response.send(200, compact(self.models.card(model, int(time()))))

    def version(self, request: Request, response: Response) -> None:
        """`GET /version`."""
        response.send(200, compact({"version": "0.32.0"}))

    def tokenize(self, request: Request, response: Response) -> None:
        """`POST /tokenize`: of a prompt or of messages."""
        fields = fields_of(request)
        self.models.resolve(fields.get("model"))
        if "messages" in fields:
            tokens = chat_prompt(fields)
        else:
            tokens = prompts_of(fields, "prompt")[0]
        strings = [detokenize((t,)) for t in tokens] if fields.get("return_token_strs") else None
        body = {"count": len(tokens), "max_model_len": self.config.context_tokens}
        self._done(response, {**body, "tokens": tokens.tolist(), "token_strs": strings})

    def detokenize(self, request: Request, response: Response) -> None:
        """`POST /detokenize`."""
        fields = fields_of(request)
        self.models.resolve(fields.get("model"))
        if "tokens" not in fields:
            raise field_missing("tokens", len(fields))
        tokens = prompts_of(fields, "tokens")[0] if fields["tokens"] else array("I")
        self._done(response, {"prompt": detokenize(tokens)})

    def embeddings(self, request: Request, response: Response) -> None:
        """`POST /v1/embeddings`, of texts, token ids or messages."""
        fields = self._pooling_fields(request)
        model = self.models.resolve(fields.get("model"))
        if "messages" in fields:
            inputs = [chat_prompt(fields)]
        else:
            inputs = prompts_of(fields, "input", content_text)
        dims = int(fields.get("dimensions") or self.config.embedding_dims)
        in_base64 = fields.get("encoding_format") == "base64"
        id, created = request_id(request), int(time())
        self._pool(
            request,
            response,
            model,
            inputs,
            lambda: embeddings_body(id, created, model.name, inputs, dims, in_base64),
        )

    def rerank(self, request: Request, response: Response) -> None:
        """`POST /v1/rerank`, and its names without version and of version 2."""
        fields = self._pooling_fields(request)
        model = self.models.resolve(fields.get("model"))
        query = prompts_of(fields, "query", content_text)[0]
        documents = prompts_of(fields, "documents", content_text)
        texts = [content_text(document) for document in fields["documents"]]
        top_n = int(fields.get("top_n") or 0)
        id = request_id(request)
        self._pool(
            request,
            response,
            model,
            [query + document for document in documents],
            lambda: rerank_body(id, model.name, query, documents, texts, top_n),
        )

    def score(self, request: Request, response: Response) -> None:
        """`POST /v1/score` and `/score`: one text against many, or pair by pair."""
        fields = self._pooling_fields(request)
        model = self.models.resolve(fields.get("model"))
        left_key, right_key = (
            ("text_1", "text_2") if "text_1" in fields else ("queries", "documents")
        )
        left = prompts_of(fields, left_key, content_text)
        right = prompts_of(fields, right_key, content_text)
        if len(left) == 1:
            left = left * len(right)
        if len(left) != len(right):
            raise ApiError(400, "Input lengths must be either 1:1, 1:N or N:N")
        pairs = list(zip(left, right, strict=True))
        id, created = request_id(request), int(time())
        self._pool(
            request,
            response,
            model,
            [one + other for one, other in pairs],
            lambda: score_body(id, created, model.name, pairs),
        )

    def transcriptions(self, request: Request, response: Response) -> None:
        """`POST /v1/audio/transcriptions`: multipart; the text derives from the file's bytes."""
        parts = _multipart(request)
        if "file" not in parts:
            raise field_missing("file", len(parts))
        model = self.models.resolve(parts.get("model", b"").decode("utf-8", "replace"))
        audio = parts["file"]
        # A real model makes tokens of the sound's length; here, of the number of bytes.
        size = max(1, min(len(audio) // 1000, 1500))
        seed = blake2b(audio).hexdigest()
        prompt = tokenize(f"audio {seed}\n" + "<a> " * size)
        choice = self.generator.answer(request, model, prompt, sampling_of({}))
        seconds = max(1, len(audio) // 32000)

        def body() -> bytes:
            if parts.get("response_format", b"json") == b"text":
                return choice.text.encode()
            usage = {"type": "duration", "seconds": seconds}
            return compact({"text": choice.text, "usage": usage})

        Exchange(self.generator.backend, [choice.job], response, body).begin()

    def load_adapter(self, request: Request, response: Response) -> None:
        """`POST /v1/load_lora_adapter`."""
        fields = fields_of(request)
        for name in ("lora_name", "lora_path"):
            if name not in fields:
                raise field_missing(name, len(fields))
        name, path = str(fields["lora_name"]), str(fields["lora_path"])
        self._switch(response, partial(self._load, name, path, bool(fields.get("load_inplace"))))

    def unload_adapter(self, request: Request, response: Response) -> None:
        """`POST /v1/unload_lora_adapter`."""
        fields = fields_of(request)
        if "lora_name" not in fields:
            raise field_missing("lora_name", len(fields))
        self._switch(response, partial(self._unload, str(fields["lora_name"])))

    def _load(self, name: str, path: str, in_place: bool) -> str:
        self.models.load(name, path, in_place)
        self.generator.backend.switches.adapter_loads += 1
        return f"Success: LoRA adapter '{name}' added successfully."

    def _unload(self, name: str) -> str:
        self.models.unload(name)
        self.generator.backend.switches.adapter_unloads += 1
        return f"Success: LoRA adapter '{name}' removed successfully."

    def _switch(self, response: Response, act: Callable[[], str]) -> None:
        """Answer with what `act` says, when it has taken its time."""

        def run() -> None:
            try:
                text = act()
            except ApiError as error:
                response.send(error.status, error.body())
                self.generator.backend.settle(response, "refused")
            else:
                self._say(response, text)

        self.generator.backend.after(self.config.switch_s, run)

    def _pooling_fields(self, request: Request) -> Fields:
        if not self.config.pooling:
            raise Detail(404, "Not Found")
        return fields_of(request)

    def _pool(
        self,
        request: Request,
        response: Response,
        model: Model,
        prompts: Sequence[array[int]],
        body: Callable[[], bytes],
    ) -> None:
        """Have the core compute the prompts, and nothing more."""
        context = self.config.context_tokens
        for prompt in prompts:
            if not prompt or len(prompt) > context:
                message = f"Input of {len(prompt)} tokens; 1 to {context} can be served."
                raise bad_value("input_tokens", len(prompt), message)
        id = request_id(request)
        jobs = [
            Job(f"{id}-{at}", prompt, array("I"), "stop", model.adapter.encode(), model.adapter)
            for at, prompt in enumerate(prompts)
        ]
        if not jobs:
            raise bad_value("input", "[]", "There is nothing to compute.")
        Exchange(self.generator.backend, jobs, response, body).begin()

    def _done(self, response: Response, body: object) -> None:
        response.send(200, compact(body))
        self.generator.backend.settle(response, "finished")

    def _say(self, response: Response, text: str) -> None:
        response.send(200, text.encode(), "text/plain; charset=utf-8")
        self.generator.backend.settle(response, "finished")


def _multipart(request: Request) -> dict[str, bytes]:
    """The parts of a form by name. Raises ApiError 400 if it is none."""
    kind = request.headers.get("content-type", "")
    if not kind.lower().startswith("multipart/form-data"):
        raise field_missing("file", 0)
    head = f"content-type: {kind}\r\n\r\n".encode("latin-1", "replace")
    message = BytesParser(policy=HTTP).parsebytes(head + request.body)
    parts: dict[str, bytes] = {}
    if not message.is_multipart():
        raise Detail(400, "There was an error parsing the body")
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        data = part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(data, bytes):
            parts[name] = data
    return parts
