"""gRPC's status codes beside HTTP's statuses, by which requests are counted."""

import grpc
from grpc import StatusCode

from gateway.proxy.retry import Cause

__all__ = ["cause_of", "code_of", "status_of"]

_STATUSES = {
    StatusCode.OK: 200,
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.FAILED_PRECONDITION: 400,
    StatusCode.OUT_OF_RANGE: 400,
    StatusCode.UNAUTHENTICATED: 401,
    StatusCode.PERMISSION_DENIED: 403,
    StatusCode.NOT_FOUND: 404,
    StatusCode.ABORTED: 409,
    StatusCode.ALREADY_EXISTS: 409,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.CANCELLED: 499,
    StatusCode.UNIMPLEMENTED: 501,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.DEADLINE_EXCEEDED: 504,
}
_CODES = {
    400: StatusCode.INVALID_ARGUMENT,
    401: StatusCode.UNAUTHENTICATED,
    403: StatusCode.PERMISSION_DENIED,
    404: StatusCode.NOT_FOUND,
    413: StatusCode.RESOURCE_EXHAUSTED,
    429: StatusCode.RESOURCE_EXHAUSTED,
    431: StatusCode.INVALID_ARGUMENT,
    501: StatusCode.UNIMPLEMENTED,
    502: StatusCode.UNAVAILABLE,
    503: StatusCode.UNAVAILABLE,
    504: StatusCode.DEADLINE_EXCEEDED,
}
# What gRPC's own library says of a connection, in place of a server.
_NO_CONNECTION = ("failed to connect", "connections to all backends failing", "connection refused")
_BROKEN = (
    "socket closed",
    "connection reset",
    "broken pipe",
    "goaway",
    "keepalive",
    "stream removed",
    "recvmsg",
    "endpoint closing",
    "transport closed",
    "connection dropped",
)


def status_of(code: StatusCode) -> int:
    """HTTP's status that says about the same."""
    return _STATUSES.get(code, 500)


def code_of(status: int) -> StatusCode:
    """gRPC's code for a status of ours."""
    return _CODES.get(status, StatusCode.INTERNAL)


def cause_of(error: grpc.aio.AioRpcError) -> Cause | None:
    """Why a call failed that another endpoint might answer; None: the answer is the engine's."""
    if error.code() != StatusCode.UNAVAILABLE:
        return None
    text = (error.details() or "").lower()
    if any(words in text for words in _NO_CONNECTION):
        return Cause.DIAL
    if any(words in text for words in _BROKEN):
        return Cause.LOST
    return Cause.STATUS
