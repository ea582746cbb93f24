"""One answer while it grows, as engines that detokenize by themselves (vLLM) show it."""

import codecs
from collections.abc import Iterator

from made_up import vocabulary


class Answer:
    """Shows whole characters only, no stop string, and nothing that may yet become one."""

    def __init__(self, tokens: Iterator[int], limit_tokens: int, stops: list[str]) -> None:
        self.ids: list[int] = []
        self.finish_reason: str | None = None
        self.stop_reason: str | None = None
        self._tokens = tokens
        self._limit_tokens = limit_tokens
        self._stops = [stop for stop in stops if stop]
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._whole = ""

    @property
    def text(self) -> str:
        if self.finish_reason:
            return self._whole
        held = max((len(stop) - 1 for stop in self._stops), default=0)
        return self._whole[: len(self._whole) - held]

    def advance(self, count: int) -> None:
        for _ in range(count):
            if not self.finish_reason:
                self._take(next(self._tokens))

    def _take(self, token: int) -> None:
        self.ids.append(token)
        self._whole += self._decoder.decode(vocabulary.data_of(token))
        if token == vocabulary.EOS:
            self._finish("stop")
        elif not self._stopped() and len(self.ids) >= self._limit_tokens:
            self._finish("length")

    def _stopped(self) -> bool:
        found = [(self._whole.find(stop), stop) for stop in self._stops if stop in self._whole]
        if found:
            at, self.stop_reason = min(found)
            self._whole = self._whole[:at]
            self.finish_reason = "stop"
        return bool(found)

    def _finish(self, reason: str) -> None:
        # What is left of a character that was not finished.
        self._whole += self._decoder.decode(b"", final=True)
        self.finish_reason = reason
