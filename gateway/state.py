"""The control process's knowledge as plain data, bounded and without secrets."""

import time
from typing import Any

import msgspec

from engines.kind import KINDS
from gateway._shared import Count, Shared
from gateway.caches import Caches
from gateway.config import Config
from gateway.fleet import Fleet
from gateway.prober import Watch
from gateway.supervisor import Supervisor
from router import Table

__all__ = ["describe_endpoint", "describe_models", "describe_workers", "requests_under_way"]


def describe_endpoint(watch: Watch, table: Table, caches: Caches, now_s: float) -> dict[str, Any]:
    """One endpoint: place, state and why, load, cache, its own numbers, what changed last."""
    member, health = watch.member, watch.health
    load = table.load(member.slot)
    last_event_s = load.pop("last_event_s")  # type: ignore[misc]
    return {
        "name": member.name,
        "url": member.url.base,
        "kind": member.kind,
        "ends_with_connection": KINDS[member.kind].ends_with_connection,
        "source": member.source,
        "address": member.address,
        "slot": member.slot,
        "generation": member.generation,
        "state": health.state.name.lower(),
        "reason": health.reason,
        "since_s": round(now_s - health.since_s, 3),
        "share": round(health.share(now_s), 3),
        "leaving": member.leaving,
        "role": member.engine.role,
        "labels": dict(member.engine.labels),
        "last_probe": watch.last_probe,
        "models": None if member.models is None else sorted(member.models),
        "models_fault": watch.models_fault,
        "coming": sorted(member.coming),
        "going": sorted(member.going),
        "load": {
            **load,
            "last_event_ago_s": round(now_s - last_event_s, 3) if last_event_s else None,
        },
        "cache": caches.describe(member.slot),
        "engine": _engine(watch, now_s),
        "engine_fault": watch.load_fault,
        "transitions": [
            {
                "time": round(when, 3),
                "from": change.old.name.lower(),
                "to": change.new.name.lower(),
                "cause": change.cause.name.lower(),
                "reason": change.reason,
            }
            for when, change in watch.history
        ],
    }


def _engine(watch: Watch, now_s: float) -> dict[str, Any] | None:
    """What the engine says of itself; None: nothing."""
    load = watch.load
    if load is None:
        return None
    said = msgspec.structs.asdict(load)
    adapters = said.pop("adapters")
    return {
        **said,
        "adapters_in_use": None if adapters is None else list(adapters.names),
        "max_loras": None if adapters is None else adapters.max_loras,
        "rates": None
        if watch.before is None
        else msgspec.structs.asdict(load.rates_since(watch.before, watch.load_s - watch.before_s)),
        "age_s": round(now_s - watch.load_s, 3),
    }


def describe_models(fleet: Fleet, config: Config) -> dict[str, Any]:
    """Models and who lists them, aliases and where they lead."""
    holders: dict[str, list[str]] = {}
    for member in fleet.members.values():
        for name in member.models or {}:
            holders.setdefault(name, []).append(member.name)
    return {
        "complete": fleet.is_complete(),
        "models": {name: sorted(holders[name]) for name in sorted(holders)},
        "aliases": config.aliases(),
    }


def describe_workers(supervisor: Supervisor, shared: Shared) -> list[dict[str, Any]]:
    """One entry per worker, from its column of the counts."""
    return [
        {
            "worker": worker.index,
            "pid": worker.pid,
            "ready": worker.is_ready,
            "starts": worker.starts,
            "uptime_s": round(time.monotonic() - worker.started_s, 3) if worker.pid else None,
            "client_connections": _open(
                shared, worker.index, Count.CLIENT_OPENED, Count.CLIENT_CLOSED
            ),
            "upstream_connections": _open(
                shared, worker.index, Count.UPSTREAM_OPENED, Count.UPSTREAM_CLOSED
            ),
            "requests_under_way": requests_under_way(shared, worker.index),
            "buffered_bytes": shared.count(Count.BUFFERED_BYTES, worker.index),
            "waiting_for_dial": shared.count(Count.WAITING_FOR_DIAL, worker.index),
            "held_requests": shared.count(Count.HELD_REQUESTS, worker.index),
            "held_bytes": shared.count(Count.HELD_BYTES, worker.index),
        }
        for worker in supervisor.workers
    ]


def requests_under_way(shared: Shared, worker: int | None = None) -> int:
    """Accepted and not ended; of one worker, or of all."""
    ended = (Count.COMPLETED, Count.CANCELLED, Count.FAILED, Count.REFUSED)
    return shared.count(Count.ACCEPTED, worker) - sum(
        shared.count(count, worker) for count in ended
    )


def _open(shared: Shared, worker: int, opened: Count, closed: Count) -> int:
    return shared.count(opened, worker) - shared.count(closed, worker)
