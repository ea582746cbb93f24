"""What a model's configuration says of it."""

from typing import Any

import pytest

from engines.triton.model import Flavour, read_model


def config(name: str, inputs: list[str], **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "platform": "",
        "max_batch_size": 0,
        "input": [{"name": one, "data_type": "TYPE_STRING", "dims": [1]} for one in inputs],
        "output": [{"name": "text_output", "data_type": "TYPE_STRING", "dims": [-1]}],
        **more,
    }


DECOUPLED = {"model_transaction_policy": {"decoupled": True}}


@pytest.mark.parametrize(
    ("given", "flavour", "streams", "cancels", "batched"),
    [
        (
            config("a", ["text_input", "stream", "sampling_parameters"], **DECOUPLED),
            Flavour.VLLM,
            True,
            True,
            False,
        ),
        (
            config("b", ["text_input", "max_tokens"], platform="ensemble", max_batch_size=8),
            Flavour.TENSORRT_LLM,
            True,
            False,
            True,
        ),
        (
            config("c", ["text_input", "max_tokens"], max_batch_size=8, **DECOUPLED),
            Flavour.TENSORRT_LLM,
            True,
            True,
            True,
        ),
        (
            config("d", ["text_input", "sampling_param_max_tokens", "streaming"]),
            Flavour.LLMAPI,
            False,
            True,
            False,
        ),
    ],
)
def test_flavour_is_told_by_the_inputs(
    given: dict[str, Any], flavour: Flavour, streams: bool, cancels: bool, batched: bool
) -> None:
    model = read_model(given)

    assert model is not None
    assert (model.flavour, model.streams, model.cancels, model.batched) == (
        flavour,
        streams,
        cancels,
        batched,
    )
    assert model.inputs["text_input"] == "BYTES"


@pytest.mark.parametrize(
    "given",
    [
        {},
        config("sum", ["a", "b"]),
        config("text without options", ["text_input"]),
        {**config("no output", ["text_input", "max_tokens"]), "output": []},
        {"name": "odd", "input": "text_input", "output": 3},
        {"name": "odd", "input": [3, {"name": 4}], "output": [None]},
        {**config("x", ["text_input", "max_tokens"]), "name": 7},
    ],
)
def test_what_generates_no_text_is_none(given: dict[str, Any]) -> None:
    assert read_model(given) is None
