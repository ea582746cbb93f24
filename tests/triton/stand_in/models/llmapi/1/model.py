"""Takes the place of TensorRT-LLM's model over its LLM API: `sampling_param_*`, and each response
of a stream has the whole text so far."""

import numpy as np
import triton_python_backend_utils as pb_utils
from made_up import tensors, text
from made_up.answer import Answer
from made_up.engine import Engine, Job
from made_up.script import Script

DEFAULT_MAX_TOKENS = 32
HANG_STEP_S = 0.05
LOGPROB = -0.5


class TritonPythonModel:
    def initialize(self, args):
        self.engine = Engine()

    def execute(self, requests):
        for request in requests:
            self.engine.submit(self.serve(request))

    def finalize(self):
        self.engine.close()

    def serve(self, request) -> Job:
        sender = request.get_response_sender()
        try:
            yield from self.generate(request, sender)
        except Exception as error:
            pb_utils.Logger.log_error(f"[trtllm] {error!r}")
            nothing = tensors.strings("text_output", ["N/A"])
            message = f"Error generating request: {error}"
            sender.send(tensors.failure(message, nothing), tensors.FINAL)

    def generate(self, request, sender) -> Job:
        prompt = tensors.text(request, "text_input")
        script = Script.read(prompt, 0.0)
        streaming = bool(tensors.value(request, "streaming", False))
        answer = make_answer(request, prompt, script)
        while not answer.finish_reason:
            yield script.delay_s
            while 0 <= script.hang_at <= len(answer.ids) and not sender.is_cancelled():
                yield HANG_STEP_S
            if sender.is_cancelled():
                sender.send(tensors.cancelled("Request cancelled by client"), tensors.FINAL)
                return
            if 0 <= script.fail_at <= len(answer.ids):
                raise RuntimeError(f"the made-up engine failed at token {script.fail_at}")
            answer.advance(script.per_response)
            if streaming:
                flags = tensors.FINAL if answer.finish_reason else 0
                sender.send(response(request, answer, prompt), flags)
        if not streaming:
            sender.send(response(request, answer, prompt), tensors.FINAL)


def make_answer(request, prompt: str, script: Script) -> Answer:
    limit_tokens = parameter(request, "max_tokens", DEFAULT_MAX_TOKENS)
    if limit_tokens < 1:
        raise ValueError(f"max_tokens must be greater than 0, got {limit_tokens}")
    stops = [stop.decode() for stop in tensors.values(request, "sampling_param_stop")]
    # Temperature alone does not make it sample.
    greedy = parameter(request, "top_k", 1) <= 1 and not parameter(request, "top_p", 0.0)
    choice = 0 if greedy else (parameter(request, "seed", None), 0)
    return Answer(text.tokens(prompt, script, choice), limit_tokens, stops)


def response(request, answer: Answer, prompt: str):
    excluded = parameter(request, "exclude_input_from_output", False)
    made = [tensors.strings("text_output", [answer.text if excluded else prompt + answer.text])]
    for name in ("finish_reason", "stop_reason"):
        if tensors.value(request, f"return_{name}", False):
            made.append(tensors.strings(name, [str(getattr(answer, name))]))
    if tensors.value(request, "return_cumulative_logprob", False):
        sums = [LOGPROB * len(answer.ids)]
        made.append(tensors.numbers("cumulative_logprob", sums, np.float32))
    return tensors.response(*made)


def parameter(request, name: str, default):
    return tensors.value(request, f"sampling_param_{name}", default)
