"""Requests to a Triton in its own words, as a careful client of gRPC makes them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc.aio
import numpy as np
from tritonclient.grpc import InferResult, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

TYPES: dict[Any, str] = {bool: "BOOL", int: "INT32", float: "FP32", str: "BYTES", "seed": "UINT64"}
CONTENTS = {
    "BOOL": "bool_contents",
    "INT32": "int_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "BYTES": "bytes_contents",
}


@dataclass(frozen=True)
class Flavour:
    """How a model that makes text is asked; its shapes are [1, n] where Triton batches it."""

    model: str
    batched: bool = False
    # Each response of a stream has all of the text, not only what is new.
    cumulative: bool = False
    # What it calls things: None where its parameters go into `sampling_parameters`.
    stream: str = "stream"
    max_tokens: str | None = None
    stop: str | None = None
    always: tuple[tuple[str, Any], ...] = ()

    def inputs(
        self, prompt: str, tokens: int, *, stream: bool = True, stop: str = "", **more: Any
    ) -> dict[str, Any]:
        inputs = {"text_input": prompt, self.stream: stream, **dict(self.always), **more}
        if self.max_tokens is None:
            sampling: dict[str, Any] = {"max_tokens": tokens, "temperature": 0}
            sampling |= {"stop": [stop]} if stop else {}
            return {"sampling_parameters": json.dumps(sampling)} | inputs
        stops = {self.stop: [stop]} if stop and self.stop else {}
        return {self.max_tokens: tokens, **stops} | inputs


_BATCHED: dict[str, Any] = {"batched": True, "max_tokens": "max_tokens", "stop": "stop_words"}
_WITHOUT_PROMPT = (("exclude_input_in_output", True),)
VLLM = Flavour("vllm_model", always=_WITHOUT_PROMPT)
VLLM_EARLY = Flavour("vllm_early", always=_WITHOUT_PROMPT)
ENSEMBLE = Flavour("ensemble", always=_WITHOUT_PROMPT, **_BATCHED)
ENSEMBLE_EARLY = Flavour("ensemble_early", always=_WITHOUT_PROMPT, **_BATCHED)
BLS = Flavour("tensorrt_llm_bls", cumulative=True, always=_WITHOUT_PROMPT, **_BATCHED)
LLMAPI = Flavour(
    "llmapi",
    cumulative=True,
    stream="streaming",
    max_tokens="sampling_param_max_tokens",
    stop="sampling_param_stop",
    always=(("sampling_param_exclude_input_from_output", True),),
)
FLAVOURS = [VLLM, VLLM_EARLY, ENSEMBLE, ENSEMBLE_EARLY, BLS, LLMAPI]


@dataclass(frozen=True)
class Part:
    """One response."""

    texts: list[str]
    outputs: dict[str, Any]
    final: bool

    def one(self, name: str) -> Any:
        """An output's first value; strings as text."""
        value = self.outputs[name].reshape(-1)[0]
        return value.decode() if isinstance(value, bytes) else value.item()


def infer_request(flavour: Flavour, inputs: dict[str, Any], request_id: str) -> Any:
    request = service_pb2.ModelInferRequest(model_name=flavour.model, id=request_id)
    # tritonclient's asynchronous client has no way to ask for it.
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    for name, value in inputs.items():
        values = value if isinstance(value, list) else [value]
        tensor = request.inputs.add(name=name, datatype=TYPES.get(name) or TYPES[type(values[0])])
        tensor.shape.extend([1, len(values)] if flavour.batched else [len(values)])
        data = [item.encode() if isinstance(item, str) else item for item in values]
        getattr(tensor.contents, CONTENTS[tensor.datatype]).extend(data)
    return request


class Client:
    """Of one server; use as an asynchronous context manager."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.aio.insecure_channel(address)
        self._stub = service_pb2_grpc.GRPCInferenceServiceStub(self._channel)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._channel.close()

    @contextlib.asynccontextmanager
    async def open(
        self, flavour: Flavour, inputs: dict[str, Any], request_id: str = ""
    ) -> AsyncIterator[AsyncIterator[Part]]:
        """The responses of one request; what is left of them is cancelled at the end."""
        call = self._stub.ModelStreamInfer()
        try:
            await call.write(infer_request(flavour, inputs, request_id))
            await call.done_writing()
            yield _parts(call)
        finally:
            call.cancel()

    async def ask(self, flavour: Flavour, prompt: str, tokens: int, **more: Any) -> list[Part]:
        """All of one answer."""
        async with self.open(flavour, flavour.inputs(prompt, tokens, **more)) as parts:
            return [part async for part in parts]

    async def text(self, flavour: Flavour, prompt: str, tokens: int, **more: Any) -> str:
        parts = await self.ask(flavour, prompt, tokens, **more)
        texts = ["".join(part.texts) for part in parts if part.texts]
        return texts[-1] if flavour.cumulative else "".join(texts)


async def _parts(call: Any) -> AsyncIterator[Part]:
    """Up to the last; an error of the server's raises, with its words."""
    async for response in call:
        if response.error_message:
            raise InferenceServerException(response.error_message)
        message = response.infer_response
        result = InferResult(message)
        outputs = {out.name: result.as_numpy(out.name) for out in message.outputs}
        texts = outputs.get("text_output", np.array([])).reshape(-1).tolist()
        final = message.parameters["triton_final_response"].bool_param
        yield Part([text.decode() for text in texts], outputs, final)
        if final:
            return
