"""The step from token ids to text. A character of which it has a part only is lost."""

from made_up import tensors, vocabulary


class TritonPythonModel:
    def execute(self, requests):
        return [self._text(request) for request in requests]

    def _text(self, request):
        [row], [counts] = (
            tensors.array(request, name).tolist() for name in ("TOKENS_BATCH", "SEQUENCE_LENGTH")
        )
        texts = [
            vocabulary.decode(ids[:count]).decode(errors="replace")
            for ids, count in zip(row, counts, strict=True)
        ]
        return tensors.response(tensors.strings("OUTPUT", texts, (1, -1)))
