"""Loading and unloading a model at every Triton at once, as KServe's repository API asks for it."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import msgspec

from engines.control import ControlError, Refused
from gateway.engine_control import EngineControl, StillRunning
from gateway.fleet import Member

__all__ = ["change_repository"]

# By Triton's name of a parameter.
OPTIONS = {"unload_dependents": "dependents"}
UNLOAD_S = 30.0
"""Triton answers once an unload has begun; what runs there may take longer than clients wait."""


class _Asked(msgspec.Struct):
    parameters: dict[str, Any] = {}


async def change_repository(
    engines: EngineControl, members: Sequence[Member], model: str, verb: str, body: bytes
) -> tuple[int, bytes]:
    """Do it at all of them: 200 once all have done it, else the first that has not, with Triton's
    status and in its words. Takes as long as the slowest; who waits meanwhile, and who shares an
    order, is as with all orders of `EngineControl`."""
    if verb not in ("load", "unload"):
        return 404, _error(f"unknown: {verb}")
    tritons = [m for m in members if m.kind == "triton" and m.address and not m.leaving]
    if not tritons:
        return 503, _error("no Triton is known here")
    try:
        parameters = msgspec.json.decode(body or b"{}", type=_Asked).parameters
    except (msgspec.DecodeError, RecursionError) as error:
        return 400, _error(f"The body is not as expected: {error}")
    orders = (_order(engines, member, model, verb, parameters) for member in tritons)
    for outcome in await asyncio.gather(*orders, return_exceptions=True):
        if isinstance(outcome, ControlError):
            return _refusal(outcome)
        if isinstance(outcome, BaseException):
            raise outcome
    return 200, b""


async def _order(
    engines: EngineControl, member: Member, model: str, verb: str, parameters: dict[str, Any]
) -> None:
    if verb == "load":
        # Of a model that is loaded Triton looks itself whether its files have changed.
        await engines.load(member, model, {**parameters, "reload": True})
        return
    options = {OPTIONS.get(name, name): value for name, value in parameters.items()}
    try:
        await engines.unload(member, model, options, UNLOAD_S)
    except StillRunning:
        if model not in member.going:
            raise


def _refusal(error: ControlError) -> tuple[int, bytes]:
    if isinstance(error, Refused):
        return error.status, _error(error.words or error.message)
    return (504 if isinstance(error, StillRunning) else 503), _error(str(error))


def _error(text: str) -> bytes:
    return json.dumps({"error": text}).encode()
