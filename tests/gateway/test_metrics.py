"""The metrics page, parsed back by prometheus-client's own parser."""

import ctypes
import math
import mmap
import time
from types import SimpleNamespace

import pytest
from prometheus_client.parser import text_string_to_metric_families

from engines.profile import PROFILES
from gateway._shared import (
    LATENCY_BOUNDS_S,
    SHORT_BOUNDS_S,
    STATUSES,
    Area,
    Count,
    EndpointWord,
    ModelWord,
    Shared,
)
from gateway.bus import NoBus
from gateway.caches import Caches
from gateway.config import Config, Engine
from gateway.fleet import MAX_MODELS, Fleet
from gateway.health import Health, Rules
from gateway.metrics import render
from gateway.prober import Watch
from gateway.reasons import Reason
from router import State


class House:
    """What `render` looks at, and a worker's pen."""

    def __init__(self, n_workers=2):
        self.shared = Shared.create(n_workers)
        memory = mmap.mmap(self.shared.fd, Shared.size(n_workers))
        self.words = (ctypes.c_int64 * (int(Area.COLUMN) * n_workers)).from_buffer(memory)
        self.fleet = Fleet(busy=lambda slot: False)
        self.caches = Caches(self.shared.table, self.shared.index, self.shared.adapters)
        self.supervisor = SimpleNamespace(workers=[], ready_count=1, restarts=3)
        self.access_log = None
        self.bus = NoBus()
        self.endpoint_base = {}
        self.started_s = 1.0
        self.config = Config()

    def write(self, word, count, worker=0):
        self.words[worker * int(Area.COLUMN) + word] += count

    def join(self, url):
        member = self.fleet.add(Engine(url=url), "config", 0.0)
        self.endpoint_base[member.slot] = self.endpoint_words(member.slot)
        self.shared.table.set_row(member.slot, state=State.READY, share=0.5, generation=1)
        self.caches.open(member, PROFILES["8b-h100"])
        return member

    def watches(self):
        now_s = time.monotonic()
        members = self.fleet.members.values()
        return [Watch(member, Health(Rules(), now_s), now_s) for member in members]

    def endpoint_words(self, slot):
        width = int(Area.ENDPOINT_WIDTH)
        return self.shared.block(Area.ENDPOINTS + slot * width, width)

    def unready_reasons(self):
        return []

    def samples(self):
        """(name, labels) -> value."""
        found = {}
        for family in text_string_to_metric_families(render(self).decode()):
            assert family.documentation
            assert family.type in ("counter", "gauge", "histogram")
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in found, f"{key} stands twice"
                found[key] = sample.value
        return found

    def value(self, name, **labels):
        return self.samples().get((f"headgate_{name}", frozenset(labels.items())))


@pytest.fixture
def house():
    return House()


def test_every_name_is_ours_and_an_idle_page_names_no_model(house):
    samples = house.samples()
    assert all(name.startswith("headgate_") for name, _ in samples)
    assert not any(dict(labels).keys() & {"model", "endpoint"} for _, labels in samples)


def test_every_count_of_the_shared_memory_is_shown(house):
    """A word that nobody renders is a count that nobody sees."""
    hidden = {Count.TICKS, Count.N_COUNTS}
    before = house.samples()
    for word in Count:
        if word not in hidden:
            house.write(word, 1)
            after = house.samples()
            assert after != before, word.name
            before = after


def test_counts_are_summed_over_the_workers(house):
    house.write(Count.ACCEPTED, 5)
    house.write(Count.ACCEPTED, 7, worker=1)
    house.write(Count.COMPLETED, 4)
    house.write(Count.REFUSED, 2, worker=1)
    assert house.value("requests_accepted_total") == 12
    assert house.value("requests_ended_total", outcome="completed") == 4
    assert house.value("requests_under_way") == 6
    house.write(Count.CLIENT_OPENED, 3)
    house.write(Count.CLIENT_CLOSED, 1)
    assert house.value("connections_open", side="client") == 2
    assert house.value("worker_restarts_total") == 3


@pytest.mark.parametrize("reason", [r for r in Reason if r is not Reason.NONE])
def test_reasons_by_their_names(house, reason):
    house.write(Area.REASONS + reason, 2)
    family = "refusals_total" if reason < 32 else "failures_total"
    assert house.value(family, reason=reason.name.lower()) == 2


def test_models(house):
    house.fleet.move(house.join("http://a"), "1")
    (member,) = house.fleet.members.values()
    house.fleet.set_models(member, [{"id": 'm"\\'}, {"id": "idle"}])
    house.fleet.build(Config())
    row = house.fleet.model_rows()['m"\\']
    first = Area.MODELS + row * 128
    house.write(first + ModelWord.M_STATUS + STATUSES.index(503), 2)
    house.write(first + ModelWord.M_TOKENS_OUT_ESTIMATED, 30)
    house.write(Area.MODELS + (MAX_MODELS - 1) * 128 + ModelWord.M_TOKENS_IN, 9)
    assert house.value("responses_total", model='m"\\', status="503") == 2
    assert house.value("generated_tokens_total", model='m"\\', source="estimated") == 30
    assert house.value("prompt_tokens_total", model="(other)", source="engine") == 9
    assert not any(("model", "idle") in labels for _, labels in house.samples())


@pytest.mark.parametrize(
    ("name", "word", "bounds", "labels"),
    [
        ("own_time_seconds", Area.OWN_TIME, SHORT_BOUNDS_S, {}),
        ("loop_lag_seconds", Area.LOOP_LAG, SHORT_BOUNDS_S, {}),
        (
            "time_to_first_token_seconds",
            Area.MODELS + (MAX_MODELS - 1) * 128 + ModelWord.M_TTFT,
            LATENCY_BOUNDS_S,
            {"model": "(other)"},
        ),
    ],
)
def test_histograms_are_cumulative(house, name, word, bounds, labels):
    for index in range(len(bounds) + 1):
        house.write(word + index, index + 1)
    house.write(word + len(bounds) + 1, 2_500_000)
    samples = {
        float(dict(key).get("le", "nan")): value
        for (found, key), value in house.samples().items()
        if found == f"headgate_{name}_bucket"
    }
    assert list(samples) == [*bounds, math.inf]
    assert list(samples.values()) == [n * (n + 1) / 2 for n in range(1, len(bounds) + 2)]
    assert house.value(f"{name}_sum", **labels) == 2.5
    assert house.value(f"{name}_count", **labels) == samples[math.inf]


def test_endpoints_and_who_had_the_slot_before(house):
    house.write(Area.ENDPOINTS + EndpointWord.E_DISPATCHED, 9)
    house.join("http://b")
    assert house.value("endpoint_dispatches_total", endpoint="b:80") is None
    house.write(Area.ENDPOINTS + EndpointWord.E_DISPATCHED, 1, worker=1)
    house.write(Area.ENDPOINTS + EndpointWord.E_STATUS + STATUSES.index("other"), 1)
    assert house.value("endpoint_dispatches_total", endpoint="b:80") == 1
    assert house.value("endpoint_responses_total", endpoint="b:80", status="other") == 1
    assert house.value("endpoint_state", endpoint="b:80", state="unknown") == 1
    assert house.value("endpoint_share", endpoint="b:80") == 0.5
    assert house.value("endpoint_in_flight", endpoint="b:80") == 0


def test_this_process_is_measured(house):
    assert 10e6 < house.value("resident_memory_bytes", process="control") < 1e10
    assert house.value("cpu_seconds_total", process="control") > 0
