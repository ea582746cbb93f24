"""An OpenAI request read for a model in Triton: what to ask it, and how often."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from engines.triton._wire import encode_request
from engines.triton.guide import ForcedTool, Guide, read_forced_tool, read_guide
from engines.triton.model import Flavour, TritonModel
from engines.triton.options import MOST_INT, OPTIONS, REFUSED, RefusedError

__all__ = ["Generation", "RefusedError", "read_request"]

COMPLETION_TOKENS = 16
"""OpenAI's own default of /v1/completions."""
CHAT_TOKENS = 1024
"""OpenAI's default is what the context has left, which these models do not tell."""
MAX_CHOICES = 128
"""As OpenAI's bound of `n`; prompts times `n`."""
MAX_STOPS = 16
MAX_LOGPROBS = 20
"""As vLLM's default of max_logprobs."""
Tensor = tuple[str, str, tuple[int, ...], Sequence[Any]]
"""Name, datatype, shape, items."""
TEXTS = ("/v1/chat/completions", "/v1/completions")


@dataclass(frozen=True, slots=True)
class Generation:
    """A request that a model in Triton can serve. One choice of the answer is one request there."""

    model: TritonModel
    is_chat: bool
    prompts: tuple[str, ...]
    """Of a chat: empty, until its template was rendered."""
    n: int
    """Choices for each prompt."""
    max_tokens: int
    stream: bool
    include_usage: bool
    echo: bool
    stops: tuple[bytes, ...]
    cuts_stops: bool
    """The model leaves stop words in its text."""
    logprobs: int | None
    """How many tokens beside each chosen one; None: not asked for."""
    tool: ForcedTool | None
    guide: Guide | None
    options: Mapping[str, Any]

    @property
    def asks_counts(self) -> bool:
        """The model tells how many tokens it read and wrote."""
        return "return_num_output_tokens" in self.model.inputs

    def message(self, prompt: str, choice: int, id: bytes) -> bytes:
        """The ModelInferRequest for one choice. RefusedError: an input is of a datatype that cannot
        be written."""
        tensors = [self._tensor(name, value) for name, value in self._inputs(prompt, choice)]
        # An empty last response says that it is over; without it some would have to be guessed.
        parameters = {"triton_enable_empty_final_response": True}
        try:
            return encode_request(self.model.name, id, tensors, parameters)
        except (KeyError, OverflowError, struct.error) as error:
            text = f"the model '{self.model.name}' in Triton has an input that cannot be written"
            raise RefusedError(f"{text}: {error}") from None

    def _tensor(self, name: str, value: Any) -> Tensor:
        values = value if isinstance(value, list) else [value]
        shape = (1, len(values)) if self.model.batched else (len(values),)
        return name, self.model.inputs[name], shape, values

    def _inputs(self, prompt: str, choice: int) -> list[tuple[str, Any]]:
        """Those of them that the model has."""
        text = prompt.encode("utf-8", "replace")
        inputs: list[tuple[str, Any]] = [("text_input", text), *self._switches()]
        if self.model.flavour is Flavour.VLLM:
            inputs.append(("sampling_parameters", self._sampling_parameters(choice)))
        else:
            is_llmapi = self.model.flavour is Flavour.LLMAPI
            inputs.append(
                ("sampling_param_max_tokens" if is_llmapi else "max_tokens", self.max_tokens)
            )
            if self.stops:
                inputs.append(
                    ("sampling_param_stop" if is_llmapi else "stop_words", list(self.stops))
                )
            inputs += self._numbers(choice)
            inputs += self.guide.tensorrt_llm() if self.guide is not None else []
        return [(name, value) for name, value in inputs if name in self.model.inputs]

    def _switches(self) -> list[tuple[str, bool]]:
        streams = self.model.streams
        return [
            ("stream", streams),
            ("streaming", streams),
            ("exclude_input_in_output", True),
            ("sampling_param_exclude_input_from_output", True),
            ("return_finish_reason", True),
            ("return_num_input_tokens", True),
            ("return_num_output_tokens", True),
            ("return_logprobs", self.logprobs is not None),
        ]

    def _numbers(self, choice: int) -> list[tuple[str, Any]]:
        found: list[tuple[str, Any]] = []
        for option in OPTIONS:
            value, name = self.options.get(option.field), option.input_of(self.model)
            if option.field == "temperature" and value == 0:
                # TensorRT-LLM divides by it; the likeliest token is that of top_k 1.
                found += [("top_k", 1), ("runtime_top_k", 1), ("sampling_param_top_k", 1)]
            elif value is None or name is None:
                continue
            elif option.field == "seed":
                found.append((name, (value + choice) & MOST_INT))
            elif option.field != "top_k" or self.options.get("temperature") != 0:
                found.append((name, value))
        return found + self._whole_vocabulary()

    def _whole_vocabulary(self) -> list[tuple[str, Any]]:
        """OpenAI's default is to draw from all tokens; TensorRT-LLM's is the likeliest one."""
        if (
            self.options.keys() & {"top_p", "top_k", "min_p"}
            or self.options.get("temperature") == 0
        ):
            return []
        names = ("top_p", "runtime_top_p", "sampling_param_top_p")
        zeros = ("top_k", "runtime_top_k", "sampling_param_top_k")
        return [*((name, 1.0) for name in names), *((name, 0) for name in zeros)]

    def _sampling_parameters(self, choice: int) -> bytes:
        wanted = dict(self.options)
        if "seed" in wanted:
            wanted["seed"] = (wanted["seed"] + choice) & MOST_INT
        if self.stops:
            wanted["stop"] = [stop.decode() for stop in self.stops]
        if self.logprobs is not None:
            wanted["logprobs"] = self.logprobs
        if self.guide is not None:
            wanted["structured_outputs"] = self.guide.vllm()
        return msgspec.json.encode({**wanted, "max_tokens": self.max_tokens})


def read_request(path: str, body: bytes, model: TritonModel) -> Generation:
    """RefusedError if the model cannot do what is asked; the text is for the client."""
    if path not in TEXTS:
        served = " and ".join(TEXTS)
        text = f"Triton's models answer {served} only, not {path}"
        raise RefusedError(text, status=404)
    try:
        request = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RefusedError(f"the body is not JSON: {error}") from None
    if not isinstance(request, dict):
        raise RefusedError("the body is not a JSON object")
    is_chat = path == TEXTS[0]
    prompts = () if is_chat else _prompts(request)
    n = _integer(request, "n", 1, 1)
    if n * max(len(prompts), 1) > MAX_CHOICES:
        raise RefusedError(f"more than {MAX_CHOICES} choices", "n")
    best_of = _integer(request, "best_of", n, 1)
    if best_of != n:
        raise RefusedError("best_of must be n: Triton's models do not rank answers", "best_of")
    _check_refused(request)
    stops = _stops(request)
    tool = read_forced_tool(request) if is_chat else None
    return Generation(
        model=model,
        is_chat=is_chat,
        prompts=prompts,
        n=n,
        max_tokens=_max_tokens(request, is_chat),
        stream=_flag(request, "stream"),
        include_usage=_includes_usage(request),
        echo=not is_chat and _flag(request, "echo"),
        stops=stops,
        cuts_stops=bool(stops) and model.flavour is not Flavour.VLLM,
        logprobs=_logprobs(request, is_chat, model),
        tool=tool,
        guide=read_guide(request, tool, model),
        options=_options(request, model),
    )


def _prompts(request: dict[str, Any]) -> tuple[str, ...]:
    prompt = request.get("prompt")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list) or not prompts:
        raise RefusedError("prompt must be a text, or a list of texts", "prompt")
    if not all(isinstance(one, str) for one in prompts):
        raise RefusedError("prompt must be text: Triton's models take no token ids", "prompt")
    return tuple(prompts)


def _max_tokens(request: dict[str, Any], is_chat: bool) -> int:
    newer = request.get("max_completion_tokens") is not None
    field = "max_completion_tokens" if newer else "max_tokens"
    return _integer(request, field, CHAT_TOKENS if is_chat else COMPLETION_TOKENS, 1)


def _options(request: dict[str, Any], model: TritonModel) -> dict[str, Any]:
    found = {}
    for option in OPTIONS:
        value = option.read(request)
        if value is None:
            continue
        is_greedy = option.field == "temperature" and value == 0
        if is_greedy or model.flavour is Flavour.VLLM or option.input_of(model) is not None:
            found[option.field] = value
        elif value != option.neutral:
            text = f"the model '{model.name}' in Triton has no input for {option.field}"
            raise RefusedError(text, option.field)
    return found


def _check_refused(request: dict[str, Any]) -> None:
    for field, (neutral, why) in REFUSED.items():
        if request.get(field) is not None and request[field] != neutral:
            raise RefusedError(why, field)


def _logprobs(request: dict[str, Any], is_chat: bool, model: TritonModel) -> int | None:
    field = "top_logprobs" if is_chat else "logprobs"
    if request.get("logprobs") is None or request["logprobs"] is False:
        if is_chat and request.get(field):
            raise RefusedError("top_logprobs needs logprobs: true", field)
        return None
    if is_chat:
        _flag(request, "logprobs")
    n = _integer(request, field, 0, 0)
    if n > MAX_LOGPROBS:
        raise RefusedError(f"{field} must be at most {MAX_LOGPROBS}", field)
    if "return_logprobs" not in model.inputs:
        text = f"the model '{model.name}' in Triton does not tell which tokens its logprobs are of"
        raise RefusedError(text, "logprobs")
    if request.get("echo"):
        raise RefusedError("logprobs of a prompt are not there in Triton; leave out echo", "echo")
    return n


def _stops(request: dict[str, Any]) -> tuple[bytes, ...]:
    stop = request.get("stop")
    stops = [stop] if isinstance(stop, str) else stop or []
    if not isinstance(stops, list) or not all(isinstance(one, str) and one for one in stops):
        raise RefusedError("stop must be a text, or a list of texts, none of them empty", "stop")
    if len(stops) > MAX_STOPS:
        raise RefusedError(f"stop has more than {MAX_STOPS} texts", "stop")
    return tuple(one.encode("utf-8", "replace") for one in stops)


def _includes_usage(request: dict[str, Any]) -> bool:
    options = request.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _flag(request: dict[str, Any], field: str) -> bool:
    value = request.get(field)
    if value is not None and not isinstance(value, bool):
        raise RefusedError(f"{field} must be true or false", field)
    return bool(value)


def _integer(request: dict[str, Any], field: str, default: int, least: int) -> int:
    value = request.get(field)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise RefusedError(f"{field} must be an integer of at least {least}", field)
    if value > MOST_INT:
        raise RefusedError(f"{field} must be at most {MOST_INT}", field)
    return value
