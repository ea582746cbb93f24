"""A slice of a trace in real time, beside what the lab computes for it.

    python -m bench.lab.wall TRACE [--rate 0.7] [--pods 4] [--seconds 60]

A real `headgate serve` before real `headgate sim` processes, one per pod, with the lab's profile
and cache size; prompts are texts that share their beginnings where the trace's blocks do. What
differs from the lab's figures is the network, the gateway and the lateness of this machine's
timers. It ends some time after --seconds, when the last answer does. Processes share the
machine's cores: choose pods and a rate that leave some of them idle.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from random import Random

import aiohttp

from bench.gwbench import free_ports
from bench.lab.figures import Figures, figures_of
from bench.lab.traces import BLOCK_TOKENS, Arrival, arrivals_of
from bench.lab.world import Plan, Served, World
from bench.processes import cpu_s, tree

__all__ = ["WallError", "main", "prompt_of", "replay"]

START_S = 30.0
LETTERS = "abcdefghijklmnopqrstuvwxyz"

ROWS = (
    ("TTFT mean, s", "ttft_mean_s", "{:.3f}", 1.0),
    ("TTFT p50, s", "ttft_p50_s", "{:.3f}", 1.0),
    ("TTFT p90, s", "ttft_p90_s", "{:.3f}", 1.0),
    ("TPOT mean, ms", "tpot_mean_s", "{:.1f}", 1e3),
    ("TPOT p50, ms", "tpot_p50_s", "{:.1f}", 1e3),
    ("TPOT p90, ms", "tpot_p90_s", "{:.1f}", 1e3),
    ("E2E p50, s", "e2e_p50_s", "{:.2f}", 1.0),
    ("E2E p90, s", "e2e_p90_s", "{:.2f}", 1.0),
    ("hit ratio", "hit_ratio", "{:.3f}", 1.0),
    ("goodput", "goodput", "{:.3f}", 1.0),
)


class WallError(Exception):
    """The gateway or an engine did not come up, or a request failed."""


def prompt_of(arrival: Arrival, number: int) -> str:
    """Text of as many of the simulated engine's tokens as the arrival's prompt has.

    A block's text depends on its number alone, what follows the last block on the arrival's.
    """
    rest = arrival.prompt_tokens - BLOCK_TOKENS * len(arrival.blocks)
    return "".join(_words(f"b{block}", BLOCK_TOKENS) for block in arrival.blocks) + _words(
        f"r{number}", rest
    )


def _words(seed: str, n: int) -> str:
    """`n` words of one token each: a space and four letters."""
    letters = Random(seed).choices(LETTERS, k=4 * n)
    return "".join(" " + "".join(letters[at : at + 4]) for at in range(0, 4 * n, 4))


@contextlib.asynccontextmanager
async def _serving(plan: Plan) -> AsyncIterator[tuple[str, list[Process]]]:
    """The gateway's URL and all processes, its own first; they end with the block. WallError."""
    *pods, port, admin_port = free_ports(plan.pods + 2)
    config = {
        "listen": {"port": port},
        "admin": {"port": admin_port},
        "policy": plan.policy,
        "engines": [{"url": f"http://127.0.0.1:{p}", "profile": plan.profile} for p in pods],
        "drain": {"pre_stop_s": 0, "grace_s": 1},
    }
    # Settings of whoever runs this would win over ours.
    env = {k: v for k, v in os.environ.items() if not k.startswith("HEADGATE_")}
    started: list[Process] = []
    with tempfile.TemporaryDirectory(prefix="lab-") as folder:
        file = Path(folder) / "headgate.yaml"
        file.write_text(json.dumps(config))
        commands: list[tuple[str, ...]] = [("serve", "--config", str(file), "--log-level", "error")]
        commands += [
            (
                *("sim", "--port", str(pod), "--profile", plan.profile, "--model", "lab"),
                *("--block-size", str(BLOCK_TOKENS), "--kv-tokens", str(plan.cache_tokens)),
                *("--max-model-len", str(plan.cache_tokens), "--sigterm", "quit"),
            )
            for pod in pods
        ]
        try:
            for command in commands:
                started.append(
                    await asyncio.create_subprocess_exec(
                        *(sys.executable, "-m", "headgate", *command),
                        env=env,
                        stdin=DEVNULL,
                        stdout=DEVNULL,
                        start_new_session=True,
                    )
                )
            await _wait_until_ready(f"http://127.0.0.1:{admin_port}/metrics", plan.pods, started)
            yield f"http://127.0.0.1:{port}", started
        finally:
            for process in started:
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGTERM)
            await asyncio.gather(*map(_gone, started))


async def _gone(process: Process) -> None:
    try:
        async with asyncio.timeout(5):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def _wait_until_ready(metrics_url: str, pods: int, started: Sequence[Process]) -> None:
    limit_s = time.monotonic() + START_S
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < limit_s:
            if any(process.returncode is not None for process in started):
                raise WallError("the gateway or an engine ended while it started")
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(metrics_url) as reply:
                    if (await reply.text()).count('state="ready"} 1.0') == pods:
                        return
            await asyncio.sleep(0.1)
    raise WallError(f"not all engines were ready after {START_S:g} s")


async def replay(plan: Plan, arrivals: Sequence[Arrival]) -> tuple[list[Served], float]:
    """What the product made of them, and the share of one core that all its processes used.

    WallError: it did not start, or a request was not answered whole.
    """
    prompts = [prompt_of(arrival, number) for number, arrival in enumerate(arrivals)]
    async with _serving(plan) as (url, processes):
        connector = aiohttp.TCPConnector(limit=0)
        pids = [pid for process in processes for pid in tree(process.pid)]
        async with aiohttp.ClientSession(url, connector=connector) as session:
            used_s, start_s = cpu_s(pids), time.monotonic()
            served = await asyncio.gather(
                *(
                    _ask(session, start_s, arrival, prompt)
                    for arrival, prompt in zip(arrivals, prompts, strict=True)
                )
            )
            share = (cpu_s(pids) - used_s) / (time.monotonic() - start_s)
    return served, share


async def _ask(
    session: aiohttp.ClientSession, start_s: float, arrival: Arrival, prompt: str
) -> Served:
    body = {
        "model": "lab",
        "prompt": prompt,
        "max_tokens": arrival.output_tokens,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    data = json.dumps(body).encode()
    served = Served(arrival, 0)
    await asyncio.sleep(max(0.0, start_s + arrival.at_s - time.monotonic()))
    async with session.post(
        "/v1/completions", data=data, headers={"content-type": "application/json"}
    ) as response:
        if response.status != 200:
            raise WallError(f"{response.status}: {(await response.text())[:300]}")
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            if b'"choices":[]' in line.replace(b" ", b""):
                usage = json.loads(line[6:])["usage"]
                served.cached_tokens = (usage["prompt_tokens_details"] or {})["cached_tokens"]
                if usage["prompt_tokens"] != arrival.prompt_tokens:
                    raise WallError(f"{usage['prompt_tokens']} tokens, not {arrival.prompt_tokens}")
                return served
            served.end_s = time.monotonic() - start_s
            if served.first_s < 0:
                served.first_s = served.end_s
    raise WallError("a stream ended without its usage")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.lab.wall",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("trace", help="a file, or chat or agents")
    parser.add_argument("--rate", type=float, default=0.7)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the trace, as it is played")
    parser.add_argument("--limit", type=int, default=2000, help="first requests only")
    parser.add_argument("--pods", type=int, default=4)
    parser.add_argument("--policy", default="marginal-cost")
    parser.add_argument("--profile", default="70b-h100-tp4")
    parser.add_argument("--cache-tokens", type=int, default=2_000_000, help="of each pod")
    given = parser.parse_args(arguments)
    try:
        plan = Plan(given.policy, {}, given.profile, given.pods, given.cache_tokens)
        arrivals = [
            arrival
            for arrival in arrivals_of(given.trace, rate=given.rate, limit=given.limit)
            if arrival.at_s < given.seconds
        ]
        virtual = figures_of(World(plan).run(arrivals), plan.pods)
        served, share = asyncio.run(replay(plan, arrivals))
    except (OSError, ValueError, WallError, aiohttp.ClientError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 2
    print(_table(virtual, figures_of(served, plan.pods)))
    print(f"\n{len(served)} requests; all processes used {share:.2f} of a core")
    return 0


def _table(virtual: Figures, real: Figures) -> str:
    lines = ["| | lab | product |", "| --- | ---: | ---: |"]
    for name, field, form, factor in ROWS:
        pair = [form.format(factor * getattr(figures, field)) for figures in (virtual, real)]
        lines.append(f"| {name} | {pair[0]} | {pair[1]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
