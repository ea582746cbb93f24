"""Switching what engines serve: models, adapters, sleep. See `face`; a file for each kind."""

from engines.control.face import (
    Able,
    Call,
    Capabilities,
    ControlError,
    Done,
    Driver,
    ListedModel,
    ModelState,
    Pause,
    Refused,
    Reply,
    Talk,
    Unable,
)
from engines.control.llamacpp import LLAMACPP
from engines.control.ollama import OLLAMA
from engines.control.sglang import SGLANG
from engines.control.triton import TRITON
from engines.control.vllm import VLLM

__all__ = [
    "Able",
    "Call",
    "Capabilities",
    "ControlError",
    "Done",
    "Driver",
    "ListedModel",
    "ModelState",
    "Pause",
    "Refused",
    "Reply",
    "Talk",
    "Unable",
    "driver_of",
]

DRIVERS: dict[str, Driver] = {
    "vllm": VLLM,
    "sglang": SGLANG,
    "triton": TRITON,
    "ollama": OLLAMA,
    "llamacpp": LLAMACPP,
}


def driver_of(kind: str) -> Driver:
    """Of an engine's kind; of any that is not known here, one that only lists models."""
    return DRIVERS.get(kind) or Driver()
