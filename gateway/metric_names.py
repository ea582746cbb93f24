"""ONE table: which shared word is which metric. Nothing here computes.

Names follow the Prometheus conventions, without the `headgate_` that `metrics` puts before them
and the `_total` that a counter gets behind.
"""

from typing import NamedTuple

from gateway._shared import Area, Count, EndpointWord, ModelWord

__all__ = [
    "BY_ENDPOINT",
    "BY_MODEL",
    "BY_STATUS",
    "COUNTERS",
    "GAUGES",
    "HISTOGRAMS",
    "Labelled",
    "Spread",
]


class Labelled(NamedTuple):
    """A family whose samples are single words: label values -> word."""

    name: str
    help: str
    label: str
    """Empty: one sample without it."""
    words: dict[str, int]


class Spread(NamedTuple):
    """A family of one histogram per row."""

    name: str
    help: str
    word: int
    short: bool = False
    """Bounds from 5 us on (own code) instead of 1 ms (engines)."""


# Over all workers.
COUNTERS = (
    Labelled("requests_accepted", "Requests whose head was read.", "", {"": Count.ACCEPTED}),
    Labelled(
        "requests_ended",
        "Requests that ended, by outcome; their sum and those under way are those accepted.",
        "outcome",
        {
            "completed": Count.COMPLETED,
            "cancelled": Count.CANCELLED,
            "failed": Count.FAILED,
            "refused": Count.REFUSED,
        },
    ),
    Labelled("dispatches", "Requests sent to an engine, retries too.", "", {"": Count.DISPATCHED}),
    Labelled(
        "dispatches_ended",
        "Dispatches that ended, by outcome.",
        "outcome",
        {
            "answered": Count.ANSWERED,
            "abandoned": Count.ABANDONED,
            "dial_failed": Count.DIAL_FAILED,
            "lost": Count.LOST,
            "condemned": Count.CONDEMNED,
            "timed_out": Count.TIMED_OUT,
            "turned_away": Count.TURNED_AWAY,
            "malformed": Count.MALFORMED,
            "cut": Count.CUT,
        },
    ),
    Labelled(
        "retries",
        "Further dispatches of a request, by what happened to the one before.",
        "cause",
        {
            "dial": Count.RETRY_DIAL,
            "reused_connection": Count.RETRY_REUSED,
            "lost": Count.RETRY_LOST,
            "condemned": Count.RETRY_CONDEMNED,
            "status": Count.RETRY_STATUS,
            "dying": Count.RETRY_DYING,
        },
    ),
    Labelled(
        "retries_denied",
        "Retries that the budget did not allow.",
        "",
        {"": Count.RETRY_REFUSED_BY_BUDGET},
    ),
    Labelled(
        "cancels",
        "Requests given up for the client's sake, by cause.",
        "cause",
        {
            "client_gone": Count.CANCEL_CLIENT_GONE,
            "client_slow": Count.CANCEL_CLIENT_SLOW,
            "pipeline": Count.CANCEL_PIPELINE,
        },
    ),
    Labelled(
        "connections_opened",
        "Connections opened.",
        "side",
        {"client": Count.CLIENT_OPENED, "upstream": Count.UPSTREAM_OPENED},
    ),
    Labelled(
        "connections_closed",
        "Connections closed.",
        "side",
        {"client": Count.CLIENT_CLOSED, "upstream": Count.UPSTREAM_CLOSED},
    ),
    Labelled(
        "received_bytes",
        "Bytes read from sockets.",
        "side",
        {"client": Count.CLIENT_BYTES_IN, "upstream": Count.UPSTREAM_BYTES_IN},
    ),
    Labelled(
        "sent_bytes",
        "Bytes written to sockets.",
        "side",
        {"client": Count.CLIENT_BYTES_OUT, "upstream": Count.UPSTREAM_BYTES_OUT},
    ),
    Labelled(
        "token_ids",
        "Prompts whose token ids were wanted for routing, by what came of it.",
        "result",
        {
            "known": Count.IDS_KNOWN,
            "unknown": Count.IDS_UNKNOWN,
            "late": Count.IDS_LATE,
            "full": Count.IDS_FULL,
            "unloaded": Count.IDS_UNLOADED,
        },
    ),
    Labelled("events", "Data events relayed in streams.", "", {"": Count.EVENTS}),
)

GAUGES = (
    Labelled(
        "buffered_bytes",
        "Request bodies, until their responses begin.",
        "",
        {"": Count.BUFFERED_BYTES},
    ),
    Labelled(
        "waiting_for_dial",
        "Requests that wait for a connection to their engine.",
        "",
        {"": Count.WAITING_FOR_DIAL},
    ),
    Labelled(
        "held_requests",
        "Requests that wait in the gateway for an engine with room.",
        "",
        {"": Count.HELD_REQUESTS},
    ),
    Labelled("held_bytes", "Bodies of requests that wait so.", "", {"": Count.HELD_BYTES}),
)

HISTOGRAMS = (
    Spread("own_time_seconds", "Time in the gateway's own code per request.", Area.OWN_TIME, True),
    Spread(
        "loop_lag_seconds",
        "How late a worker's event loop woke up; above 10 ms it needs another worker.",
        Area.LOOP_LAG,
        True,
    ),
)

# By model and status, and by endpoint and status: one word per status from here on.
BY_STATUS = {
    "model": ("responses", "Responses to clients, by model and status.", ModelWord.M_STATUS),
    "endpoint": (
        "endpoint_responses",
        "Responses from engines, by endpoint and status.",
        EndpointWord.E_STATUS,
    ),
}

_BY_SOURCE = "As the engine said, or estimated where it said nothing."
BY_MODEL: tuple[Labelled | Spread, ...] = (
    Spread("time_to_first_token_seconds", "Until the first data event.", ModelWord.M_TTFT),
    Spread("inter_token_seconds", "Mean time between a stream's data events.", ModelWord.M_ITL),
    Spread(
        "held_seconds", "In the gateway's queue, of requests that waited there.", ModelWord.M_HELD
    ),
    Spread("request_duration_seconds", "From head to last byte.", ModelWord.M_TOTAL),
    Labelled(
        "prompt_tokens",
        f"Prompt tokens. {_BY_SOURCE}",
        "source",
        {"engine": ModelWord.M_TOKENS_IN, "estimated": ModelWord.M_TOKENS_IN_ESTIMATED},
    ),
    Labelled(
        "generated_tokens",
        f"Generated tokens. {_BY_SOURCE}",
        "source",
        {"engine": ModelWord.M_TOKENS_OUT, "estimated": ModelWord.M_TOKENS_OUT_ESTIMATED},
    ),
    Labelled(
        "cached_prompt_tokens",
        "Prompt tokens that the engine found in its cache, as it said.",
        "",
        {"": ModelWord.M_CACHED_TOKENS},
    ),
)

BY_ENDPOINT: tuple[Labelled | Spread, ...] = (
    Spread(
        "endpoint_time_to_first_token_seconds",
        "Until the first data event, by endpoint.",
        EndpointWord.E_TTFT,
    ),
    Labelled(
        "endpoint_dispatches",
        "Requests sent to this endpoint.",
        "",
        {"": EndpointWord.E_DISPATCHED},
    ),
    Labelled(
        "endpoint_dispatches_ended",
        "Dispatches that ended; failed: by the endpoint's fault, abandoned: we left.",
        "outcome",
        {
            "answered": EndpointWord.E_ANSWERED,
            "failed": EndpointWord.E_FAILED,
            "abandoned": EndpointWord.E_ABANDONED,
        },
    ),
    Labelled("endpoint_dials", "Connections tried.", "", {"": EndpointWord.E_DIALS}),
    Labelled(
        "endpoint_dials_failed", "Connections that failed.", "", {"": EndpointWord.E_DIALS_FAILED}
    ),
    Labelled(
        "endpoint_received_bytes", "Bytes from the engine.", "", {"": EndpointWord.E_BYTES_IN}
    ),
    Labelled("endpoint_sent_bytes", "Bytes to the engine.", "", {"": EndpointWord.E_BYTES_OUT}),
)
