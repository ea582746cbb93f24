"""What `make demo` runs: the gateway over engines, simulated or real, and requests through it.

Talks to the gateway over sockets only, as any client does. Ends with 0 if every request did what
it should; without --once it serves on until Ctrl-C.
"""

import argparse
import asyncio
import contextlib
import os
import re
import secrets
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import AsyncIterator

import aiohttp
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from bench import demo_engines
from bench.demo_client import Answer, ask, chat
from bench.demo_engines import Engines, EnginesError

__all__ = ["main"]

N_TOGETHER = 8
START_S = 30.0
STOP_S = 10.0
# What a question is about, and long enough to be worth caching: some 1,500 tokens.
DOCUMENT = " ".join(
    f"Gate {n} of the canal opens when the water behind it stands at {40 + n} centimetres."
    for n in range(1, 76)
)
QUESTIONS = (
    "Why is the sky blue?",
    "What does a gateway do all day?",
    "Name three rivers.",
    "How long is a piece of string?",
    "What is a KV cache good for?",
    "Who invented the zip fastener?",
    "Tell me about tides.",
    "Why do cats purr?",
)


WORDS = re.compile(r"\s*\S+")
# What stands in x-headgate-decision, behind the endpoint.
WORDS_OF_DECISIONS = {
    "by": "the policy that picked the engine",
    "candidates": "engines there were to choose from",
    "in-flight": "requests at that engine, this one counted",
    "cached-tokens": "of the prompt's tokens, how many it is expected to have computed before",
    "known-by": "how prompts are compared: by their text, or by token ids",
}


class DemoError(Exception):
    """The gateway did not come up, or ended."""


class Gateway:
    """`headgate serve` before `engines` as a child process; `async with` starts and stops it."""

    def __init__(self, engines: Engines) -> None:
        self.engines = engines
        port, admin_port = free_port(8080), free_port(9180)
        self.url = f"http://127.0.0.1:{port}"
        self.admin_url = f"http://127.0.0.1:{admin_port}"
        self.token = secrets.token_hex(8)
        self.log: deque[str] = deque(maxlen=40)
        self.follow: Console | None = None
        """Where log lines go as they come; None: they are only kept."""
        self._ports = ("--port", str(port), "--admin-port", str(admin_port))

    async def __aenter__(self) -> "Gateway":
        # Settings of whoever runs the demo would win over ours.
        env = {k: v for k, v in os.environ.items() if not k.startswith("HEADGATE_")}
        env |= {"HEADGATE_ADMIN_TOKEN": self.token, "HEADGATE_DRAIN__PRE_STOP_S": "0"}
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "headgate", "serve", *self.engines.arguments),
            *("--decision-header", *self._ports),
            env=env,
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for us; we stop the gateway in order
        )
        self._reader = asyncio.create_task(self._read_log())
        try:
            await self._wait_until_ready()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_S):
                await self.process.wait()
        except TimeoutError:
            self.process.kill()
            await self.process.wait()
        await self._reader

    async def _read_log(self) -> None:
        assert self.process.stderr is not None
        async for line in self.process.stderr:
            self.log.append(line.decode(errors="replace").rstrip())
            if self.follow is not None:
                self.follow.print(escape(self.log[-1]), style="dim")

    async def _wait_until_ready(self) -> None:
        limit_s = time.monotonic() + START_S
        headers = {"authorization": f"Bearer {self.token}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            while not (await self._has_all_engines(session) and await self._can_chat(session)):
                if self.process.returncode is not None:
                    raise DemoError("the gateway ended while it started")
                if time.monotonic() > limit_s:
                    raise DemoError(f"the gateway was not ready after {START_S:g} s")
                await asyncio.sleep(0.05)

    async def _has_all_engines(self, session: aiohttp.ClientSession) -> bool:
        try:
            async with session.get(f"{self.admin_url}/ready") as ready:
                if ready.status != 200:
                    return False
            async with session.get(f"{self.admin_url}/admin/endpoints") as reply:
                states = [endpoint["state"] for endpoint in (await reply.json())["data"]]
        except aiohttp.ClientError:
            return False
        return states == ["ready"] * self.engines.count

    async def _can_chat(self, session: aiohttp.ClientSession) -> bool:
        """Chat templates are read after the gateway is ready; until then it answers 503."""
        body = chat("Ready?", False, max_tokens=1) | {"model": self.engines.model}
        async with session.post(f"{self.url}/v1/chat/completions", json=body) as reply:
            return reply.status != 503


def free_port(wanted: int) -> int:
    """`wanted` if nobody listens there, else any free one."""
    for port in (wanted, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise DemoError("there is no free port on 127.0.0.1")


class Show:
    """The requests, and how they look: colours and a live table on a terminal, else plain lines."""

    def __init__(self, console: Console, gateway: Gateway, session: aiohttp.ClientSession) -> None:
        self.answers: list[Answer] = []
        self._console = console
        self._gateway = gateway
        self._session = session

    async def run(self) -> bool:
        """All of it. True if everything went as it should."""
        await self._one("A request, answered in one piece", "/v1/chat/completions", stream=False)
        await self._one("A stream: tokens as they arrive", "/v1/chat/completions", stream=True)
        if self._gateway.engines.has_messages:
            await self._one("The same gateway in Anthropic's dialect", "/v1/messages", stream=True)
        await self._together()
        await self._conversation()
        refused = await self._refused()
        self._summary()
        return refused and all(answer.status == 200 and answer.n_tokens for answer in self.answers)

    async def _one(self, title: str, path: str, stream: bool) -> None:
        question = QUESTIONS[len(self.answers) % len(QUESTIONS)]
        self._title(f"{title} (POST {path})")
        self._console.print(f"  {question}\n  ", end="")
        answer, column = Answer(path), 0
        async for text in self._ask(answer, chat(question, stream, max_tokens=24)):
            for piece in WORDS.findall(text):
                if column == 0 or column + len(piece) + 4 > self._console.width:
                    self._console.print("\n  " if column else "", end="")
                    piece, column = piece.lstrip(), 0
                self._console.print(f"[green]{escape(piece)}[/]", end="")
                column += len(piece)
        self._console.print()
        self._where(answer)

    async def _together(self) -> None:
        self._title(f"{N_TOGETHER} streams at once")
        answers = [Answer("/v1/chat/completions") for _ in range(N_TOGETHER)]
        if self._console.is_terminal:
            width = self._console.width
            with Live(console=self._console, get_renderable=lambda: _progress(answers, width)):
                await asyncio.gather(*(self._drain(*item) for item in enumerate(answers)))
        else:
            await asyncio.gather(*(self._drain(*item) for item in enumerate(answers)))
            self._console.print(_progress(answers, 0))

    async def _drain(self, index: int, answer: Answer) -> None:
        question = QUESTIONS[index % len(QUESTIONS)]
        async for _ in self._ask(answer, chat(question, True, max_tokens=24 + 8 * index)):
            pass

    async def _conversation(self) -> None:
        self._title("A conversation: each turn goes where its beginning is cached")
        turns: list[dict[str, str]] = []
        for question in (f"{DOCUMENT}\n\nWhat is this about?", *QUESTIONS[:2]):
            answer = Answer("/v1/chat/completions")
            said = [text async for text in self._ask(answer, chat(question, True, 24, turns))]
            turns += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": "".join(said)},
            ]
            self._where(answer)

    async def _refused(self) -> bool:
        self._title("A model that is not there: refused by the gateway itself")
        answer = Answer("/v1/chat/completions")
        async for _ in ask(self._session, answer, chat("Hello?", False, 1) | {"model": "gpt-0"}):
            pass
        self._console.print(f"  {answer.status}, x-headgate-reason: {escape(answer.reason)}")
        self._console.print(f"  [dim]{escape(answer.error)}[/]")
        return answer.status == 404 and answer.reason == "unknown_model"

    async def _ask(self, answer: Answer, body: dict[str, object]) -> AsyncIterator[str]:
        self.answers.append(answer)
        body = body | {"model": self._gateway.engines.model}
        async for piece in ask(self._session, answer, body):
            yield piece
        if answer.status != 200:
            self._console.print(f"[red]{answer.status} {escape(answer.error)}[/]")

    def _title(self, text: str) -> None:
        self._console.print(f"\n[bold]{text}[/]")

    def _where(self, answer: Answer) -> None:
        first = f"first token after {_ms(answer.ttft_s)}, " if answer.is_stream else ""
        self._console.print(
            f"  [cyan]-> {escape(answer.endpoint)}[/] by {escape(answer.policy)} "
            f"({escape(answer.why)})\n"
            f"  {first}{answer.n_tokens} tokens in {_ms(answer.total_s)}",
            highlight=False,
        )

    def _summary(self) -> None:
        self._title("Where they went")
        table = _table("endpoint", "requests", "tokens", "mean first token")
        by_endpoint: dict[str, list[Answer]] = {}
        for answer in self.answers:
            by_endpoint.setdefault(answer.endpoint, []).append(answer)
        for endpoint, answers in sorted(by_endpoint.items()):
            times_s = [answer.ttft_s for answer in answers if answer.is_stream]
            mean = _ms(sum(times_s) / len(times_s)) if times_s else "-"
            n_tokens = sum(answer.n_tokens for answer in answers)
            table.add_row(endpoint, str(len(answers)), str(n_tokens), mean)
        self._console.print(Padding(table, (0, 0, 0, 2), expand=False))
        for word, meaning in WORDS_OF_DECISIONS.items():
            self._console.print(f"  [dim]{word:<13} {meaning}[/]", soft_wrap=True)

    def curl_lines(self) -> None:
        """What to type next."""
        url, admin = self._gateway.url, self._gateway.admin_url
        self._title("Try it")
        for line in (
            f"curl -N {url}/v1/chat/completions -H 'content-type: application/json' \\",
            f'  -d \'{{"model": "{self._gateway.engines.model}", "stream": true, "max_tokens": 40, '
            '"messages": [{"role": "user", "content": "hi"}]}\'',
            f"curl {url}/v1/models",
            f"curl {admin}/metrics",
            f"curl {admin}/admin/endpoints -H 'authorization: Bearer {self._gateway.token}'",
        ):
            # Never wrapped: it is to be copied.
            self._console.print(Text("  " + line), soft_wrap=True)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for column in columns:
        is_text = column in ("endpoint", "why", "latest")
        table.add_column(column, justify="left" if is_text else "right", no_wrap=True)
    return table


def _progress(answers: list[Answer], width: int) -> Padding:
    """One row per stream, as far as it is; with its latest words where there is room."""
    room = width - 84
    shows_text = room > 10
    table = _table("endpoint", "tokens", "first token", "why", *["latest"] * shows_text)
    for answer in answers:
        table.add_row(
            f"[cyan]{escape(answer.endpoint)}[/]",
            str(answer.n_tokens),
            _ms(answer.ttft_s) if answer.n_tokens else "",
            answer.why.partition(", cached")[0],
            *[Text(answer.text[-room:], style="green")] * shows_text,
        )
    return Padding(table, (0, 0, 0, 2), expand=False)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"


class Demo:
    """One run of it."""

    def __init__(self, console: Console, once: bool) -> None:
        self.is_serving = False
        self._console = console
        self._once = once

    async def run(self, engines: Engines) -> None:
        """Returns after the requests, or never; DemoError, with the gateway's log before it."""
        gateway = Gateway(engines)
        self._console.print(f"Starting the gateway over {engines.name} ...")
        try:
            async with gateway:
                await self._use(gateway)
        except (DemoError, aiohttp.ClientError):
            self._console.print("\n".join(gateway.log), markup=False, soft_wrap=True)
            raise

    async def _use(self, gateway: Gateway) -> None:
        self._console.print(f"Clients: [bold]{gateway.url}[/]  admin: {gateway.admin_url}")
        async with aiohttp.ClientSession(gateway.url) as session:
            show = Show(self._console, gateway, session)
            is_good = await show.run()
        show.curl_lines()
        if not is_good:
            raise DemoError("a request did not do what it should; see above")
        if not self._once:
            self._console.print("\nServing until Ctrl-C.")
            gateway.follow = self._console
            self.is_serving = True
            await gateway.process.wait()
            raise DemoError("the gateway ended")


async def demo(kind: str, once: bool) -> int:
    """Run it over engines of one of `demo_engines.KINDS`; the exit code."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    console = Console(highlight=False)
    run = Demo(console, once)
    try:
        async with demo_engines.start(kind) as engines:
            await run.run(engines)
    except asyncio.CancelledError:
        console.print("\nStopped.")
        return 0 if run.is_serving else 130
    except (DemoError, EnginesError, aiohttp.ClientError) as error:
        console.print(f"[red]The demo failed: {escape(str(error))}[/]")
        return 1
    return 0


def main() -> None:
    """Entry point of `python -m bench.demo`."""
    parser = argparse.ArgumentParser(prog="bench.demo", description=__doc__)
    parser.add_argument("--once", action="store_true", help="end after the requests")
    parser.add_argument("--engine", choices=demo_engines.KINDS, default="sim", help="what serves")
    options = parser.parse_args()
    sys.exit(asyncio.run(demo(options.engine, options.once)))


if __name__ == "__main__":
    main()
