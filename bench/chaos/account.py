"""What has to hold when a chaos run is over, whatever happened in it.

Four books are compared: the clients' own (`Ledger`), the gateway's metrics, its access log, and
the engines' counts.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from bench.chaos.client import Entry, Ledger
from bench.chaos.house import Metrics

__all__ = ["Line", "audit", "total"]

Record = dict[str, Any]

SETTLED = ("whole", "error_event", "error_status")
"""Ends of requests whose clients have read the whole answer."""
UNSURE = ("gave_up", "cut_off", "broken")
"""Ends whose outcome the gateway alone knows."""
BROKEN_OFF_FOR = ("failed", "cancelled", "refused")


class Line(NamedTuple):
    """One thing that has to hold, and the figures that say so."""

    words: str
    holds: bool
    figures: str


def total(metrics: Metrics, name: str, **labels: str) -> int:
    """The sum of a family's samples that have these labels. KeyError: it has no sample at all."""
    samples = {key: n for key, n in metrics.items() if key.split("{")[0] == f"headgate_{name}"}
    if not samples:
        raise KeyError(name)
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return int(sum(n for key, n in samples.items() if all(label in key for label in wanted)))


def audit(
    ledger: Ledger, metrics: Metrics, records: Sequence[Record], engines: dict[str, dict[str, Any]]
) -> list[Line]:
    """Every identity, in the order of a request's way. The gateway has stopped; `metrics` are its
    last, read when nothing was under way any more."""
    return [
        *_of_clients(ledger),
        *_of_gateway(metrics),
        *_of_log(metrics, records),
        *_of_requests(ledger.entries, records),
        *_of_connections(ledger, metrics),
        *_of_engines(metrics, engines),
    ]


def _same(words: str, left: int, right: int) -> Line:
    return Line(words, left == right, f"{left} = {right}")


def _none(words: str, found: Sequence[object]) -> Line:
    return Line(words, not found, "none" if not found else f"{len(found)}, as {found[:3]}")


def _of_clients(ledger: Ledger) -> Iterable[Line]:
    ends = Counter(entry.end for entry in ledger.entries)
    wrong = [entry for entry in ledger.entries if entry.end not in (*SETTLED, *UNSURE)]
    yield _none("requests that hung, or got another's or a malformed answer", wrong)
    yield _same("requests of the clients = their ends", len(ledger.entries), ends.total())


def _of_gateway(metrics: Metrics) -> Iterable[Line]:
    ended = total(metrics, "requests_ended_total")
    yield _same("accepted = ended", total(metrics, "requests_accepted_total"), ended)
    dispatched = total(metrics, "dispatches_total")
    ended = total(metrics, "dispatches_ended_total")
    yield _same("dispatches = their outcomes", dispatched, ended)
    by_endpoint = total(metrics, "endpoint_dispatches_total")
    yield _same("dispatches = those by endpoint", dispatched, by_endpoint)
    ended = total(metrics, "endpoint_dispatches_ended_total")
    yield _same("dispatches by endpoint = their outcomes", by_endpoint, ended)
    for gauge in (
        "buffered_bytes",
        "waiting_for_dial",
        "held_requests",
        "held_bytes",
        "requests_under_way",
        "endpoint_in_flight",
    ):
        yield _same(f"{gauge} at rest", total(metrics, gauge), 0)
    yield _same("workers lost", total(metrics, "worker_restarts_total"), 0)


def _of_log(metrics: Metrics, records: Sequence[Record]) -> Iterable[Line]:
    accepted = total(metrics, "requests_accepted_total")
    yield _same("accepted = records in the access log", accepted, len(records))
    for outcome in ("completed", "cancelled", "failed", "refused"):
        counted = total(metrics, "requests_ended_total", outcome=outcome)
        logged = sum(record["outcome"] == outcome for record in records)
        yield _same(f"{outcome} = records that say so", counted, logged)
    dispatched = total(metrics, "dispatches_total")
    yield _same("dispatches = those in the log", dispatched, sum(r["dispatches"] for r in records))
    held = sum(record["held_s"] is not None for record in records)
    # One that failed may wait twice; a family that never counted has no sample.
    waits = total(metrics, "held_seconds_count") if held else 0
    yield Line("waits in the queue = records of some", held <= waits, f"{held} <= {waits}")
    again = dispatched - sum(record["dispatches"] > 0 for record in records)
    yield _same("further dispatches = retries", again, total(metrics, "retries_total"))
    named = sum(record["model"] is not None for record in records)
    yield _same("records with a model = responses", named, total(metrics, "responses_total"))


def _of_requests(entries: Sequence[Entry], records: Sequence[Record]) -> Iterable[Line]:
    """Request by request, by its id."""
    # Of a head that cannot be read there is no id.
    by_id = Counter(record["request_id"] for record in records if record["request_id"])
    known = {record["request_id"]: record for record in records}
    named = [entry for entry in entries if entry.has_id]
    yield _none("ids that were counted twice", [id for id, n in by_id.items() if n > 1])
    lost = [e for e in named if e.end in SETTLED and e.id not in known]
    yield _none("answers that were not counted", lost)
    ids = {entry.id for entry in entries}
    nameless = sum(record["request_id"] not in ids for record in records)
    certain = sum(not e.has_id and e.end in SETTLED for e in entries)
    most = sum(not e.has_id for e in entries)
    yield Line(
        "requests with an unread id were counted",
        certain <= nameless <= most,
        f"{certain} <= {nameless} <= {most}",
    )
    pairs = [(entry, known[entry.id]) for entry in named if entry.id in known]
    yield _none(
        "records whose outcome or status is not what the client saw",
        [(e, r) for e, r in pairs if not _agree(e, r)],
    )
    yield _none(
        "records whose bytes are not those the client got",
        [
            (e, r)
            for e, r in pairs
            if (e.received != r["bytes_out"] if e.end in SETTLED else e.received > r["bytes_out"])
        ],
    )
    yield _none(
        "records whose request body is not what the client sent",
        [(e, r) for e, r in pairs if e.end == "whole" and e.body_bytes != r["bytes_in"]],
    )
    # A request with a byte of an answer is never asked elsewhere; one that fails has a reason.
    yield _none(
        "failures without a reason",
        [r for r in records if r["outcome"] in ("failed", "refused") and not r["reason"]],
    )


def _agree(entry: Entry, record: Record) -> bool:
    outcome, status = record["outcome"], record["status"]
    if entry.end == "whole":
        return bool(outcome == "completed" and status == 200)
    if entry.end == "error_event":
        return bool(outcome == ("failed" if entry.by_gateway else "completed"))
    if entry.end == "error_status":
        ours = ("refused", "failed") if entry.reason else ("completed",)
        return bool(outcome in ours and status == entry.status)
    if entry.end == "broken" and entry.received:
        return outcome in BROKEN_OFF_FOR
    return True


def _of_connections(ledger: Ledger, metrics: Metrics) -> Iterable[Line]:
    for side in ("client", "upstream"):
        opened = total(metrics, "connections_opened_total", side=side)
        closed = total(metrics, "connections_closed_total", side=side)
        yield _same(f"{side} connections opened = closed", opened, closed)
    opened = total(metrics, "connections_opened_total", side="client")
    yield _same("connections of the clients = client connections", ledger.dialled, opened)
    received = total(metrics, "received_bytes_total", side="client")
    yield Line(
        "bytes from clients are no more than they sent",
        received <= ledger.sent_bytes,
        f"{received} <= {ledger.sent_bytes}",
    )
    sent = total(metrics, "sent_bytes_total", side="client")
    yield Line(
        "bytes to clients are no fewer than they got",
        sent >= ledger.received_bytes,
        f"{sent} >= {ledger.received_bytes}",
    )


def _of_engines(metrics: Metrics, engines: dict[str, dict[str, Any]]) -> Iterable[Line]:
    def of_all(field: str) -> int:
        return sum(int(state[field]) for state in engines.values())

    for field in ("requests_open", "running", "waiting", "kv_blocks_held", "connections_open"):
        yield _same(f"engines: {field} at rest", of_all(field), 0)
    jobs = of_all("core_finished") + of_all("core_aborted")
    yield _same("engines: jobs submitted = finished or aborted", of_all("core_submitted"), jobs)
    seen = of_all("requests_seen")
    answered = total(metrics, "dispatches_ended_total", outcome="answered")
    most = total(metrics, "dispatches_total") - total(
        metrics, "dispatches_ended_total", outcome="dial_failed"
    )
    yield Line(
        "engines: requests seen are the dispatches that reached one",
        answered <= seen <= most,
        f"{answered} <= {seen} <= {most}",
    )
