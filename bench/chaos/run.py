"""Many requests while clients leave and engines break, from a seed; then the account.

    python -m bench.chaos [--requests 2000] [--seed 1] [--workers 1]

The gateway runs as its users run it, over four simulated engines. The seed decides what every
client does and what happens to the engines; how these meet in time is the machine's.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import uvloop

from bench.chaos.account import Line, Record, audit, total
from bench.chaos.client import Ledger, stay
from bench.chaos.gremlin import Gremlin
from bench.chaos.house import Engines, Gateway, Metrics
from bench.chaos.plan import Visit, visits

__all__ = ["Outcome", "Plan", "chaos", "main"]

SETTLE_S = 20.0
TIME_SCALE = 0.05
"""Of the engines: a token takes about a millisecond."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to run."""

    requests: int = 2000
    seed: int = 1
    workers: int = 1
    clients: int = 48
    """At the same time."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it."""

    lines: list[Line]
    ends: Counter[str]
    """Requests by how they ended for their clients."""
    outcomes: Counter[str]
    """Requests by how they ended for the gateway."""
    faults: Counter[str]
    retries: int
    held: int
    """Requests that waited in the gateway for an engine with room."""
    seconds: float
    gateway_log: list[str]

    @property
    def broken(self) -> list[Line]:
        """What does not hold."""
        return [line for line in self.lines if not line.holds]


async def chaos(plan: Plan) -> Outcome:
    """Run it. RuntimeError or TimeoutError where a process does not start or answer."""
    begin_s = time.monotonic()
    ledger = Ledger()
    engines = Engines()
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        gateway = Gateway(Path(folder))
        try:
            await engines.start(TIME_SCALE)
            await gateway.start(engines.ports, plan.workers)
            gremlin = Gremlin(plan.seed, engines)
            async with gremlin:
                todo = visits(plan.seed, plan.requests)
                clients = [_client(todo, gateway.port, ledger) for _ in range(plan.clients)]
                await asyncio.gather(*clients)
            metrics = await _at_rest(gateway)
            await gateway.stop()
            states = await engines.states_at_rest(SETTLE_S)
            records: list[Record] = [
                json.loads(line) for line in gateway.access_log.read_text().splitlines()
            ]
        finally:
            await gateway.stop()
            await engines.stop()
    tracebacks = sum("Traceback" in line for line in gateway.log)
    lines = [
        *audit(ledger, metrics, records, states),
        Line("the gateway's exit code", gateway.code == 0, str(gateway.code)),
        Line("tracebacks in its log", not tracebacks, str(tracebacks)),
    ]
    return Outcome(
        lines=lines,
        ends=Counter(entry.end for entry in ledger.entries),
        outcomes=Counter(record["outcome"] for record in records),
        faults=gremlin.done,
        retries=total(metrics, "retries_total"),
        held=sum(record["held_s"] is not None for record in records),
        seconds=time.monotonic() - begin_s,
        gateway_log=gateway.log,
    )


async def _client(todo: Iterator[Visit], port: int, ledger: Ledger) -> None:
    for visit in todo:
        await stay(visit, port, ledger)


async def _at_rest(gateway: Gateway) -> Metrics:
    """The metrics once nothing is under way; the last ones if that does not come about."""
    until_s = time.monotonic() + SETTLE_S
    while True:
        metrics = await gateway.admin.metrics()
        ended = total(metrics, "requests_ended_total") == total(metrics, "requests_accepted_total")
        opened = total(metrics, "connections_opened_total")
        if ended and opened == total(metrics, "connections_closed_total"):
            return metrics
        if time.monotonic() > until_s:
            return metrics
        await asyncio.sleep(0.2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: run it, print the account; 1 if something does not hold."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args(arguments)
    outcome = uvloop.run(chaos(Plan(given.requests, given.seed, given.workers)))
    for words, counts in (
        ("for the clients", outcome.ends),
        ("for the gateway", outcome.outcomes),
        ("faults", outcome.faults),
    ):
        print(f"{words}: " + ", ".join(f"{n} {what}" for what, n in counts.most_common()))
    print(f"retries: {outcome.retries}; held: {outcome.held}; {outcome.seconds:.0f} s\n")
    for line in outcome.lines:
        print(f"  {'ok' if line.holds else 'NO':3} {line.words}: {line.figures}")
    if outcome.broken:
        print("\nthe gateway's last words:\n" + "".join(outcome.gateway_log[-20:]))
    return 1 if outcome.broken else 0
