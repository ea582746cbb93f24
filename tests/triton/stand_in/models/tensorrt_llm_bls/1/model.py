"""Calls the three steps itself, and so can decode a stream's tokens together."""

import traceback

import numpy as np
import triton_python_backend_utils as pb_utils
from made_up import tensors

# This model's input, and that of the step.
PREPROCESSING = {
    "text_input": "QUERY",
    "max_tokens": "REQUEST_OUTPUT_LEN",
    "bad_words": "BAD_WORDS_DICT",
    "stop_words": "STOP_WORDS_DICT",
    "end_id": "END_ID",
    "pad_id": "PAD_ID",
}
PREPROCESSED = {
    "INPUT_ID": "input_ids",
    "REQUEST_INPUT_LEN": "input_lengths",
    "BAD_WORDS_IDS": "bad_words_list",
    "STOP_WORDS_IDS": "stop_words_list",
    "OUT_END_ID": "end_id",
    "OUT_PAD_ID": "pad_id",
}
GENERATION = {
    "max_tokens": "request_output_len",
    "stream": "streaming",
    "top_k": "runtime_top_k",
    "top_p": "runtime_top_p",
    "length_penalty": "len_penalty",
} | {
    name: name
    for name in (
        *("num_return_sequences", "exclude_input_in_output", "temperature", "repetition_penalty"),
        *("min_tokens", "presence_penalty", "frequency_penalty", "seed", "return_log_probs"),
        *("return_num_input_tokens", "return_num_output_tokens", "beam_width", "lora_task_id"),
        *("guided_decoding_guide_type", "guided_decoding_guide"),
    )
}
PASSED_ON = (
    *("cum_log_probs", "output_log_probs", "batch_index", "sequence_index"),
    *("num_input_tokens", "num_output_tokens"),
)


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            try:
                for response in self._responses(request):
                    sender.send(response)
            except Exception:
                sender.send(tensors.failure(traceback.format_exc()))
            sender.send(flags=tensors.FINAL)

    def _responses(self, request):
        if tensors.value(request, "max_tokens", 0) < 1:
            raise ValueError("max_tokens must be a single value > 0")
        prepared = one(call("preprocessing", renamed(request, PREPROCESSING), PREPROCESSED))
        inputs = [of_name(prepared, name, step) for name, step in PREPROCESSED.items()]
        inputs += renamed(request, GENERATION)
        so_far: dict[int, list[int]] = {}
        for made in call("tensorrt_llm", inputs, ["output_ids", "sequence_length", *PASSED_ON]):
            sequence = int(array_of(made, "sequence_index").flat[0])
            ids = so_far.setdefault(sequence, [])
            ids += array_of(made, "output_ids").reshape(-1).tolist()
            decoded = one(call("postprocessing", tokens(ids), ["OUTPUT"]))
            passed = [of_name(made, name, name) for name in PASSED_ON]
            yield tensors.response(of_name(decoded, "OUTPUT", "text_output"), *passed)


def call(model: str, inputs, outputs):
    """Its responses. Of a step that fails in the middle Triton says here only that it has ended."""
    request = pb_utils.InferenceRequest(
        model_name=model, inputs=inputs, requested_output_names=list(outputs)
    )
    if model != "tensorrt_llm":
        return [request.exec()]
    return (each for each in request.exec(decoupled=True) if each.output_tensors())


def one(responses):
    [response] = responses
    if response.has_error():
        raise RuntimeError(response.error().message())
    return response


def array_of(response, name: str):
    return pb_utils.get_output_tensor_by_name(response, name).as_numpy()


def of_name(response, name: str, wanted: str):
    return pb_utils.Tensor(wanted, array_of(response, name))


def renamed(request, names: dict[str, str]):
    pairs = [(tensors.array(request, name), step) for name, step in names.items()]
    # What this model's configuration reshapes has lost the dimension that the step expects.
    return [
        pb_utils.Tensor(step, array.reshape(1, -1)) for array, step in pairs if array is not None
    ]


def tokens(ids: list[int]):
    return [
        tensors.numbers("TOKENS_BATCH", [[ids]], np.int32),
        tensors.numbers("SEQUENCE_LENGTH", [[len(ids)]], np.int32),
    ]
