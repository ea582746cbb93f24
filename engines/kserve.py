"""KServe's v2 inference protocol over HTTP, as Triton speaks it: its paths, and prompts in bodies.

Pure: what the data path and the gRPC port have to know of it. Its protobuf is in `kserve_wire`.
"""

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

import msgspec

__all__ = [
    "EXTENSIONS",
    "ModelPath",
    "Tensors",
    "asks_for_ready",
    "infer_tensors",
    "read_model_path",
    "read_repository_path",
]

EXTENSIONS = (
    "classification",
    "sequence",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "model_configuration",
    "binary_tensor_data",
    "parameters",
    "statistics",
)
"""Of Triton's, those that work through a gateway: shared memory needs one machine, traces and logs
are settings of one server."""

GET, POST = ("GET", "HEAD"), ("POST",)
_METHODS = {
    "": GET,
    "ready": GET,
    "config": GET,
    "stats": GET,
    "infer": POST,
    "generate": POST,
    "generate_stream": POST,
}
_MODEL_PATH = re.compile(
    r"(/v2/models/)([^/]+)((?:/versions/[^/]+)?(?:/(ready|config|stats|infer|generate"
    r"|generate_stream))?)"
)
_REPOSITORY_PATH = re.compile(r"/v2/repository/models/([^/]+)/(load|unload)")


@dataclass(frozen=True, slots=True)
class ModelPath:
    """A path below /v2/models/."""

    model: str
    """Percent signs undone."""
    verb: str
    """Its last word; '': the model's metadata."""
    tail: str
    """All behind the model."""

    @property
    def methods(self) -> tuple[str, ...]:
        """Those it takes."""
        return _METHODS[self.verb]

    @property
    def is_info(self) -> bool:
        """It tells of the model and computes nothing."""
        return self.methods is GET

    def target(self, model: str, query: str = "") -> str:
        """The same for another model, as a request's target."""
        return f"/v2/models/{quote(model, safe='')}{self.tail}{query}"


def read_model_path(path: str) -> ModelPath | None:
    """None: it is none, or nothing that goes to an engine."""
    found = _MODEL_PATH.fullmatch(path)
    if found is None or (found[2] == "stats" and not found[3]):
        return None  # statistics of all models: each engine has its own
    return ModelPath(unquote(found[2]), found[4] or "", found[3])


def read_repository_path(path: str) -> tuple[str, str] | None:
    """(model, 'load' or 'unload'); None: it is no such path."""
    found = _REPOSITORY_PATH.fullmatch(path)
    return None if found is None else (unquote(found[1]), found[2])


def asks_for_ready(body: bytes | memoryview | None) -> bool:
    """Does a request for the repository's index want those models alone that are ready?"""
    try:
        asked = msgspec.json.decode(body or b"{}")
    except (msgspec.DecodeError, RecursionError):
        return False
    return isinstance(asked, dict) and asked.get("ready") is True


@dataclass(slots=True)
class Tensors:
    """What routing reads of an inference request's inputs."""

    text: bytes | None = None
    """The first `text_input`, in UTF-8; None: there is none, or not in the request."""
    max_tokens: int = 0
    """0: not said."""
    is_stream: bool = False
    sequence: int | str = 0
    """Of a model that keeps a state: what has the same must meet. 0 and '': none."""


class _Input(msgspec.Struct):
    name: str = ""
    data: msgspec.Raw = msgspec.Raw(b"")
    parameters: dict[str, Any] = {}


class _Infer(msgspec.Struct):
    inputs: list[_Input] = []
    parameters: dict[str, Any] = {}


_WANTED = re.compile(b"text_input|sequence_id")
_decode = msgspec.json.Decoder(_Infer).decode


def infer_tensors(body: bytes | memoryview, header_bytes: int | None) -> Tensors:
    """The prompt and the sequence of a body of /infer. `header_bytes`: of the JSON before its
    binary tensors; None: there are none. What cannot be read is left out: the engine judges it."""
    found = Tensors()
    data = memoryview(body)
    header = data if header_bytes is None else data[:header_bytes]
    if _WANTED.search(header) is None:
        return found
    try:
        asked = _decode(header)
    except (msgspec.DecodeError, RecursionError):
        return found
    sequence = asked.parameters.get("sequence_id")
    found.sequence = sequence if isinstance(sequence, (int, str)) else 0
    at = len(header)
    for one in asked.inputs:
        size = one.parameters.get("binary_data_size")
        if not isinstance(size, int):
            _take_json(found, one)
        else:
            take_raw(found, one.name, data[at : at + size])
            at += max(0, size)
    return found


def _take_json(found: Tensors, one: _Input) -> None:
    """An input with its data in JSON, in however many brackets."""
    if one.name not in ("text_input", "max_tokens", "request_output_len", "stream"):
        return
    try:
        value: Any = msgspec.json.decode(one.data)
    except (msgspec.DecodeError, RecursionError):
        return
    while isinstance(value, list) and value:
        value = value[0]
    if one.name == "text_input" and isinstance(value, str) and found.text is None:
        found.text = value.encode("utf-8", "surrogatepass")
    elif one.name == "stream":
        found.is_stream = value is True
    elif isinstance(value, int) and not isinstance(value, bool):
        found.max_tokens = max(0, value)


def take_raw(found: Tensors, name: str, data: bytes | memoryview) -> None:
    """Take in a tensor of this name in Triton's binary form: strings have their size before them,
    numbers are little-endian."""
    if name == "text_input" and found.text is None and len(data) >= 4:
        size = int.from_bytes(data[:4], "little")
        found.text = bytes(data[4 : 4 + size])
    elif name in ("max_tokens", "request_output_len") and len(data) in (4, 8):
        found.max_tokens = max(0, int.from_bytes(data, "little", signed=True))
    elif name == "stream" and len(data) == 1:
        found.is_stream = data[0] != 0
