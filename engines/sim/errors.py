"""Refusals: what vLLM says when it will not, or cannot, serve a request."""

from __future__ import annotations

from json import dumps

__all__ = [
    "BUSY",
    "CORE_DEAD",
    "SHUT_DOWN",
    "ApiError",
    "Detail",
    "Unauthorized",
    "bad_value",
    "busy",
    "core_dead",
    "field_missing",
    "invalid",
    "not_found_model",
    "shut_down",
]

CORE_DEAD = "EngineCore encountered an issue. See stack trace (above) for the root cause."
SHUT_DOWN = "cannot schedule new futures after shutdown"
BUSY = "The engine is currently busy and cannot accept new requests. Please retry later."


class ApiError(Exception):
    """A refusal. `kind` and `param` are the `type` and `param` of the OpenAI error object."""

    headers: tuple[tuple[str, str], ...] = ()
    """Further response headers."""

    def __init__(
        self, status: int, message: str, kind: str = "BadRequestError", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param

    def body(self, dialect: str = "openai") -> bytes:
        """The response body in the route's dialect: `openai` or `anthropic`."""
        if dialect == "anthropic":
            error = {"type": self.kind, "message": self.message}
            return _dump({"type": "error", "error": error})
        return _dump({"error": self.fields()})

    def fields(self) -> dict[str, object]:
        """The OpenAI error object; `code` is the HTTP status as a number."""
        return {
            "message": self.message,
            "type": self.kind,
            "param": self.param,
            "code": self.status,
        }


class Detail(ApiError):
    """A refusal by the web framework rather than the engine: `{"detail": ...}`."""

    def __init__(
        self, status: int, message: str, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(status, message)
        self.headers = headers

    def body(self, dialect: str = "openai") -> bytes:
        return _dump({"detail": self.message})


class Unauthorized(ApiError):
    """A missing or wrong key. `error` is a plain string here."""

    def __init__(self) -> None:
        super().__init__(401, "Unauthorized")

    def body(self, dialect: str = "openai") -> bytes:
        return _dump({"error": self.message})


def invalid(kind: str, loc: str, msg: str, got: str, ctx: str = "") -> ApiError:
    """A failed validation of the request body, worded as pydantic words it."""
    detail = f"{{'type': '{kind}', 'loc': '{loc}', 'msg': '{msg}', 'input': {got!r}{ctx}}}"
    return ApiError(400, f"1 validation error:\n  {detail}", "Bad Request", loc)


def field_missing(name: str, fields: int) -> ApiError:
    """A required field is absent from a body of so many fields."""
    return invalid("missing", f"body.{name}", "Field required", f"<dict of {fields} items>")


def bad_value(param: str, value: object, message: str) -> ApiError:
    """A value that parses but makes no sense."""
    return ApiError(400, f"{message} (parameter={param}, value={value})", param=param)


def not_found_model(model: str, served: str) -> ApiError:
    """No such model; only base names are listed."""
    message = f"The model `{model}` does not exist. Valid aliases: {served}."
    return ApiError(404, message, "NotFoundError", "model")


def core_dead() -> ApiError:
    """The engine process is gone."""
    return ApiError(500, CORE_DEAD, "InternalServerError")


def shut_down() -> ApiError:
    """A new request while the server drains after SIGTERM."""
    return ApiError(500, SHUT_DOWN, "InternalServerError")


def busy() -> ApiError:
    """The limit of queued requests is reached. No Retry-After comes with it."""
    return ApiError(503, BUSY, "Service Unavailable")


def _dump(value: object) -> bytes:
    return dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
