"""Takes the place of Triton's vLLM backend: its interface, with a made-up engine behind it.

model.json may have, besides what the real one has: `made_up_token_delay_s`, `made_up_load_s`,
`made_up_load_error`, and `made_up_before_counts` for the inputs of the backend of early 2024.
"""

import dataclasses
import json
import time
from pathlib import Path

import numpy as np
import triton_python_backend_utils as pb_utils
from made_up import tensors, text, vocabulary
from made_up.answer import Answer
from made_up.engine import Engine, Job
from made_up.metrics import COUNTER, GAUGE, HISTOGRAM, Metrics
from made_up.script import Script

RETURNS = (
    "return_finish_reason",
    "return_cumulative_logprob",
    "return_logprobs",
    "return_num_input_tokens",
    "return_num_output_tokens",
)
OUTPUTS = (
    ("finish_reason", "TYPE_STRING", -1),
    ("cumulative_logprob", "TYPE_FP32", -1),
    ("logprobs", "TYPE_STRING", -1),
    ("num_input_tokens", "TYPE_UINT32", 1),
    ("num_output_tokens", "TYPE_UINT32", -1),
)
LOGPROB = -0.5
HANG_STEP_S = 0.05
TOKEN_BUCKETS = [1, 10, 100, 1000, 10000]
TIME_BUCKETS_S = [0.001, 0.01, 0.1, 1.0, 10.0, 100.0]


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        old = model_json(Path(pb_utils.get_model_dir())).get("made_up_before_counts", False)
        have = config.as_dict()
        known = {tensor["name"] for tensor in have["input"] + have["output"]}
        for name, kind, size, optional in inputs(old):
            if name not in known:
                extra = {"optional": True} if optional else {}
                config.add_input({"name": name, "data_type": kind, "dims": [size], **extra})
        for name, kind, size in (("text_output", "TYPE_STRING", -1), *(() if old else OUTPUTS)):
            if name not in known:
                config.add_output({"name": name, "data_type": kind, "dims": [size]})
        config.set_model_transaction_policy({"decoupled": True})
        config.set_max_batch_size(0)
        return config

    def initialize(self, args):
        engine_args = model_json(Path(pb_utils.get_model_dir()))
        time.sleep(engine_args.get("made_up_load_s", 0))
        if error := engine_args.get("made_up_load_error"):
            raise RuntimeError(error)
        self.delay_s = engine_args.get("made_up_token_delay_s", 0.0)
        self.running = 0
        self.metrics = Metrics()
        parameters = json.loads(args["model_config"]).get("parameters", {})
        if parameters.get("REPORT_CUSTOM_METRICS", {}).get("string_value", "").lower() == "true":
            add_metrics(self.metrics, args["model_name"], args["model_version"])
        self.engine = Engine()

    def execute(self, requests):
        for request in requests:
            self.engine.submit(self.serve(request))

    def finalize(self):
        self.engine.close()

    def serve(self, request) -> Job:
        sender = request.get_response_sender()
        self.count_running(1)
        try:
            yield from self.generate(request, sender)
        except Exception as error:
            pb_utils.Logger.log_error(f"[vllm] {error!r}")
            nothing = tensors.strings("text_output", ["N/A"])
            message = f"Error generating stream: {error}"
            sender.send(tensors.failure(message, nothing), tensors.FINAL)
        finally:
            self.count_running(-1)

    def generate(self, request, sender) -> Job:
        ask = Ask.read(request)
        if refusal := refuse_adapter(ask.parameters):
            nothing = tensors.strings("text_output", [refusal])
            sender.send(tensors.failure(refusal, nothing), tensors.FINAL)
            return
        sampling = Sampling.read(ask.parameters)
        if sampling is None:
            # What the real backend comes to when it cannot read its parameters.
            raise AttributeError("'NoneType' object has no attribute 'lora_name'")
        script = Script.read(ask.prompt, self.delay_s)
        reply = Reply(ask, sampling, script)
        began_s = time.monotonic()
        self.metrics.count("prompt_tokens", reply.num_input_tokens)
        while not reply.finished:
            yield script.delay_s
            while reply.hangs and not sender.is_cancelled():
                yield HANG_STEP_S
            if sender.is_cancelled():
                if ask.stream:
                    sender.send(tensors.cancelled("Request was cancelled"), tensors.FINAL)
                    return
                break
            reply.advance()
            self.metrics.count("generation_tokens", reply.num_new_tokens)
            if ask.stream:
                sender.send(reply.response(), tensors.FINAL if reply.finished else 0)
        if not ask.stream:
            sender.send(reply.response(), tensors.FINAL)
        self.metrics.observe("e2e", time.monotonic() - began_s)
        self.metrics.observe("request_prompt_tokens", reply.num_input_tokens)
        self.metrics.observe("request_generation_tokens", reply.num_tokens)

    def count_running(self, change: int) -> None:
        self.running += change
        self.metrics.set("running", self.running)


@dataclasses.dataclass
class Ask:
    prompt: str
    stream: bool
    prepend: bool
    parameters: str
    returns: dict[str, bool]

    @classmethod
    def read(cls, request) -> "Ask":
        stream = bool(tensors.value(request, "stream", False))
        exclude = tensors.value(request, "exclude_input_in_output")
        prepend = not stream if exclude is None else not exclude
        if prepend and stream:
            raise ValueError("When streaming, `exclude_input_in_output` = False is not allowed.")
        return cls(
            tensors.text(request, "text_input"),
            stream,
            prepend,
            tensors.text(request, "sampling_parameters") or request.parameters() or "{}",
            {name: bool(tensors.value(request, name, False)) for name in RETURNS},
        )


@dataclasses.dataclass
class Sampling:
    """vLLM's sampling parameters, those that a made-up engine can follow or refuse."""

    n: int = 1
    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    min_tokens: int = 0
    stop: list[str] = dataclasses.field(default_factory=list)
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logit_bias: dict | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False
    structured_outputs: dict | None = None
    lora_name: str | None = None

    @classmethod
    def read(cls, parameters: str) -> "Sampling | None":
        try:
            return cls._made(json.loads(parameters))
        except (TypeError, ValueError) as error:
            pb_utils.Logger.log_error(f"[vllm] bad sampling parameters: {error}")
            return None

    @classmethod
    def _made(cls, given: dict) -> "Sampling":
        given = {key: value for key, value in given.items() if value is not None}
        for key in ("max_tokens", "n", "min_tokens", "top_k", "seed", "logprobs"):
            if key in given:
                given[key] = int(given[key])  # tools send numbers as strings
        for key in ("temperature", "top_p"):
            if key in given:
                given[key] = float(given[key])
        if "structured_outputs" in given:
            given["structured_outputs"] = json.loads(given["structured_outputs"])
        if isinstance(given.get("stop"), str):
            given["stop"] = [given["stop"]]
        made = cls(**given)
        if made.n < 1 or made.max_tokens < 1 or made.temperature < 0 or not 0 < made.top_p <= 1:
            raise ValueError(f"out of range: {given}")
        return made


class Reply:
    """The answers of one request, as far as they are."""

    def __init__(self, ask: Ask, sampling: Sampling, script: Script) -> None:
        self.num_input_tokens = len(vocabulary.encode(ask.prompt))
        self.num_new_tokens = 0
        self._ask = ask
        self._sampling = sampling
        self._script = script
        self._answers = [self._answer(index) for index in range(sampling.n)]
        # How much of each the client has: characters and tokens.
        self._sent = [(0, 0)] * sampling.n

    @property
    def finished(self) -> bool:
        return all(answer.finish_reason for answer in self._answers)

    @property
    def hangs(self) -> bool:
        return 0 <= self._script.hang_at <= len(self._answers[0].ids)

    @property
    def num_tokens(self) -> int:
        return sum(len(answer.ids) for answer in self._answers)

    def advance(self) -> None:
        before = self.num_tokens
        if 0 <= self._script.fail_at <= len(self._answers[0].ids):
            raise RuntimeError(f"the made-up engine failed at token {self._script.fail_at}")
        for answer in self._answers:
            answer.advance(self._script.per_response)
        self.num_new_tokens = self.num_tokens - before

    def response(self):
        """What is new since the last one."""
        pairs = list(zip(self._answers, self._sent, strict=True))
        texts = [answer.text[chars:] for answer, (chars, _) in pairs]
        if self._ask.prepend:
            texts = [self._ask.prompt + text for text in texts]
        made = [tensors.strings("text_output", texts)]
        made += [self._returned(name, pairs) for name in RETURNS if self._ask.returns[name]]
        self._sent = [(len(answer.text), len(answer.ids)) for answer in self._answers]
        return tensors.response(*made)

    def _returned(self, name: str, pairs):
        if name == "return_finish_reason":
            return tensors.strings("finish_reason", [str(one.finish_reason) for one, _ in pairs])
        if name == "return_cumulative_logprob":
            sums = [LOGPROB * len(answer.ids) for answer, _ in pairs]
            return tensors.numbers("cumulative_logprob", sums, np.float32)
        if name == "return_logprobs":
            new = [self._logprobs(answer.ids[tokens:]) for answer, (_, tokens) in pairs]
            return tensors.strings("logprobs", new)
        if name == "return_num_input_tokens":
            return tensors.numbers("num_input_tokens", self.num_input_tokens, np.uint32)
        new = [len(answer.ids) - tokens for answer, (_, tokens) in pairs]
        return tensors.numbers("num_output_tokens", new, np.uint32)

    def _logprobs(self, ids: list[int]) -> str:
        if self._sampling.logprobs is None:
            return "null"
        return json.dumps([self._likely(token) for token in ids])

    def _likely(self, token: int) -> dict[str, object]:
        """The chosen token, which is the likeliest, and as many others as were asked for."""
        others = [other for other in vocabulary.WORDS if other != token]
        shown = [token, *others[: max(0, self._sampling.logprobs - 1)]]
        return {
            str(shown_token): {
                "logprob": LOGPROB - rank,
                "rank": rank + 1,
                "decoded_token": vocabulary.data_of(shown_token).decode(errors="replace"),
            }
            for rank, shown_token in enumerate(shown)
        }

    def _answer(self, index: int) -> Answer:
        sampling = self._sampling
        outputs = sampling.structured_outputs or {}
        schema = {} if outputs.get("json_object") else outputs.get("json")
        if schema is not None:
            schema = json.loads(schema) if isinstance(schema, str) else schema
            ids = text.json_tokens(schema)
        else:
            greedy = sampling.temperature == 0
            ids = text.tokens(
                self._ask.prompt, self._script, 0 if greedy else (sampling.seed, index)
            )
        return Answer(ids, sampling.max_tokens, sampling.stop)


def refuse_adapter(parameters: str) -> str:
    """There are no adapters here."""
    return "LoRA feature is not enabled." if json.loads(parameters).get("lora_name") else ""


def inputs(old: bool):
    """Name, kind, size, optional."""
    yield "text_input", "TYPE_STRING", 1, False
    if not old:
        yield "image", "TYPE_STRING", -1, True
    yield "stream", "TYPE_BOOL", 1, True
    yield "sampling_parameters", "TYPE_STRING", 1, True
    yield "exclude_input_in_output", "TYPE_BOOL", 1, True
    if not old:
        for name in RETURNS:
            yield name, "TYPE_BOOL", 1, True


def model_json(folder: Path) -> dict:
    path = folder / "model.json"
    if not path.is_file():
        raise RuntimeError(f"'model.json' containing vllm engine args must be in '{folder}'")
    return json.loads(path.read_text())


def add_metrics(metrics: Metrics, model: str, version: str) -> None:
    labels = {"model": model, "version": version}
    for key, name, kind, help_text, buckets in (
        ("prompt_tokens", "prompt_tokens_total", COUNTER, "Prompt tokens.", None),
        ("generation_tokens", "generation_tokens_total", COUNTER, "Tokens made.", None),
        ("preemptions", "num_preemptions_total", COUNTER, "Preemptions.", None),
        ("e2e", "e2e_request_latency_seconds", HISTOGRAM, "Latency.", TIME_BUCKETS_S),
        ("request_prompt_tokens", "request_prompt_tokens", HISTOGRAM, "Each.", TOKEN_BUCKETS),
        ("request_generation_tokens", "request_generation_tokens", HISTOGRAM, "", TOKEN_BUCKETS),
        ("running", "num_requests_running", GAUGE, "Requests that run.", None),
        ("waiting", "num_requests_waiting", GAUGE, "Requests that wait.", None),
        ("cache", "gpu_cache_usage_perc", GAUGE, "KV cache in use, of 1.", None),
    ):
        more = {"buckets": buckets} if buckets else {}
        metrics.add(key, f"vllm:{name}", kind, help_text, labels, **more)
