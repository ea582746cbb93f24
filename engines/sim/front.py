"""The server's side towards clients: takes requests, lets faults strike them, sees to answers."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Protocol

from engines.sim.control import Control
from engines.sim.errors import ApiError, Unauthorized, busy, core_dead, shut_down
from engines.sim.fault import Fault, Struck
from engines.sim.http import Connection, Request, Traffic
from engines.sim.life import Life
from engines.sim.response import Response

if TYPE_CHECKING:
    from engines.sim.server import SimEngine

__all__ = ["Front", "Router"]


class Router(Protocol):
    """Finds who answers a request."""

    def route(self, request: Request, response: Response) -> None:
        """Answer, now or through an exchange. Raises ApiError for what is to be refused."""


class Front:
    """One for an engine's whole existence; `routes` changes when the engine starts anew."""

    routes: Router

    def __init__(self, engine: SimEngine) -> None:
        self.traffic = Traffic()
        self.connections: set[Connection] = set()
        self.keep_alive_s = engine.config.keep_alive_s
        self._engine = engine
        self._control = Control(engine)

    def reads(self, request: Request) -> bool:
        """Whether to read on after this head."""
        if request.is_inference and self._engine.faults.strike_read():
            self._engine.accounts.unread += 1
            return False
        return True

    def handle(self, request: Request, response: Response) -> None:
        """Answer a request, now or later."""
        engine = self._engine
        if request.path.startswith("/sim/"):
            self._control.handle(request, response)
            return
        if not request.is_inference:
            if engine.life is not Life.HANGING:
                self._answer(request, response)
            return
        engine.accounts.saw(response)
        response.on_gone = partial(self._gone, response)
        struck = engine.faults.strike()
        response.body_fault = struck.body
        if struck.drip is not None:
            response.drip(struck.drip)
        if struck.delay is None:
            self._strike(request, response, struck)
        else:
            delay_s = 1.0 if struck.delay.seconds is None else struck.delay.seconds
            strike = partial(self._strike, request, response, struck)
            asyncio.get_running_loop().call_later(delay_s, strike)

    def _gone(self, response: Response) -> None:
        self._engine.settle(response, "failed" if response.broken else "aborted")

    def _strike(self, request: Request, response: Response, struck: Struck) -> None:
        if response.closed or self._engine.life in (Life.HANGING, Life.EXITED):
            return
        fault = struck.answer
        if fault is None:
            self._answer(request, response)
        elif fault.kind is Fault.ERROR_500:
            error = ApiError(500, "Internal server error", "InternalServerError")
            self._refuse(request, response, error)
        elif fault.kind is Fault.ERROR_503:
            self._refuse(request, response, busy())
        elif fault.kind is Fault.ERROR_429:
            response.headers.append(("retry-after", "1"))
            error = ApiError(429, "Too many requests", "TooManyRequests")
            self._refuse(request, response, error)
        else:
            response.strike(fault)

    def _answer(self, request: Request, response: Response) -> None:
        if self._engine.config.request_id_headers and "x-request-id" in request.headers:
            response.headers.append(("x-request-id", request.headers["x-request-id"]))
        try:
            self._authorize(request)
            self._check_life(request)
            self.routes.route(request, response)
        except ApiError as error:
            self._refuse(request, response, error)

    def _authorize(self, request: Request) -> None:
        key = self._engine.config.api_key
        if key and request.path.startswith("/v1") and request.method != "OPTIONS":
            given = request.headers.get("authorization", "")
            if given != f"Bearer {key}":
                raise Unauthorized()

    def _check_life(self, request: Request) -> None:
        life = self._engine.life
        if life is Life.DYING and request.is_inference:
            raise core_dead()
        if life is Life.DRAINING and request.is_inference:
            raise shut_down()

    def _refuse(self, request: Request, response: Response, error: ApiError) -> None:
        dialect = "anthropic" if request.path.startswith("/v1/messages") else "openai"
        response.headers += error.headers
        response.send(error.status, error.body(dialect))
        self._engine.settle(response, "refused")
