"""What a model inside Triton is, by its configuration: does it generate text, and how is it asked?

The source of the inputs' names: vllm_backend `src/model.py`, TensorRT-LLM
`triton_backend/all_models/{inflight_batcher_llm,llmapi}`; of the configuration's shape: Triton's
model configuration (`GET /v2/models/X/config`).
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec

__all__ = ["Flavour", "TritonModel", "read_model"]


class Flavour(StrEnum):
    """How a generation's options reach the model."""

    TENSORRT_LLM = "tensorrt_llm"
    """A tensor each: max_tokens, stream, stop_words ... (ensemble, or BLS)."""
    LLMAPI = "llmapi"
    """A tensor each: sampling_param_max_tokens, streaming ..."""
    VLLM = "vllm"
    """One JSON text, sampling_parameters."""


class TritonModel(msgspec.Struct, frozen=True):
    """A model that takes text and gives text."""

    name: str
    flavour: Flavour
    inputs: dict[str, str]
    """Tensors that it takes, and their datatypes as they go over the wire."""
    batched: bool
    """Tensors have a batch dimension before their own."""
    streams: bool
    """It may answer one request with many responses."""
    is_cumulative: bool
    """Each response of a stream has all the text so far."""
    cancels: bool
    """A cancelled request ends at once; an ensemble's runs to its end."""


def read_model(config: Mapping[str, Any]) -> TritonModel | None:
    """By a model's configuration; None: it does not generate text. Never raises."""
    inputs, outputs = _tensors(config.get("input")), _tensors(config.get("output"))
    if "text_input" not in inputs or "text_output" not in outputs:
        return None
    flavour = _flavour(inputs)
    name = config.get("name")
    if flavour is None or not isinstance(name, str):
        return None
    is_ensemble = bool(config.get("ensemble_scheduling")) or config.get("platform") == "ensemble"
    policy = config.get("model_transaction_policy")
    decoupled = isinstance(policy, dict) and policy.get("decoupled") is True
    batch_size = config.get("max_batch_size")
    return TritonModel(
        name,
        flavour,
        inputs,
        batched=isinstance(batch_size, int) and batch_size > 0,
        # An ensemble's own policy is not told; its steps decide.
        streams=decoupled or is_ensemble,
        # TensorRT-LLM's BLS does so to keep letters of several tokens whole.
        is_cumulative=flavour is Flavour.LLMAPI or _says(config, "accumulate_tokens"),
        cancels=not is_ensemble,
    )


def _flavour(inputs: Mapping[str, str]) -> Flavour | None:
    if "sampling_parameters" in inputs:
        return Flavour.VLLM
    if "sampling_param_max_tokens" in inputs:
        return Flavour.LLMAPI
    return Flavour.TENSORRT_LLM if "max_tokens" in inputs else None


def _says(config: Mapping[str, Any], name: str) -> bool:
    """Whether a parameter of the model's is "true"."""
    parameters = config.get("parameters")
    value = parameters.get(name) if isinstance(parameters, dict) else None
    text = value.get("string_value") if isinstance(value, dict) else None
    return isinstance(text, str) and text.lower() in ("true", "1")


def _tensors(listed: object) -> dict[str, str]:
    """Name to datatype: BYTES for TYPE_STRING, INT32 for TYPE_INT32."""
    found: dict[str, str] = {}
    for tensor in listed if isinstance(listed, list) else []:
        if not isinstance(tensor, dict):
            continue
        name, kind = tensor.get("name"), tensor.get("data_type")
        if isinstance(name, str) and isinstance(kind, str):
            datatype = kind.removeprefix("TYPE_")
            found[name] = "BYTES" if datatype == "STRING" else datatype
    return found
