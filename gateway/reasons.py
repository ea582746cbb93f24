"""Why Headgate itself refuses or ends a request: one table, seen by clients and in the metrics.

The name goes out as `x-headgate-reason` and as the `reason` label; `headgate_refusals_total` and
`headgate_failures_total` count by it. Statuses follow design of the OpenAI error surface, so that
clients' own retry rules do the right thing.
"""

from enum import IntEnum
from typing import NamedTuple

__all__ = ["FROM_QUEUE", "REASONS", "Reason", "Words"]


class Reason(IntEnum):
    """Position in the table and in the shared counters; append only, at most 64."""

    NONE = 0
    BAD_FRAMING = 1
    HEAD_TOO_LARGE = 2
    UNAUTHORIZED = 3
    FORBIDDEN_MODEL = 4
    UNKNOWN_PATH = 5
    METHOD_NOT_ALLOWED = 6
    HEAD_TIMEOUT = 7
    BODY_TIMEOUT = 8
    BODY_TOO_LARGE = 9
    CONTENT_ENCODING = 10
    BAD_JSON = 11
    BAD_MODEL = 12
    NO_MODEL = 13
    UNKNOWN_MODEL = 14
    NO_ENDPOINT = 15
    OVERLOADED = 16
    UPGRADE = 17
    FORBIDDEN_FIELD = 18
    DRAINING = 19
    UNKNOWN_RESPONSE = 20
    BAD_LABELS = 24
    BAD_PRIORITY = 21
    HOLD_FULL = 22
    HOLD_TIMEOUT = 23
    FORBIDDEN_REPOSITORY = 25
    UNKNOWN_NATIVE_MODEL = 26
    UNMATCHED_LABELS = 27
    # after dispatch: the request fails
    CONNECT_FAILED = 32
    UPSTREAM_LOST = 33
    UPSTREAM_MALFORMED = 34
    FIRST_BYTE_TIMEOUT = 35
    EVENT_TIMEOUT = 36
    ENDPOINT_CONDEMNED = 37
    DRAIN_GRACE_OVER = 38
    TURNED_AWAY = 39
    WORKER_LOST = 40
    INTERNAL = 41


class Words(NamedTuple):
    """How a reason is said: HTTP status, OpenAI error type and code, and a sentence.

    The sentence may hold one `{}` for a detail. `retry_after_s`: sent as `Retry-After`; FROM_QUEUE:
    as long as the queue of held requests takes, from how fast it moves.
    """

    status: int
    type: str
    code: str | None
    message: str
    retry_after_s: int | None = None


FROM_QUEUE = -1
INVALID = "invalid_request_error"
UNAVAILABLE = "service_unavailable_error"
BUSY = "rate_limit_error"

REASONS: dict[Reason, Words] = {
    Reason.BAD_FRAMING: Words(400, INVALID, None, "The HTTP message is malformed: {}"),
    Reason.HEAD_TOO_LARGE: Words(431, INVALID, None, "The request head is too large: {}"),
    Reason.UNAUTHORIZED: Words(
        401,
        "authentication_error",
        "invalid_api_key",
        "Missing or unknown API key. Send a valid key as 'Authorization: Bearer <key>' "
        "or 'x-api-key: <key>'.",
    ),
    Reason.FORBIDDEN_MODEL: Words(
        403, "permission_error", "model_not_allowed", "This API key may not use the model '{}'."
    ),
    Reason.UNKNOWN_PATH: Words(
        404,
        INVALID,
        "unknown_url",
        "Unknown path: {}. {}",
    ),
    Reason.METHOD_NOT_ALLOWED: Words(405, INVALID, None, "This path does not take the method {}."),
    Reason.HEAD_TIMEOUT: Words(
        408, INVALID, None, "The request head did not arrive in time; send it at once."
    ),
    Reason.BODY_TIMEOUT: Words(
        408, INVALID, None, "The request body arrived too slowly or stopped arriving."
    ),
    Reason.BODY_TOO_LARGE: Words(
        413,
        INVALID,
        None,
        "The request body is larger than the {} bytes allowed (`limits.body_bytes`).",
    ),
    Reason.CONTENT_ENCODING: Words(
        415, INVALID, None, "Content-Encoding '{}' is not supported: send the body uncompressed."
    ),
    Reason.BAD_JSON: Words(400, INVALID, None, "The request body is not a JSON object: {}"),
    Reason.BAD_MODEL: Words(400, INVALID, None, "`model` must be a string."),
    Reason.NO_MODEL: Words(
        400, INVALID, "model_required", "Name a model in `model`. Served here: {}."
    ),
    Reason.UNKNOWN_MODEL: Words(
        404, INVALID, "model_not_found", "The model '{}' does not exist here. Served: {}."
    ),
    Reason.NO_ENDPOINT: Words(
        503, UNAVAILABLE, "no_endpoint", "No engine can take the request now: {}.", 2
    ),
    Reason.OVERLOADED: Words(
        503, UNAVAILABLE, "overloaded", "The gateway is at its limit: {}. Try again shortly.", 1
    ),
    Reason.UPGRADE: Words(
        501, INVALID, None, "Protocol upgrades (WebSocket and others) are not supported here."
    ),
    Reason.FORBIDDEN_FIELD: Words(
        400, INVALID, None, "The field `{}` is not accepted from clients here."
    ),
    Reason.DRAINING: Words(
        503, UNAVAILABLE, "draining", "This gateway is shutting down; connect again.", 1
    ),
    Reason.UNKNOWN_RESPONSE: Words(
        404,
        INVALID,
        "response_not_found",
        "No engine here is known to hold the response '{}': it was made elsewhere, too long ago, "
        "or its engine has gone.",
    ),
    Reason.BAD_LABELS: Words(
        400, INVALID, None, "x-headgate-labels must be written as 'name=value, name=value'."
    ),
    # No Retry-After: by waiting alone nothing changes.
    Reason.UNMATCHED_LABELS: Words(
        503, UNAVAILABLE, "no_endpoint", "Labels that are asked for are nowhere: {}."
    ),
    Reason.BAD_PRIORITY: Words(
        400,
        INVALID,
        None,
        "`x-headgate-priority` is {}, not a whole number from -1000 (first) to 1000.",
    ),
    Reason.UNKNOWN_NATIVE_MODEL: Words(
        404,
        INVALID,
        "model_not_found",
        # Clients look for Triton's own words.
        "Request for unknown model: '{}' is not found. Served here: {}.",
    ),
    Reason.FORBIDDEN_REPOSITORY: Words(
        403,
        "permission_error",
        "admin_only",
        "Loading and unloading models wants the gateway's admin token (`admin.token`): send it as "
        "'Authorization: Bearer <token>'.",
    ),
    Reason.HOLD_FULL: Words(
        429,
        BUSY,
        "engines_busy",
        "All engines are busy and the gateway's queue is full: {}. Try again later.",
        FROM_QUEUE,
    ),
    Reason.HOLD_TIMEOUT: Words(
        429,
        BUSY,
        "engines_busy",
        "All engines stayed busy for the {} s that a request waits here. Try again later.",
        FROM_QUEUE,
    ),
    Reason.CONNECT_FAILED: Words(
        503, UNAVAILABLE, "no_endpoint", "No engine accepted a connection: {}", 1
    ),
    Reason.UPSTREAM_LOST: Words(
        502, "upstream_error", "upstream_lost", "The engine closed the connection: {}"
    ),
    Reason.UPSTREAM_MALFORMED: Words(
        502, "upstream_error", "upstream_malformed", "The engine sent malformed HTTP: {}"
    ),
    Reason.FIRST_BYTE_TIMEOUT: Words(
        504, "timeout_error", "first_byte_timeout", "The engine did not answer within {} s."
    ),
    Reason.EVENT_TIMEOUT: Words(
        504, "timeout_error", "event_timeout", "The engine sent nothing for {} s in mid-stream."
    ),
    Reason.ENDPOINT_CONDEMNED: Words(
        502, "upstream_error", "endpoint_lost", "The engine was declared dead or stalled: {}"
    ),
    Reason.DRAIN_GRACE_OVER: Words(
        503,
        UNAVAILABLE,
        "draining",
        "The gateway shut down before the response ended.",
        1,
    ),
    Reason.TURNED_AWAY: Words(
        503,
        UNAVAILABLE,
        "overloaded",
        "An engine answered {}, and no other had room in time.",
        1,
    ),
    Reason.WORKER_LOST: Words(500, "internal_error", "worker_lost", "A gateway worker was lost."),
    Reason.INTERNAL: Words(500, "internal_error", "internal", "The gateway failed: {}"),
}
