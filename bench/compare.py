"""What a request and a streamed event cost each proxy, side by side in one run.

    python -m bench.compare [--only headgate,nginx] [--rounds 5] [--seconds 3]

Two mock engines answer, a load generator asks (gwbench.c); each proxy between them is pinned to
one core, and its CPU time is divided by the requests or events it carried. CPU time per unit is
steady on a noisy machine where wall time is not; still, compare figures of one run only. The
rounds are interleaved, so that a slow minute hits all alike, and the medians count.
"""

import argparse
import contextlib
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from bench import processes, results
from bench.gwbench import END_EVENTS, Load, free_ports, start_engine
from bench.machine import describe
from bench.proxies import MODEL, PROXIES, Missing, Place, Proxy, environment, wait_until_answers

__all__ = ["DIRECT", "WORKLOADS", "Plan", "Workload", "compare", "main"]

DIRECT = "direct"
"""The load generator at an engine, with no proxy between: what time to first byte is added to."""
N_CHUNKS = 32
N_ENGINES = 2
LONG_PROMPT = "lorem ipsum dolor " * 12500
QUESTION = {"role": "user", "content": "Say hello to the world, please."}


class Workload(msgspec.Struct, frozen=True):
    """One kind of request, in a closed loop."""

    name: str
    what: str
    unit: str
    body: dict[str, object]

    @property
    def is_stream(self) -> bool:
        """Counted by events, not by requests."""
        return bool(self.body.get("stream"))


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "plain", "short chat, no stream", "request",
            {"model": MODEL, "messages": [QUESTION], "max_tokens": N_CHUNKS},
        ),
        Workload(
            "stream", f"{N_CHUNKS} events, each a write of its own, 5 ms apart", "event",
            {"model": MODEL, "messages": [QUESTION], "max_tokens": N_CHUNKS, "stream": True},
        ),
        Workload(
            "long", "220 KB prompt, no stream", "request",
            {
                "model": MODEL,
                "messages": [{"role": "system", "content": LONG_PROMPT}, QUESTION],
                "max_tokens": N_CHUNKS,
            },
        ),
    )
}  # fmt: skip


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to measure."""

    proxies: Sequence[str] = ("headgate", "headgate-least-requests", "nginx", "sglang-router")
    workloads: Sequence[str] = tuple(WORKLOADS)
    rounds: int = 5
    seconds: float = 3.0
    connections: int = 64
    gap_us: int = 5000
    core: int = 0
    """Every proxy is pinned to it."""
    command: str = "python -m bench.compare"


class Running(msgspec.Struct):
    """A started proxy, or an engine in its place (`direct`)."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    is_product: bool = False

    def all(self) -> list[int]:
        """Its processes."""
        return processes.tree(self.process.pid)

    def workers(self) -> list[int]:
        """Those that carry requests: the product's children; of others, all."""
        return self.all()[1:] if self.is_product else self.all()


def compare(plan: Plan) -> results.Comparison:
    """Start everything, measure, end everything. Blocks for about rounds x proxies x workloads."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        folder.chmod(0o755)  # nginx's worker is another user
        bodies = _write_bodies(folder, plan.workloads)
        machine = describe()
        started: list[subprocess.Popen[bytes]] = []
        stack.callback(lambda: processes.end_all(started))
        ports = free_ports(N_ENGINES)
        for port in ports:
            started.append(start_engine(port, n_chunks=N_CHUNKS, gap_us=plan.gap_us))
        running = [Running(DIRECT, ports[0], started[0])]
        missing: dict[str, str] = {}
        for name in plan.proxies:
            try:
                running.append(_start(PROXIES[name], ports, folder, plan.core, started))
            except Missing as error:
                missing[name] = str(error)
        rows = [
            _measure(number, WORKLOADS[workload], one, bodies[workload], plan)
            for number, workload, one in _order(plan, running)
        ]
        troubled = {row.proxy for row in rows if row.bad} - {DIRECT}
        return results.Comparison(
            machine=machine,
            command=plan.command,
            versions={
                one.name: PROXIES[one.name].version() for one in running if one.name != DIRECT
            },
            connections=plan.connections,
            seconds=plan.seconds,
            rounds=plan.rounds,
            rows=rows,
            missing=missing,
            said={name: _said(folder, name) for name in sorted(troubled)},
        )


def _order(plan: Plan, running: Sequence[Running]) -> Iterator[tuple[int, str, Running]]:
    """Interleaved, and each round begins with another proxy: no one is always first."""
    for number in range(plan.rounds):
        for workload in plan.workloads:
            shift = number % len(running)
            for one in [*running[shift:], *running[:shift]]:
                yield number, workload, one


def _write_bodies(folder: Path, workloads: Sequence[str]) -> dict[str, Path]:
    paths = {}
    for name in workloads:
        paths[name] = folder / f"{name}.json"
        paths[name].write_text(json.dumps(WORKLOADS[name].body))
    return paths


def _start(
    proxy: Proxy,
    engine_ports: Sequence[int],
    folder: Path,
    core: int,
    started: list[subprocess.Popen[bytes]],
) -> Running:
    """Start a proxy on its core and wait for its first answer; Missing: it does not come."""
    port, side_port = free_ports(2)
    command = proxy.command(Place(port, side_port, engine_ports, folder))
    log_path = _log_path(folder, proxy.name)
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *command],
            stdout=subprocess.DEVNULL,
            stderr=log,
            env=environment(),
            start_new_session=True,
        )
    started.append(process)
    if not wait_until_answers(port, process, 60):
        raise Missing(f"{proxy.name} does not answer: {_said(folder, proxy.name)}")
    return Running(proxy.name, port, process, proxy.is_product)


def _log_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.err"


def _said(folder: Path, name: str) -> str:
    """The end of what a proxy wrote to standard error."""
    text = _log_path(folder, name).read_text(errors="replace").strip()
    return text[-2000:] or "it said nothing"


def _measure(number: int, workload: Workload, one: Running, body: Path, plan: Plan) -> results.Row:
    load = Load(
        port=one.port,
        body=body,
        # Alone it gets no more than its share of what a proxy spreads.
        connections=plan.connections // (N_ENGINES if one.name == DIRECT else 1) or 1,
        seconds=plan.seconds,
        headers=("x-request-source: compare",),
        want_events=N_CHUNKS + END_EVENTS if workload.is_stream else 0,
    )
    all_pids, worker_pids = one.all(), one.workers()
    all_before_s, worker_before_s = processes.cpu_s(all_pids), processes.cpu_s(worker_pids)
    run = load.run()
    units = max(1, round(run.events_per_s * plan.seconds) if workload.is_stream else run.ok)
    return results.Row(
        round=number,
        workload=workload.name,
        proxy=one.name,
        cpu_us=(processes.cpu_s(all_pids) - all_before_s) * 1e6 / units,
        worker_cpu_us=(processes.cpu_s(worker_pids) - worker_before_s) * 1e6 / units,
        units=units,
        bad=run.bad,
        rps=run.rps,
        ttfb_p50_ms=run.ttfb_ms.p50,
        ttfb_p99_ms=run.ttfb_ms.p99,
        rss_bytes=processes.rss_bytes(all_pids),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: measure, save, print the report's table."""
    from bench import report

    processes.exit_on_sigterm()
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", help="proxies, with commas; all: " + ",".join(PROXIES))
    parser.add_argument("--workloads", help="with commas; all: " + ",".join(WORKLOADS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--core", type=int, default=0, help="core for the proxies")
    parser.add_argument("--folder", type=Path, default=results.FOLDER, help="for compare.json")
    given = parser.parse_args(arguments)
    defaults = Plan()
    words = sys.argv[1:] if arguments is None else arguments
    plan = Plan(
        proxies=given.only.split(",") if given.only else defaults.proxies,
        workloads=given.workloads.split(",") if given.workloads else defaults.workloads,
        rounds=given.rounds,
        seconds=given.seconds,
        connections=given.connections,
        core=given.core,
        command=shlex.join(["python", "-m", "bench.compare", *words]),
    )
    for name, known in ((plan.proxies, PROXIES), (plan.workloads, WORKLOADS)):
        for one in name:
            if one not in known:
                parser.error(f"there is no '{one}'; there are {', '.join(known)}")
    comparison = compare(plan)
    results.save(comparison, given.folder)
    print(report.comparison_table(comparison))
    for proxy, said in comparison.said.items():
        print(f"\n{proxy} failed requests; what it said:\n{said}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
