"""Many streams at once through one worker: do all end whole, and what memory do they take?

    python -m bench.streams [--streams 2000] [--rate 20] [--seconds 60]

Every connection asks for one stream that lasts the whole time. The worker's resident memory is
read before them, once a second while all of them run, and after them.
"""

import argparse
import json
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench import processes, results
from bench.gwbench import END_EVENTS, Load, Run
from bench.machine import describe
from bench.product import Gateway, serving
from bench.proxies import MODEL

__all__ = ["Plan", "main", "soak"]

SETTLE_S = 3.0
"""From the first connection until all streams run; samples begin after it."""
WARM_UP = 20
"""Streams before the first reading: code and buffers that are needed once are in memory then."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to run."""

    streams: int = 2000
    events_per_s: float = 20.0
    """Per stream."""
    seconds: float = 60.0
    command: str = "python -m bench.streams"

    @property
    def n_chunks(self) -> int:
        """Content events of a stream that lasts `seconds`."""
        return int(self.seconds * self.events_per_s)


def soak(plan: Plan) -> results.Soak:
    """Run it; blocks for `seconds` and some. RuntimeError if a process does not start."""
    machine = describe()
    with serving(n_chunks=plan.n_chunks, gap_us=int(1e6 / plan.events_per_s)) as gateway:
        body = gateway.folder / "stream.json"
        message = {"role": "user", "content": "Say hello to the world, please."}
        body.write_text(json.dumps({"model": MODEL, "messages": [message], "stream": True}))
        _warm_up(gateway, body)
        before_bytes = processes.rss_bytes(gateway.worker_pids)
        watch = _Watch(gateway, plan.seconds)
        watch.start()
        run = _load(gateway, body, plan)
        watch.join()
        return results.Soak(
            machine=machine,
            command=plan.command,
            streams=plan.streams,
            events_per_s=plan.events_per_s,
            seconds=plan.seconds,
            ok=run.ok,
            non200=run.non200,
            errors=run.errors + max(0, plan.streams - run.ok - run.bad),
            short=run.short,
            measured_events_per_s=(plan.n_chunks + END_EVENTS) * run.ok / run.seconds,
            gap_p99_ms=run.gap_ms.p99,
            worker_cpu_share=watch.cpu_share,
            rss_before_bytes=before_bytes,
            rss_samples_bytes=watch.samples_bytes,
            rss_after_bytes=processes.rss_bytes(gateway.worker_pids),
        )


def _load(gateway: Gateway, body: Path, plan: Plan) -> Run:
    # A closed loop that is over before the first stream ends: one stream per connection. gwbench
    # waits for what is under way, but not for longer than its grace of 30 s.
    return Load(
        port=gateway.port,
        body=body,
        connections=plan.streams,
        seconds=max(plan.seconds - 15.0, plan.seconds / 2),
        want_events=plan.n_chunks + END_EVENTS,
    ).run()


def _warm_up(gateway: Gateway, body: Path) -> None:
    """Begin some streams and leave them: their answers are not needed."""
    load = Load(port=gateway.port, body=body, connections=WARM_UP, seconds=1.0)
    process = subprocess.Popen(load.argv(), stdout=subprocess.DEVNULL, start_new_session=True)
    time.sleep(2.0)
    process.kill()
    process.wait()
    time.sleep(1.0)


class _Watch(threading.Thread):
    """Samples the worker's memory while all streams run."""

    def __init__(self, gateway: Gateway, seconds: float) -> None:
        super().__init__(name="watch", daemon=True)
        self._pids = gateway.worker_pids
        self._seconds = seconds
        self.samples_bytes: list[int] = []
        self.cpu_share = 0.0

    def run(self) -> None:
        begin_s = time.monotonic()
        settle_s = min(SETTLE_S, self._seconds / 4)
        time.sleep(settle_s)
        cpu_before_s, since_s = processes.cpu_s(self._pids), time.monotonic()
        while time.monotonic() < begin_s + self._seconds - min(1.0, settle_s):
            self.samples_bytes.append(processes.rss_bytes(self._pids))
            time.sleep(min(1.0, self._seconds / 10))
        elapsed_s = time.monotonic() - since_s
        self.cpu_share = (processes.cpu_s(self._pids) - cpu_before_s) / elapsed_s


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line: run, save, print the figures."""
    processes.exit_on_sigterm()
    parser = argparse.ArgumentParser(
        prog="python -m bench.streams",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--streams", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=20.0, help="events per second and stream")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--folder", type=Path, default=results.FOLDER, help="for streams.json")
    given = parser.parse_args(arguments)
    words = sys.argv[1:] if arguments is None else arguments
    result = soak(
        Plan(
            streams=given.streams,
            events_per_s=given.rate,
            seconds=given.seconds,
            command=shlex.join(["python", "-m", "bench.streams", *words]),
        )
    )
    results.save(result, given.folder)
    print(
        f"ok {result.ok}  failed {result.non200 + result.errors}  cut early {result.short}"
        f"  {result.rss_per_stream_bytes / 1024:.1f} KiB per stream"
        f"  growth {result.growth_per_stream_bytes / 1024:.2f} KiB"
        f"  worker {result.worker_cpu_share * 100:.0f} % of a core"
    )
    return 0 if result.ok == result.streams else 1


if __name__ == "__main__":
    sys.exit(main())
