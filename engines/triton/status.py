"""What an error of Triton is to a client of OpenAI: HTTP statuses for gRPC's, and for its words."""

__all__ = ["http_status"]

# gRPC's code -> HTTP's status; of gRPC's own mapping (google.rpc.Code) where it has one.
_STATUSES = {
    1: 503,  # CANCELLED, and not by us: the server goes down
    3: 400,  # INVALID_ARGUMENT
    4: 504,  # DEADLINE_EXCEEDED
    5: 404,  # NOT_FOUND
    7: 403,  # PERMISSION_DENIED
    8: 429,  # RESOURCE_EXHAUSTED
    12: 501,  # UNIMPLEMENTED
    14: 503,  # UNAVAILABLE
    16: 401,  # UNAUTHENTICATED
}

# Errors within a stream have no code, only Triton's words.
_WORDS = (
    ("Exceeds maximum queue size", 503),
    ("Request timeout expired", 503),
    ("is not ready", 503),
    ("has no available versions", 503),
    ("is shutting down", 503),
    ("unavailable", 503),
    ("Request for unknown model", 404),
    ("unexpected inference input", 400),
    ("expected number of inputs", 400),
    ("unexpected shape for input", 400),
    ("unexpected datatype", 400),
    ("Request was cancelled", 503),
)


def http_status(code: int | None, text: str) -> int:
    """`code`: of gRPC; None: none was told. What nothing is known of is 500."""
    for words, status in _WORDS:
        if words in text:
            return status
    return 500 if code is None else _STATUSES.get(code, 500)
