"""Which option of an OpenAI request is which input of a model: one table for all flavours.

What no flavour has and may not be left out stands here too. All other fields that OpenAI has are
hints, `user` and its kind: an answer that goes without them is still the answer that was asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engines.triton.model import Flavour, TritonModel

__all__ = ["MOST_INT", "OPTIONS", "REFUSED", "Option", "RefusedError"]


class RefusedError(Exception):
    """A request that this model cannot serve. `field`: what of it; `status`: of the answer."""

    def __init__(self, text: str, field: str | None = None, status: int = 400) -> None:
        super().__init__(text)
        self.field = field
        self.status = status


@dataclass(frozen=True, slots=True)
class Option:
    """A number or a truth value that changes what is generated."""

    field: str
    """In an OpenAI request (or in vLLM's extension of it)."""
    kind: type
    """float, int or bool."""
    neutral: float | bool | None
    """The value that changes nothing, so that it may be left out."""
    bounds: tuple[float, float]
    """What it may be; a backend told otherwise answers with a fault of its own, or dies."""
    tensorrt_llm: tuple[str, ...] = ()
    """Inputs of TensorRT-LLM that mean it, the newest name first. In vLLM's sampling_parameters it
    goes by its own name, and so it does with llmapi, behind `sampling_param_`."""

    def input_of(self, model: TritonModel) -> str | None:
        """The model's input for it; None: it has none."""
        is_llmapi = model.flavour is Flavour.LLMAPI
        names = (f"sampling_param_{self.field}",) if is_llmapi else self.tensorrt_llm
        return next((name for name in names if name in model.inputs), None)

    def read(self, request: Mapping[str, Any]) -> Any:
        """Its value; None: not asked for. RefusedError: of another type."""
        value: Any = request.get(self.field)
        if value is None:
            return None
        wanted: tuple[type, ...] = (int, float) if self.kind is float else (self.kind,)
        if type(value) not in wanted:
            raise RefusedError(f"{self.field} must be {_NAMES[self.kind]}", self.field)
        least, most = self.bounds
        if not least <= value <= most:
            text = f"{self.field} must be at least {least}"
            is_told = most < ANY or value > most
            raise RefusedError(text + f", and at most {most}" * is_told, self.field)
        return self.kind(value)


# The most that fits into an FP32.
ANY = float.fromhex("0x1.fffffep+127")
MOST_INT = (1 << 31) - 1
_NAMES = {float: "a number", int: "an integer", bool: "true or false"}

OPTIONS: tuple[Option, ...] = (
    Option("temperature", float, 1.0, (0, ANY), ("temperature",)),
    Option("top_p", float, 1.0, (0, 1), ("top_p", "runtime_top_p")),
    Option("top_k", int, 0, (-1, MOST_INT), ("top_k", "runtime_top_k")),
    Option("min_p", float, 0.0, (0, 1), ("min_p",)),
    Option("seed", int, None, (0, MOST_INT), ("seed", "random_seed")),
    Option("frequency_penalty", float, 0.0, (-2, 2), ("frequency_penalty",)),
    Option("presence_penalty", float, 0.0, (-2, 2), ("presence_penalty",)),
    Option("repetition_penalty", float, 1.0, (0, ANY), ("repetition_penalty",)),
    Option("length_penalty", float, 1.0, (-ANY, ANY), ("length_penalty", "len_penalty")),
    Option("min_tokens", int, 0, (0, MOST_INT), ("min_tokens", "min_length")),
    Option("ignore_eos", bool, False, (0, 1)),
)

REFUSED: Mapping[str, tuple[Any, str]] = {
    "logit_bias": ({}, "logit_bias needs token ids, and Triton's models take text"),
    "suffix": ("", "suffix is not there with Triton's models"),
    "functions": ([], "functions are the old form of tools; use tools"),
    "audio": (None, "Triton's models give text, no audio"),
    "prompt_embeds": (None, "Triton's models take text, no embeddings"),
}
"""Field: (the value besides null that changes nothing, why it cannot be served)."""
