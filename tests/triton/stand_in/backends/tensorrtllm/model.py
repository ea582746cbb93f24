"""Takes the place of TensorRT-LLM's backend: the step `tensorrt_llm`, from token ids to token ids.

Decoupled; each sequence of a request has responses of its own, told apart by `sequence_index`.
"""

import json
import time

import numpy as np
import triton_python_backend_utils as pb_utils
from made_up import tensors, text, vocabulary
from made_up.engine import Engine, Job
from made_up.metrics import GAUGE, Metrics
from made_up.script import Script

HANG_STEP_S = 0.05
BLOCKS = 4096
BLOCK_TOKENS = 64
MAX_REQUESTS = 256
LOGPROB = -0.5


class TritonPythonModel:
    def initialize(self, args):
        self.active = 0
        self.metrics = Metrics()
        add_metrics(self.metrics, args["model_name"], args["model_version"])
        self.engine = Engine()

    def execute(self, requests):
        for request in requests:
            self.engine.submit(self.serve(request))

    def finalize(self):
        self.engine.close()

    def serve(self, request) -> Job:
        sender = request.get_response_sender()
        self.count_active(1)
        try:
            yield from self.generate(request, sender)
        except Exception as error:
            pb_utils.Logger.log_error(f"[tensorrt_llm] {error!r}")
            message = f"Encountered an error in forwardAsync function: {error}"
            # In two, because a model that calls this one waits for ever where they are one.
            sender.send(tensors.failure(message))
            sender.send(flags=tensors.FINAL)
        finally:
            self.count_active(-1)

    def generate(self, request, sender) -> Job:
        ids = tensors.values(request, "input_ids")[: tensors.value(request, "input_lengths")]
        prompt = vocabulary.decode(ids).decode(errors="replace")
        script = Script.read(prompt, 0.0)
        streaming = bool(tensors.value(request, "streaming", False))
        sequences = make_sequences(request, prompt, script)
        reply = Reply(request, ids)
        while not all(sequence.finished for sequence in sequences):
            yield script.delay_s
            while 0 <= script.hang_at <= len(sequences[0].ids) and not sender.is_cancelled():
                yield HANG_STEP_S
            if sender.is_cancelled():
                sender.send(tensors.cancelled("Request cancelled by client"), tensors.FINAL)
                return
            if 0 <= script.fail_at <= len(sequences[0].ids):
                raise RuntimeError(f"the made-up engine failed at token {script.fail_at}")
            for sequence in sequences:
                new = sequence.advance(script.per_response)
                if streaming and new:
                    done = all(each.finished for each in sequences)
                    response = reply.response(sequence, new)
                    sender.send(response, tensors.FINAL if done else 0)
        if not streaming:
            for sequence in sequences:
                last = sequence is sequences[-1]
                response = reply.response(sequence, sequence.ids)
                sender.send(response, tensors.FINAL if last else 0)

    def count_active(self, change: int) -> None:
        self.active += change
        self.metrics.set("active", self.active)
        self.metrics.set("scheduled", self.active)
        self.metrics.set("generation_requests", self.active)
        self.metrics.set("used", self.active)
        self.metrics.set("free", BLOCKS - self.active)
        self.metrics.set("fraction", self.active / BLOCKS)


class Sequence:
    """One answer; keeps the token ids of a stop word, and ends after them."""

    def __init__(self, index: int, tokens, limit_tokens: int, stops: list[list[int]]) -> None:
        self.index = index
        self.ids: list[int] = []
        self.finished = False
        self._tokens = tokens
        self._limit_tokens = limit_tokens
        self._stops = stops

    def advance(self, count: int) -> list[int]:
        """The ids that this adds."""
        before = len(self.ids)
        while not self.finished and len(self.ids) < before + count:
            self.ids.append(next(self._tokens))
            self.finished = self._ends()
        return self.ids[before:]

    def _ends(self) -> bool:
        if len(self.ids) >= self._limit_tokens or self.ids[-1] == vocabulary.EOS:
            return True
        return any(self.ids[-len(stop) :] == stop for stop in self._stops)


class Reply:
    """Makes responses, with what the request wants in them."""

    def __init__(self, request, prompt_ids: list[int]) -> None:
        self._prompt_ids = prompt_ids
        self._exclude = bool(tensors.value(request, "exclude_input_in_output", False))
        self._begun: set[int] = set()

    def response(self, sequence: Sequence, new: list[int]):
        ids = new
        if not self._exclude and sequence.index not in self._begun:
            self._begun.add(sequence.index)
            ids = self._prompt_ids + new
        count = len(new)
        return tensors.response(
            tensors.numbers("output_ids", [[ids]], np.int32),
            tensors.numbers("sequence_length", [[len(ids)]], np.int32),
            tensors.numbers("cum_log_probs", [[LOGPROB * len(sequence.ids)]], np.float32),
            tensors.numbers("output_log_probs", [[[LOGPROB] * count]], np.float32),
            tensors.numbers("context_logits", [[[0]]], np.float32),
            tensors.numbers("generation_logits", [[[[0]]]], np.float32),
            tensors.numbers("batch_index", [[0]], np.int32),
            tensors.numbers("sequence_index", [[sequence.index]], np.int32),
            tensors.numbers("num_input_tokens", [[len(self._prompt_ids)]], np.int32),
            tensors.numbers("num_output_tokens", [[count]], np.int32),
        )


def make_sequences(request, prompt: str, script: Script) -> list[Sequence]:
    limit_tokens = tensors.value(request, "request_output_len")
    stops = stop_words(request)
    seed = tensors.value(request, "seed")
    count = tensors.value(request, "num_return_sequences", 1)
    # Temperature alone does not make it sample.
    greedy = tensors.value(request, "runtime_top_k", 1) <= 1 and not tensors.value(
        request, "runtime_top_p", 0.0
    )
    kind = tensors.text(request, "guided_decoding_guide_type")
    guide = tensors.text(request, "guided_decoding_guide")
    sequences = []
    for index in range(count):
        if kind in ("json", "json_schema"):
            ids = text.json_tokens(json.loads(guide or "{}"))
        else:
            ids = text.tokens(prompt, script, 0 if greedy else (seed, index))
        sequences.append(Sequence(index, ids, limit_tokens, stops))
    return sequences


def stop_words(request) -> list[list[int]]:
    """Of the two rows that the preprocessing makes of them: all ids, and where each word ends."""
    flat = tensors.values(request, "stop_words_list")
    ids, ends = flat[: len(flat) // 2], [end for end in flat[len(flat) // 2 :] if end > 0]
    return [ids[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def add_metrics(metrics: Metrics, model: str, version: str) -> None:
    labels = {"model": model, "version": version}
    for family, label, values in (
        (
            "nv_trt_llm_request_metrics",
            "request_type",
            {"active": 0, "max": MAX_REQUESTS, "scheduled": 0, "context": 0, "waiting": 0},
        ),
        (
            "nv_trt_llm_kv_cache_block_metrics",
            "kv_cache_block_type",
            {
                "max_blocks": BLOCKS,
                "free": BLOCKS,
                "used": 0,
                "tokens_per": BLOCK_TOKENS,
                "fraction": 0,
            },
        ),
        (
            "nv_trt_llm_inflight_batcher_metrics",
            "inflight_batcher_specific_metric",
            {"total_context_tokens": 0, "generation_requests": 0, "micro_batch_id": 0},
        ),
        (
            "nv_trt_llm_general_metrics",
            "general_type",
            {"timestamp": int(time.time()), "iteration_counter": 0},
        ),
    ):
        # Two of these families have a `max`; a series is known by its key here.
        labels_of = {key: {label: key.removesuffix("_blocks"), **labels} for key in values}
        metrics.add_labelled(family, GAUGE, family.replace("_", " "), labels_of)
        for key, value in values.items():
            metrics.set(key, value)
