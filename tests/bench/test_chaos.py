"""Clients that leave, engines that break: every count agrees afterwards, from four books."""

import pytest
import uvloop

from bench.chaos.account import audit, total
from bench.chaos.client import Entry, Ledger
from bench.chaos.plan import visits
from bench.chaos.run import Plan, chaos


def run(**plan):
    outcome = uvloop.run(chaos(Plan(**plan)))
    assert not outcome.broken, "\n".join(f"{line.words}: {line.figures}" for line in outcome.broken)
    return outcome


@pytest.mark.timeout(120)
def test_two_thousand_requests():
    outcome = run(requests=2000, seed=1)
    # It was a storm, and most came through it.
    assert outcome.ends.total() == 2000
    assert outcome.ends["whole"] > 1000
    assert min(outcome.outcomes[one] for one in ("cancelled", "failed", "refused")) > 5
    assert outcome.retries > 5
    assert outcome.held > 5
    assert outcome.faults.total() > 10


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("workers", [1, 2])
def test_a_hundred_thousand_requests(workers):
    outcome = run(requests=100_000, seed=workers, workers=workers)
    assert outcome.ends.total() == 100_000


def test_the_same_seed_is_the_same_plan():
    def asks(seed):
        return [
            (ask.head, ask.body, ask.leave) for visit in visits(seed, 300) for ask in visit.asks
        ]

    assert asks(7) == asks(7)
    assert asks(7) != asks(8)


METRICS = {
    "headgate_requests_accepted_total": 1,
    'headgate_requests_ended_total{outcome="completed"}': 1,
    'headgate_requests_ended_total{outcome="failed"}': 0,
    "headgate_dispatches_total": 1,
    'headgate_dispatches_ended_total{outcome="answered"}': 1,
    'headgate_dispatches_ended_total{outcome="dial_failed"}': 0,
    'headgate_endpoint_dispatches_total{endpoint="a"}': 1,
    'headgate_endpoint_dispatches_ended_total{endpoint="a",outcome="answered"}': 1,
    "headgate_buffered_bytes": 0,
    "headgate_waiting_for_dial": 0,
    "headgate_held_requests": 0,
    "headgate_held_bytes": 0,
    "headgate_requests_under_way": 0,
    'headgate_endpoint_in_flight{endpoint="a"}': 0,
    "headgate_worker_restarts_total": 0,
    'headgate_retries_total{cause="dial"}': 0,
    'headgate_responses_total{model="sim",status="200"}': 1,
    'headgate_connections_opened_total{side="client"}': 1,
    'headgate_connections_closed_total{side="client"}': 1,
    'headgate_connections_opened_total{side="upstream"}': 1,
    'headgate_connections_closed_total{side="upstream"}': 1,
    'headgate_received_bytes_total{side="client"}': 90,
    'headgate_sent_bytes_total{side="client"}': 50,
}
RECORD = {
    "request_id": "a",
    "model": "sim",
    "status": 200,
    "outcome": "completed",
    "reason": None,
    "dispatches": 1,
    "held_s": None,
    "bytes_in": 9,
    "bytes_out": 50,
}
ENTRY = {"id": "a", "kind": "chat", "end": "whole", "status": 200, "received": 50, "body_bytes": 9}
ENGINE = {
    "requests_open": 0,
    "running": 0,
    "waiting": 0,
    "kv_blocks_held": 0,
    "connections_open": 0,
    "core_submitted": 1,
    "core_finished": 1,
    "core_aborted": 0,
    "requests_seen": 1,
}


def audited(metrics=(), record=(), entry=(), engine=()):
    ledger = Ledger(dialled=1, sent_bytes=90, received_bytes=50)
    ledger.entries.append(Entry(**{**ENTRY, **dict(entry)}))
    lines = audit(
        ledger,
        {**METRICS, **dict(metrics)},
        [{**RECORD, **dict(record)}],
        {"a": {**ENGINE, **dict(engine)}},
    )
    return [line.words for line in lines if not line.holds]


def test_even_books_are_even():
    assert audited() == []


@pytest.mark.parametrize(
    "change",
    [
        *(
            {"metrics": {name: value + 1}}
            for name, value in METRICS.items()
            if "_bytes" not in name
        ),
        {"metrics": {'headgate_received_bytes_total{side="client"}': 91}},
        {"metrics": {'headgate_sent_bytes_total{side="client"}': 49}},
        *({"engine": {name: value + 1}} for name, value in ENGINE.items()),
        {"record": {"outcome": "cancelled"}},
        {"record": {"status": 500}},
        {"record": {"bytes_out": 49}},
        {"record": {"bytes_in": 8}},
        {"record": {"dispatches": 2}},
        {"record": {"held_s": 0.1}, "metrics": {"headgate_held_seconds_count": 0}},
        {"record": {"request_id": "b"}},
        {"entry": {"end": "hung"}},
        {"entry": {"end": "error_status", "status": 500}},
        {"entry": {"end": "error_event", "by_gateway": True}},
    ],
    ids=str,
)
def test_an_uneven_book_is_found(change):
    assert audited(**change)


def test_a_metric_that_is_not_there_is_not_zero():
    with pytest.raises(KeyError):
        total(METRICS, "no_such_total")
