"""The part of /admin that switches what engines serve; see `EngineControl`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from engines.control import ControlError, Refused, Unable
from gateway.engine_action import GRACE_S
from gateway.engine_control import Outcome, StillRunning, Unreachable

if TYPE_CHECKING:
    from gateway.control import Control
    from gateway.fleet import Member

__all__ = ["engine_routes"]

T = TypeVar("T")
# An engine's refusals of what was asked; others, as of our credentials there, are not the caller's.
PASSED_ON = (400, 404, 409, 422)
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]


class _Order(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    timeout_s: Seconds | None = None
    """How long to wait for the end; default: by what is asked for."""


class _Model(_Order):
    model: Text
    options: dict[str, Any] = {}


class _Adapter(_Order):
    name: Text
    path: Text


class _Sleep(_Order):
    level: Annotated[int, msgspec.Meta(ge=0, le=2)] = 1
    grace_s: Annotated[float, msgspec.Meta(ge=0, le=86400)] = GRACE_S


def engine_routes(
    control: Control,
    member_of: Callable[[Request], Member],
    body_of: Callable[[Request], Awaitable[bytes]],
) -> list[Route]:
    """`member_of(request)`: the endpoint in its path; `body_of(request)`: its body, bounded."""
    routes = _EngineRoutes(control, member_of, body_of)
    place = "/admin/endpoints/{name}"
    return [
        Route(f"{place}/models", routes.models, methods=["GET"]),
        Route(f"{place}/ready/{{model:path}}", routes.ready, methods=["GET"]),
        Route(f"{place}/load", routes.load, methods=["POST"]),
        Route(f"{place}/unload", routes.unload, methods=["POST"]),
        Route(f"{place}/adapters", routes.load_adapter, methods=["POST"]),
        Route(f"{place}/adapters/{{adapter:path}}", routes.unload_adapter, methods=["DELETE"]),
        Route(f"{place}/sleep", routes.sleep, methods=["POST"]),
        Route(f"{place}/wake", routes.wake, methods=["POST"]),
    ]


class _EngineRoutes:
    def __init__(
        self,
        control: Control,
        member_of: Callable[[Request], Member],
        body_of: Callable[[Request], Awaitable[bytes]],
    ) -> None:
        self._control = control
        self._member = member_of
        self._body = body_of

    async def models(self, request: Request) -> Response:
        member, engines = self._member(request), self._control.engine_control
        try:
            able, listed = await asyncio.gather(
                engines.capabilities(member), engines.list_models(member)
            )
        except ControlError as error:
            return _failed(error)
        watch = self._control.prober.watch(member)
        if watch is None:
            raise HTTPException(404, f"'{member.name}' has left.")
        return JSONResponse(
            {
                "object": "list",
                "endpoint": member.name,
                "kind": member.kind,
                "asleep": watch.asleep,
                "capabilities": able.described(),
                "data": [
                    {
                        "id": one.name,
                        "state": one.state,
                        "reason": one.reason,
                        "parent": one.parent or None,
                        "path": one.path or None,
                    }
                    for one in listed
                ],
            }
        )

    async def ready(self, request: Request) -> Response:
        member, model = self._member(request), request.path_params["model"]
        try:
            ready = await self._control.engine_control.is_ready(member, model)
        except ControlError as error:
            return _failed(error)
        return JSONResponse({"endpoint": member.name, "model": model, "ready": ready})

    async def load(self, request: Request) -> Response:
        member, asked = self._member(request), await self._read(request, _Model)
        engines = self._control.engine_control
        return await _answer(engines.load(member, asked.model, asked.options, asked.timeout_s))

    async def unload(self, request: Request) -> Response:
        member, asked = self._member(request), await self._read(request, _Model)
        engines = self._control.engine_control
        return await _answer(engines.unload(member, asked.model, asked.options, asked.timeout_s))

    async def load_adapter(self, request: Request) -> Response:
        member, asked = self._member(request), await self._read(request, _Adapter)
        engines = self._control.engine_control
        return await _answer(engines.load_adapter(member, asked.name, asked.path, asked.timeout_s))

    async def unload_adapter(self, request: Request) -> Response:
        member, asked = self._member(request), await self._read(request, _Order)
        name, engines = request.path_params["adapter"], self._control.engine_control
        return await _answer(engines.unload_adapter(member, name, asked.timeout_s))

    async def sleep(self, request: Request) -> Response:
        member, asked = self._member(request), await self._read(request, _Sleep)
        engines = self._control.engine_control
        return await _answer(engines.sleep(member, asked.level, asked.grace_s, asked.timeout_s))

    async def wake(self, request: Request) -> Response:
        member, asked = self._member(request), await self._read(request, _Order)
        return await _answer(self._control.engine_control.wake(member, asked.timeout_s))

    async def _read(self, request: Request, wanted: type[T]) -> T:
        try:
            return msgspec.json.decode(await self._body(request) or b"{}", type=wanted)
        except (msgspec.DecodeError, RecursionError) as error:
            raise HTTPException(400, f"The body is not as expected: {error}") from None


async def _answer(coming: Awaitable[Outcome]) -> Response:
    try:
        return JSONResponse(asdict(await coming))
    except ControlError as error:
        return _failed(error)


def _failed(error: ControlError) -> Response:
    """In OpenAI's shape, with the engine's own status and words beside."""
    status, kind, code = 500, "internal_error", "internal"
    said: dict[str, Any] = {}
    if isinstance(error, Unable):
        status, kind, code = 501, "invalid_request_error", "engine_cannot"
    elif isinstance(error, Refused):
        status = error.status if error.status in PASSED_ON else 502
        kind = "invalid_request_error" if status < 500 else "upstream_error"
        code = "engine_refused"
        said = {"engine_status": error.status, "engine_message": error.words}
    elif isinstance(error, Unreachable):
        status, kind, code = 503, "service_unavailable_error", "engine_unreachable"
    elif isinstance(error, StillRunning):
        status, kind, code = 504, "timeout_error", "still_running"
    body = {"error": {"message": str(error), "type": kind, "param": None, "code": code, **said}}
    return JSONResponse(body, status)
