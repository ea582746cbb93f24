"""The step from text to token ids."""

import json

import numpy as np
from made_up import tensors, vocabulary


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        special = parameters["add_special_tokens"]["string_value"] == "true"
        self.first = [vocabulary.BOS] if special else []

    def execute(self, requests):
        return [self._ids(request) for request in requests]

    def _ids(self, request):
        limit_tokens = tensors.value(request, "REQUEST_OUTPUT_LEN")
        if limit_tokens < 1:
            return tensors.failure("max_tokens must be a single value > 0")
        ids = self.first + vocabulary.encode(tensors.text(request, "QUERY"))
        end_id = tensors.value(request, "END_ID", vocabulary.EOS)
        numbers = {
            "INPUT_ID": [ids],
            "REQUEST_INPUT_LEN": [[len(ids)]],
            "REQUEST_OUTPUT_LEN": [[limit_tokens]],
            "BAD_WORDS_IDS": [word_list(tensors.values(request, "BAD_WORDS_DICT"))],
            "STOP_WORDS_IDS": [word_list(tensors.values(request, "STOP_WORDS_DICT"))],
            "OUT_END_ID": [[end_id]],
            "OUT_PAD_ID": [[tensors.value(request, "PAD_ID", end_id)]],
        }
        return tensors.response(
            *(tensors.numbers(name, items, np.int32) for name, items in numbers.items())
        )


def word_list(words: list[bytes]) -> list[list[int]]:
    """Two rows: the ids of all words, and where each word ends; filled up with 0 and -1."""
    coded = [vocabulary.encode(word.decode()) for word in words if word]
    ids = [token for word in coded for token in word]
    ends = [sum(map(len, coded[: number + 1])) for number in range(len(coded))]
    size = max(1, len(ids))
    return [ids + [0] * (size - len(ids)), ends + [-1] * (size - len(ends))]
