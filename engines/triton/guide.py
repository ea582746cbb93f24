"""What the text of an answer must follow: a JSON schema, a tool's arguments, a grammar.

Sources: OpenAI's `response_format` and `tool_choice`, vLLM's `structured_outputs`; TensorRT-LLM's
guide types (`executor::GuidedDecodingParams`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from engines.triton.model import Flavour, TritonModel
from engines.triton.options import RefusedError

__all__ = ["ForcedTool", "Guide", "read_forced_tool", "read_guide"]

GUIDE_TYPES = {
    "json_object": "json",
    "json": "json_schema",
    "regex": "regex",
    "grammar": "ebnf_grammar",
}
"""What vLLM's kinds of guides are to TensorRT-LLM."""
OLD_FIELDS = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")


@dataclass(frozen=True, slots=True)
class Guide:
    """`kind` and `value` as in vLLM's structured_outputs."""

    kind: str
    value: Any

    def vllm(self) -> str:
        """The entry `structured_outputs` of sampling_parameters: JSON within JSON."""
        return msgspec.json.encode({self.kind: self.value}).decode()

    def tensorrt_llm(self) -> list[tuple[str, bytes]]:
        """Inputs."""
        inputs = [("guided_decoding_guide_type", GUIDE_TYPES[self.kind].encode())]
        if self.kind != "json_object":
            is_text = isinstance(self.value, str)
            text = self.value.encode() if is_text else msgspec.json.encode(self.value)
            inputs.append(("guided_decoding_guide", text))
        return inputs


@dataclass(frozen=True, slots=True)
class ForcedTool:
    """A function that must be called: the answer is its arguments."""

    name: str
    parameters: Mapping[str, Any]
    """Their JSON schema."""
    finish: str
    """The reason for which such an answer ends, where the model says "stop"."""


def read_forced_tool(request: Mapping[str, Any]) -> ForcedTool | None:
    """By a chat's tool_choice; None: the model may write what it likes. RefusedError."""
    tools, choice = request.get("tools"), request.get("tool_choice")
    if choice in (None, "auto", "none"):
        return None
    functions = _functions(tools)
    name: Any
    if choice == "required":
        if len(functions) != 1:
            text = "tool_choice: required can be had with one tool only; name the one to call"
            raise RefusedError(text, "tool_choice")
        name, finish = next(iter(functions)), "tool_calls"
    else:
        called = choice.get("function") if isinstance(choice, dict) else None
        name, finish = called.get("name") if isinstance(called, dict) else None, "stop"
        if not isinstance(name, str) or name not in functions:
            called_for = repr(name if isinstance(name, str) else choice)
            text = f"tool_choice must be auto, none, required or one of tools, not {called_for:.80}"
            raise RefusedError(text, "tool_choice")
    return ForcedTool(name, functions[name], finish)


def _functions(tools: object) -> dict[str, Mapping[str, Any]]:
    """Name to parameters."""
    found: dict[str, Mapping[str, Any]] = {}
    for tool in tools if isinstance(tools, list) else []:
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            parameters = function.get("parameters")
            found[function["name"]] = (
                parameters if isinstance(parameters, dict) else {"type": "object"}
            )
    return found


def read_guide(
    request: Mapping[str, Any], tool: ForcedTool | None, model: TritonModel
) -> Guide | None:
    """None: the text is free. RefusedError: of a wrong form, or not with this model."""
    for field in OLD_FIELDS:
        if request.get(field) is not None:
            raise RefusedError(f"{field} is of older releases; use structured_outputs", field)
    field, guide = "response_format", _by_format(request.get("response_format"))
    if request.get("structured_outputs") is not None:
        field, guide = "structured_outputs", _by_outputs(request["structured_outputs"])
    if tool is not None:
        field, guide = "tool_choice", Guide("json", tool.parameters)
    if guide is not None and not _is_followed(guide, model):
        text = f"the model '{model.name}' in Triton has no input for what {field} asks"
        raise RefusedError(text, field)
    return guide


def _is_followed(guide: Guide, model: TritonModel) -> bool:
    if model.flavour is Flavour.VLLM:
        # Backends that tell no finish reason have no guides either.
        return "return_finish_reason" in model.inputs
    return "guided_decoding_guide_type" in model.inputs and guide.kind in GUIDE_TYPES


def _by_format(format: object) -> Guide | None:
    if format is None:
        return None
    kind = format.get("type") if isinstance(format, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return Guide("json_object", True)
    if kind == "json_schema" and isinstance(format, dict):
        named = format.get("json_schema")
        schema = named.get("schema") if isinstance(named, dict) else None
        if isinstance(schema, dict):
            return Guide("json", schema)
        raise RefusedError(
            "response_format.json_schema.schema must be a JSON schema", "response_format"
        )
    raise RefusedError(
        "response_format.type must be text, json_object or json_schema", "response_format"
    )


def _by_outputs(outputs: object) -> Guide:
    given = outputs if isinstance(outputs, dict) else {}
    given = {kind: value for kind, value in given.items() if value is not None}
    if len(given) != 1:
        text = "structured_outputs must have one of json, json_object, regex, grammar, choice"
        raise RefusedError(text, "structured_outputs")
    ((kind, value),) = given.items()
    return Guide(kind, value)
