"""The `/sim/` routes: set faults, heal, read accounts. They work whatever state the engine is in,
as long as a connection to it, or to another engine of its process, can be had."""

from __future__ import annotations

from json import JSONDecodeError, loads
from typing import TYPE_CHECKING, Any

from engines.sim.errors import ApiError, Detail
from engines.sim.http import Request
from engines.sim.reply import compact
from engines.sim.response import Response

if TYPE_CHECKING:
    from engines.sim.server import SimEngine

__all__ = ["Control"]

_OPTIONS = ("count", "seconds", "after_events", "bytes", "exit_s")


class Control:
    """Routes `POST /sim/fault`, `POST /sim/heal`, `GET /sim/state`.

    `"engine"` in the body, or `?engine=` in the address, names another engine of the process.
    """

    def __init__(self, engine: SimEngine) -> None:
        self._engine = engine

    def handle(self, request: Request, response: Response) -> None:
        """Answer with the state after the command; 400 if it makes no sense."""
        try:
            engine = self._command(request)
        except ApiError as error:
            response.send(error.status, error.body())
        else:
            response.send(200, compact(engine.state()))

    def _command(self, request: Request) -> SimEngine:
        fields = _fields(request)
        engine = self._chosen(request, fields)
        match (request.method, request.path):
            case ("GET", "/sim/state"):
                pass
            case ("POST", "/sim/heal"):
                engine.heal()
            case ("POST", "/sim/fault"):
                options = {name: fields[name] for name in _OPTIONS if fields.get(name) is not None}
                try:
                    engine.fault(str(fields.get("kind")), **options)
                except (ValueError, TypeError) as error:
                    raise ApiError(400, str(error)) from None
            case _:
                raise Detail(404, "Not Found")
        return engine

    def _chosen(self, request: Request, fields: dict[str, Any]) -> SimEngine:
        name = fields.get("engine") or request.query.get("engine", [""])[0]
        if not name:
            return self._engine
        engine = self._engine.peers.get(str(name))
        if engine is None:
            known = ", ".join(self._engine.peers)
            raise ApiError(404, f"no engine {name!r} here; engines: {known}", "NotFoundError")
        return engine


def _fields(request: Request) -> dict[str, Any]:
    try:
        fields = loads(request.body or b"{}")
    except (JSONDecodeError, UnicodeDecodeError) as error:
        raise ApiError(400, f"not JSON: {error}") from None
    if not isinstance(fields, dict):
        raise ApiError(400, "a JSON object is wanted")
    return fields
