"""A prober with all that it needs, in front of engines on real sockets."""

import json
import time

from gateway._shared import Shared
from gateway.caches import Caches
from gateway.config import Engine
from gateway.config.schema import Health as HealthConfig
from gateway.config.schema import Overload
from gateway.fleet import Fleet
from gateway.kv_following import KvFollowing
from gateway.prober import Prober
from gateway.state import describe_endpoint

FAST = HealthConfig(
    interval_s=0.2,
    timeout_s=0.3,
    models_interval_s=0.2,
    backoff_s=0.3,
    slow_start_s=1.0,
    stall_s=0.3,
    scrape_s=0.2,
    scrape_idle_s=0.2,
)


class House:
    """A prober and what it told."""

    def __init__(self, config, pen):
        self.shared = Shared.create(2)
        self.table = self.shared.table
        self.pen = pen(self.shared)
        self.fleet = Fleet(busy=lambda slot: False)
        self.changes = 0
        self.condemned = []
        self.left = []
        caches = self.caches = Caches(self.table, self.shared.index, self.shared.adapters)
        self.prober = Prober(
            self.table,
            self.fleet,
            caches,
            config,
            Overload(),
            self._on_change,
            self.condemned.append,
            self._on_left,
            KvFollowing(self.fleet, caches, dict, self._on_change),
        )

    def _on_change(self):
        self.changes += 1

    def _on_left(self, member):
        self.left.append(member.name)
        self.prober.remove(member)
        self.fleet.remove(member.name, time.monotonic())

    def add(self, url, **fields):
        engine = Engine(url=url, **{"kind": "vllm"} | fields)
        member = self.fleet.add(engine, "config", time.monotonic())
        self.prober.add(member)
        return member

    def described(self, slot):
        """As the admin API has it."""
        watch = self.prober.watches[slot]
        return json.loads(
            json.dumps(describe_endpoint(watch, self.table, self.caches, time.monotonic()))
        )

    def state(self, slot=0):
        return self.table.row(slot)[0]

    @property
    def cell(self):
        return self.pen.cells[0][0]
