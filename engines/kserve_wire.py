"""The protobuf of KServe's gRPC service, as far as a gateway reads and writes it itself.

Messages are relayed as the bytes they came in; here a few of their fields are found, and small
messages of our own are made. Field numbers: Triton's grpc_service.proto, and grpc.health.v1.
"""

import base64
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from engines.kserve import Tensors, take_raw
from engines.triton._wire import field as part

__all__ = [
    "HEALTH",
    "SERVICE",
    "Infer",
    "is_decoupled",
    "read_flag",
    "read_infer",
    "read_name",
    "read_repository_request",
    "read_stream_error",
    "renamed",
    "write_flag",
    "write_index",
    "write_server_metadata",
    "write_stream_error",
]

SERVICE = "/inference.GRPCInferenceService/"
HEALTH = "/grpc.health.v1.Health/"

Field = tuple[int, "int | bytes"]
"""A field's number, and its value: of a message, string or bytes as they stand there."""


def fields(message: bytes) -> Iterator[Field]:
    """All fields in their order. ValueError: it is no protobuf message."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if kind == 2:
            size, at = _varint(message, at)
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
        else:
            raise ValueError("a field of a kind that is not used")
        if at + size > end:
            raise ValueError("a field that is cut off")
        yield tag >> 3, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 70:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("a number that does not end")


def _text(value: int | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else ""


# -- requests that name a model


def read_name(message: bytes) -> tuple[str, str]:
    """(name, version) of a request about a model: ModelReady, ModelMetadata, ModelConfig and
    ModelStatistics. ValueError."""
    found = {number: _text(value) for number, value in fields(message) if number in (1, 2)}
    return found.get(1, ""), found.get(2, "")


def renamed(message: bytes, name: str) -> bytes:
    """The same request for another model: of a field that stands twice the last counts."""
    return message + part(1, name)


@dataclass(slots=True)
class Infer:
    """What is read of a ModelInferRequest."""

    model: str = ""
    id: str = ""
    tensors: Tensors = field(default_factory=Tensors)


def read_infer(message: bytes) -> Infer:
    """ValueError: it is no protobuf message."""
    found = Infer()
    names: list[str] = []
    raw: list[bytes] = []
    for number, value in fields(message):
        if number == 1:
            found.model = _text(value)
        elif number == 3:
            found.id = _text(value)
        elif isinstance(value, int):
            continue
        elif number == 4:
            name, parameter = _parameter(value)
            if name == "sequence_id" and isinstance(parameter, (int, str)):
                found.tensors.sequence = parameter
        elif number == 5:
            names.append(_read_input(value, found.tensors))
        elif number == 7:
            raw.append(value)
    # Where tensors come raw all of them do, in order, but for those in shared memory.
    if len(raw) == len(names):
        for name, data in zip(names, raw, strict=True):
            take_raw(found.tensors, name, data)
    return found


def _read_input(message: bytes, found: Tensors) -> str:
    """An InferInputTensor: its name; contents that stand in it are taken."""
    name, contents = "", b""
    for number, value in fields(message):
        if number == 1:
            name = _text(value)
        elif number == 5 and isinstance(value, bytes):
            contents = value
    if contents and name == "text_input" and found.text is None:
        found.text = next((v for n, v in fields(contents) if n == 8 and isinstance(v, bytes)), None)
    elif contents and name == "stream":
        found.is_stream = _first_number(contents, 1) != 0
    elif contents and name in ("max_tokens", "request_output_len"):
        found.max_tokens = _first_number(contents, 2)
    return name


def _first_number(contents: bytes, wanted: int) -> int:
    """The first of a repeated field of numbers, packed or not; 0: there is none."""
    for number, value in fields(contents):
        if number == wanted:
            first = _varint(value, 0)[0] if isinstance(value, bytes) else value
            return first if first < 1 << 31 else 0
    return 0


def _parameter(entry: bytes) -> tuple[str, Any]:
    """An entry of a map of parameters: its name, and its value as Python has it."""
    parts = dict(fields(entry))
    name, inner = _text(parts.get(1, b"")), parts.get(2, b"")
    if not isinstance(inner, bytes):
        return name, None
    for number, value in fields(inner):
        if number == 1:
            return name, value != 0
        if number == 3:
            return name, _text(value)
        return name, value
    return name, None


def is_decoupled(message: bytes) -> bool:
    """Of a ModelConfigResponse: may the model answer a request with any number of responses? Of an
    ensemble its steps decide: it is taken for one that may."""
    for number, value in fields(message):
        if number == 1 and isinstance(value, bytes):
            parts = list(fields(value))
            policies = [v for n, v in parts if n == 19 and isinstance(v, bytes)]
            is_ensemble = any(n == 15 for n, _ in parts)
            return is_ensemble or any(n == 1 and v != 0 for p in policies for n, v in fields(p))
    return False


def read_repository_request(message: bytes) -> tuple[str, dict[str, Any]]:
    """(model, parameters as HTTP has them) of a request to load or unload. ValueError."""
    model, parameters = "", {}
    for number, value in fields(message):
        if number == 2:
            model = _text(value)
        elif number == 3 and isinstance(value, bytes):
            name, parameter = _parameter(value)
            if isinstance(parameter, bytes):
                parameter = base64.b64encode(parameter).decode()
            parameters[name] = parameter
    return model, parameters


# -- small messages


def read_flag(message: bytes, number: int) -> bool:
    """A field that is a bool; False if it is not there. ValueError."""
    return any(n == number and value != 0 for n, value in fields(message))


def write_flag(value: bool) -> bytes:
    """ServerLive, ServerReady and ModelReady answer with it."""
    return b"\x08\x01" if value else b""


def write_server_metadata(name: str, version: str, extensions: Iterable[str]) -> bytes:
    """A ServerMetadataResponse."""
    return part(1, name) + part(2, version) + b"".join(part(3, one) for one in extensions)


def write_index(models: Iterable[dict[str, str]]) -> bytes:
    """A RepositoryIndexResponse of entries with name, version, state and reason."""
    names = ("name", "version", "state", "reason")
    return b"".join(
        part(1, b"".join(part(n, one[k]) for n, k in enumerate(names, 1) if one.get(k)))
        for one in models
    )


def write_stream_error(message: str, request_id: str) -> bytes:
    """A ModelStreamInferResponse that says that a request failed."""
    inner = part(3, request_id) if request_id else b""
    return part(1, message) + part(2, inner)


def read_stream_error(message: bytes) -> str:
    """Of a ModelStreamInferResponse: what failed; '': it is a response."""
    # Fields are written in the order of their numbers, and empty ones are not.
    if message[:1] != b"\x0a":
        return ""
    try:
        return next((_text(value) for number, value in fields(message) if number == 1), "")
    except ValueError:
        return ""
