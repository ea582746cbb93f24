"""The admin port: health, readiness and metrics for machines, /admin for operators.

A Starlette app run by uvicorn inside the control process, on a socket that is bound already.
Everything under /admin wants the bearer token; without a configured one it is off.
"""

import asyncio
import contextlib
import hmac
import os
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.admin_engines import engine_routes
from gateway.config import Engine, Secret, show
from gateway.config.reader import Reader
from gateway.fleet import FleetError, Member
from gateway.metrics import CONTENT_TYPE, render
from gateway.prober import Watch
from gateway.repository import change_repository
from gateway.state import describe_endpoint, describe_models, describe_workers
from gateway.version import VERSION

if TYPE_CHECKING:
    from gateway.control import Control

__all__ = ["AdminServer", "make_app"]

BODY_BYTES = 1 << 20
# A prompt to be explained, in JSON in JSON.
PROMPT_BYTES = 16 << 20
# Of an `explain`: ours to write, or not to be seen.
OUR_FIELDS = ("host", "content-length", "transfer-encoding", "authorization", "x-api-key")
# From a connection's opening to its first request.
SILENCE_S = 10.0
NO_TOKEN = (
    "The admin API is off because no token is configured. Set `admin.token` in the configuration "
    "file and send SIGHUP, or start with the environment variable HEADGATE_ADMIN_TOKEN; then send "
    "it as 'Authorization: Bearer <token>'."
)


def make_app(control: "Control") -> ASGIApp:
    """The app; its handlers read and change `control` in its own event loop."""
    routes = _Routes(control)
    app = Starlette(
        routes=[
            Route("/health", routes.health),
            Route("/ready", routes.ready),
            Route("/metrics", routes.metrics),
            Route("/admin/endpoints", routes.list_endpoints, methods=["GET"]),
            Route("/admin/endpoints", routes.add_endpoint, methods=["POST"]),
            Route("/admin/endpoints/{name}", routes.show_endpoint, methods=["GET"]),
            Route("/admin/endpoints/{name}", routes.remove_endpoint, methods=["DELETE"]),
            Route("/admin/endpoints/{name}/drain", routes.drain, methods=["POST"]),
            Route("/admin/endpoints/{name}/undrain", routes.undrain, methods=["POST"]),
            *engine_routes(control, routes.member, _body),
            Route("/admin/models", routes.models),
            Route(
                "/admin/v2/repository/models/{model}/{verb}", routes.repository, methods=["POST"]
            ),
            Route("/admin/bus", routes.bus),
            Route("/admin/explain", routes.explain, methods=["POST"]),
            Route("/admin/config", routes.config),
            Route("/admin/sessions", routes.sessions),
            Route("/admin/state", routes.state),
        ],
        exception_handlers={HTTPException: _on_http_error, Exception: _on_bug},
    )
    return _Guard(app, control)


class AdminServer:
    """uvicorn in our loop: no signal handlers, no logs of its own."""

    def __init__(self, control: "Control", sock: socket.socket) -> None:
        config = uvicorn.Config(
            make_app(control),
            log_config=None,
            access_log=False,
            lifespan="off",
            http=_Connection,
            ws="none",
            loop="none",
            server_header=False,
            timeout_graceful_shutdown=1,
        )
        self._server = _Server(config)
        self._socket = sock
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Answer from here on."""
        self._task = asyncio.create_task(self._server.serve(sockets=[self._socket]))
        await self._server.is_up.wait()

    async def stop(self) -> None:
        """End open answers and close the socket."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
        self._socket.close()


class _Connection(HttpToolsProtocol):
    """Closes itself if nothing is asked on it: whoever only opens connections uses up none."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.loop.call_later(SILENCE_S, self._look)

    def _look(self) -> None:
        if self.cycle is None:
            self.transport.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.is_up = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.is_up.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # signals belong to the control process


class _Guard:
    """Lets /admin pass with the token only."""

    def __init__(self, app: ASGIApp, control: "Control") -> None:
        self._app = app
        self._control = control

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refuse(scope) if scope["type"] == "http" else None
        await (refusal or self._app)(scope, receive, send)

    def _refuse(self, scope: Scope) -> Response | None:
        if not scope["path"].startswith("/admin"):
            return None
        token: Secret = self._control.config.admin.token
        if not token:
            return _error(403, "permission_error", "admin_off", NO_TOKEN)
        headers = dict(scope["headers"])
        kind, _, given = headers.get(b"authorization", b"").partition(b" ")
        if kind.lower() == b"bearer" and hmac.compare_digest(
            given.strip(), token.reveal().encode()
        ):
            return None
        text = "Missing or wrong admin token. Send 'Authorization: Bearer <token>'."
        refusal = _error(401, "authentication_error", "invalid_api_key", text)
        refusal.headers["www-authenticate"] = "Bearer"
        return refusal


class _Routes:
    def __init__(self, control: "Control") -> None:
        self._control = control

    async def health(self, _: Request) -> Response:
        return JSONResponse({"status": "ok", "version": VERSION})

    async def ready(self, _: Request) -> Response:
        reasons = self._control.unready_reasons()
        status = "not ready" if reasons else "ready"
        return JSONResponse({"status": status, "reasons": reasons}, 503 if reasons else 200)

    def metrics(self, _: Request) -> Response:
        # Not async: Starlette runs it in a thread, and a page for 1,000 engines takes 0.4 s.
        return Response(render(self._control), headers={"content-type": CONTENT_TYPE})

    async def list_endpoints(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": self._endpoints()})

    async def show_endpoint(self, request: Request) -> Response:
        return JSONResponse(self._describe(self._watch(request)))

    async def add_endpoint(self, request: Request) -> Response:
        reader = Reader("body", {})
        try:
            data = msgspec.json.decode(await _body(request))
        except (msgspec.DecodeError, RecursionError) as error:
            raise HTTPException(400, f"The body is not JSON: {error}") from None
        # From the network no env: and file:, or a token holder could read files through a header.
        secrets = {
            name: data.pop(name, "") if isinstance(data, dict) else ""
            for name in ("api_key", "control_header")
        }
        engine: Engine = reader.read(Engine, data)
        for name, text in secrets.items():
            if not isinstance(text, str) or text.startswith(("env:", "file:")):
                reader.errors.append(f"body: {name}: expected the secret itself as text")
        if reader.errors:
            raise HTTPException(400, "; ".join(reader.errors))
        engine = msgspec.structs.replace(
            engine, **{name: Secret(text) for name, text in secrets.items()}
        )
        if engine.data_parallel > 1:
            raise HTTPException(
                400, "body: data_parallel: add each rank by itself: {..., name: ..., rank: 0}"
            )
        try:
            member = self._control.add(engine, "admin")
        except FleetError as error:
            raise HTTPException(409, f"Cannot add the endpoint: {error}.") from None
        except ValueError as error:
            raise HTTPException(400, f"body: {error}") from None
        return JSONResponse(self._describe(self._control.prober.watches[member.slot]), 201)

    async def remove_endpoint(self, request: Request) -> Response:
        member = self._watch(request).member
        if not member.leaving:
            self._control.remove(member)
        return JSONResponse({"name": member.name, "status": "leaving"}, 202)

    async def drain(self, request: Request) -> Response:
        watch = self._watch(request)
        self._control.prober.drain(watch.member)
        return JSONResponse(self._describe(watch))

    async def undrain(self, request: Request) -> Response:
        watch = self._watch(request)
        if watch.member.leaving:
            raise HTTPException(409, f"'{watch.member.name}' is being removed; add it again.")
        self._control.prober.undrain(watch.member)
        return JSONResponse(self._describe(watch))

    async def models(self, _: Request) -> Response:
        return JSONResponse(describe_models(self._control.fleet, self._control.config))

    async def repository(self, request: Request) -> Response:
        words = request.path_params
        status, body = await change_repository(
            self._control.engine_control,
            list(self._control.fleet.members.values()),
            words["model"],
            words["verb"],
            await _body(request, PROMPT_BYTES),
        )
        return Response(body, status, media_type="application/json")

    async def bus(self, _: Request) -> Response:
        bus = self._control.bus
        return JSONResponse(bus.state.describe(bus.peers, time.monotonic()))

    async def explain(self, request: Request) -> Response:
        try:
            asked = msgspec.json.decode(await _body(request, PROMPT_BYTES), type=_Explain)
        except (msgspec.DecodeError, RecursionError) as error:
            raise HTTPException(400, f"The body is not as expected: {error}") from None
        body = asked.body.encode("utf-8", "surrogatepass")
        fields = {name.lower(): value for name, value in asked.headers.items()}
        lines = [f"POST {asked.path} HTTP/1.1", "host: explain", f"content-length: {len(body)}"]
        lines += [f"{name}: {fields[name]}" for name in fields if name not in OUR_FIELDS]
        if not all(line.isprintable() for line in lines):
            raise HTTPException(400, "Path and headers must be without control characters.")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("utf-8")
        answer = await self._control.supervisor.explain(head, body, asked.key)
        if answer is None:
            raise HTTPException(503, "No worker answers; see /ready.")
        return Response(answer, media_type="application/json")

    async def config(self, _: Request) -> Response:
        return JSONResponse(show(self._control.config))

    async def sessions(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": self._workers()})

    async def state(self, _: Request) -> Response:
        control = self._control
        return JSONResponse(
            {
                "version": VERSION,
                "pid": os.getpid(),
                "uptime_s": round(time.time() - control.started_s, 3),
                "unready": control.unready_reasons(),
                "complete": control.fleet.is_complete(),
                "worker_restarts": control.supervisor.restarts,
                "workers": self._workers(),
                "endpoints": self._endpoints(),
            }
        )

    def _workers(self) -> list[dict[str, Any]]:
        return describe_workers(self._control.supervisor, self._control.shared)

    def _endpoints(self) -> list[dict[str, Any]]:
        return [self._describe(watch) for watch in self._control.watches()]

    def _describe(self, watch: Watch) -> dict[str, Any]:
        control = self._control
        return describe_endpoint(watch, control.shared.table, control.caches, time.monotonic())

    def member(self, request: Request) -> Member:
        """The endpoint that the path names. HTTPException 404: there is none."""
        return self._watch(request).member

    def _watch(self, request: Request) -> Watch:
        name = request.path_params["name"]
        member: Member | None = self._control.fleet.members.get(name)
        if member is None:
            names = ", ".join(sorted(self._control.fleet.members)) or "none"
            raise HTTPException(404, f"There is no endpoint '{name}'. There are: {names}.")
        return self._control.prober.watches[member.slot]


class _Explain(msgspec.Struct, forbid_unknown_fields=True):
    """The request that /admin/explain is asked about. `key`: name of the client's key."""

    body: str
    path: str = "/v1/chat/completions"
    headers: dict[str, str] = {}
    key: str = ""


async def _body(request: Request, limit: int = BODY_BYTES) -> bytes:
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > limit:
            raise HTTPException(413, f"The body is larger than {limit} bytes.")
        pieces.append(piece)
    return b"".join(pieces)


_TYPES = {404: "invalid_request_error", 405: "invalid_request_error", 409: "conflict_error"}


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = error.detail
    if text == "Not Found":
        text = f"Unknown path: {request.url.path}."
    kind = _TYPES.get(error.status_code, "invalid_request_error")
    return _error(error.status_code, kind, None, text, dict(error.headers or {}))


async def _on_bug(_: Request, error: Exception) -> Response:
    return _error(500, "internal_error", "internal", f"The gateway failed: {error}")


def _error(
    status: int, kind: str, code: str | None, text: str, headers: dict[str, str] | None = None
) -> Response:
    body = {"error": {"message": text, "type": kind, "param": None, "code": code}}
    return JSONResponse(body, status, headers)
