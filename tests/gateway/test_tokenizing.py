"""The threads beside the loop: every job ends once, in time, and in the loop's thread."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
import pytest
import uvloop

from engines.tokens.probes import PROBES
from gateway.messages import Sample
from gateway.tokenizing import Tokenizing, loader
from tests.engines.tokens.models import write_folder


class Fake:
    """Ids are the body's bytes; a body `wait` waits until it is let go."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun = threading.Event()
        self.threads: set[int] = set()

    def ids(self, path: str, body: bytes) -> array[int] | None:
        self.threads.add(threading.get_ident())
        if body == b"wait":
            self.begun.set()
            self.gate.wait(10.0)
        if body == b"raise":
            raise ValueError("a fault of the test")
        return None if body == b"none" else array("I", list(body))

    def render(self, body: bytes) -> str:
        return body.decode()

    def count(self, prompts: Sequence[str], texts: Sequence[str]) -> tuple[int, int]:
        return len(prompts), len(texts)


ended: list[str] = []
"""How the jobs of the running test ended."""


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(10.0):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def run(
    test: Callable[[Tokenizing, Fake], Awaitable[None]],
    *,
    threads: int = 1,
    queue: int = 8,
    deadline_s: float = 5.0,
) -> None:
    async def main() -> None:
        fake = Fake()
        ended.clear()
        tokenizing = Tokenizing(
            asyncio.get_running_loop(),
            ended.append,
            threads=threads,
            queue=queue,
            deadline_s=deadline_s,
        )
        tokenizing.load("m", lambda: fake)
        try:
            await until(lambda: tokenizing.loaded)
            await test(tokenizing, fake)
        finally:
            fake.gate.set()
            tokenizing.close()

    uvloop.run(main())  # the loop that a worker has


@pytest.mark.parametrize("threads", [1, 3])
def test_ids_come_in_the_loops_thread(threads: int) -> None:
    async def test(tokenizing: Tokenizing, fake: Fake) -> None:
        found: list[tuple[int, list[int] | None, int]] = []

        def keep(index: int) -> Callable[[array[int] | None], None]:
            def callback(ids: array[int] | None) -> None:
                found.append((index, ids and list(ids), threading.get_ident()))

            return callback

        for index in range(200):
            while tokenizing.submit("m", "/p", bytes([index]), keep(index)) is None:
                found.pop()
                await asyncio.sleep(0.001)
        await until(lambda: len(found) == 200)
        assert sorted(index for index, _, _ in found) == list(range(200))
        assert all(ids == [index] for index, ids, _ in found)
        assert {thread for _, _, thread in found} == {threading.get_ident()}
        assert threading.get_ident() not in fake.threads
        assert ended.count("known") == 200

    run(test, threads=threads)


def test_unknown() -> None:
    async def test(tokenizing: Tokenizing, fake: Fake) -> None:
        found: list[object] = []
        tokenizing.submit("m", "/p", b"none", found.append)
        assert tokenizing.submit("another", "/p", b"x", found.append) is None
        assert found == [None]
        await until(lambda: len(found) == 2)
        assert found == [None, None]
        assert ended.count("unknown") == ended.count("unloaded") == 1

    run(test)


def test_maker_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    async def test(tokenizing: Tokenizing, fake: Fake) -> None:
        found: list[object] = []
        tokenizing.submit("m", "/p", b"raise", found.append)
        tokenizing.submit("m", "/p", b"y", found.append)
        await until(lambda: len(found) == 2)
        assert found == [None, array("I", [ord("y")])]

    run(test)
    assert "a fault of the test" in caplog.text


def test_full_queue() -> None:
    async def test(tokenizing: Tokenizing, fake: Fake) -> None:
        found: list[object] = []
        tokenizing.submit("m", "/p", b"wait", found.append)
        await until(fake.begun.is_set)
        for _ in range(8):
            assert tokenizing.submit("m", "/p", b"x", found.append) is not None
        assert found == []
        assert tokenizing.submit("m", "/p", b"x", found.append) is None
        assert found == [None]
        fake.gate.set()
        await until(lambda: len(found) == 10)
        assert ended.count("full") == 1
        assert ended.count("known") == 9

    run(test, queue=8)


def test_deadline() -> None:
    async def test(tokenizing: Tokenizing, fake: Fake) -> None:
        found: list[object] = []
        tokenizing.submit("m", "/p", b"wait", found.append)
        await asyncio.sleep(0.03)
        tokenizing.submit("m", "/p", b"x", found.append)
        start_s = asyncio.get_running_loop().time()
        await until(lambda: len(found) == 1)
        await until(lambda: len(found) == 2)
        assert asyncio.get_running_loop().time() - start_s > 0.04
        assert found == [None, None]
        assert ended.count("late") == 2
        fake.gate.set()
        await asyncio.sleep(0.05)
        assert len(found) == 2, "what comes late is nobody's"
        tokenizing.submit("m", "/p", b"y", found.append)
        await until(lambda: len(found) == 3)
        assert found[2] == array("I", [ord("y")])

    run(test, deadline_s=0.05)


def test_ids_that_were_made_while_the_loop_stood_still_are_not_late() -> None:
    async def test(tokenizing: Tokenizing, fake: Fake) -> None:
        found: list[object] = []
        for _ in range(20):
            tokenizing.submit("m", "/p", b"x", found.append)
            time.sleep(0.01)  # on purpose: nothing else runs in the loop
        await until(lambda: len(found) == 20)
        assert ended.count("late") == 0

    run(test, queue=30, deadline_s=0.005)


def test_cancel() -> None:
    async def test(tokenizing: Tokenizing, fake: Fake) -> None:
        found: list[object] = []
        running = tokenizing.submit("m", "/p", b"wait", found.append)
        await until(fake.begun.is_set)
        waiting = tokenizing.submit("m", "/p", b"x", found.append)
        assert running is not None
        assert waiting is not None
        running.cancel()
        waiting.cancel()
        fake.gate.set()
        tokenizing.submit("m", "/p", b"y", found.append)
        await until(lambda: found)
        await asyncio.sleep(0.02)
        assert found == [array("I", [ord("y")])]
        assert ended.count("known") == 1

    run(test)


def test_close() -> None:
    async def test(tokenizing: Tokenizing, fake: Fake) -> None:
        found: list[object] = []
        tokenizing.submit("m", "/p", b"wait", found.append)
        tokenizing.submit("m", "/p", b"x", found.append)
        await until(fake.begun.is_set)
        fake.gate.set()
        tokenizing.close()
        assert found == [None, None]
        await asyncio.sleep(0.02)
        assert len(found) == 2
        assert tokenizing.submit("m", "/p", b"x", found.append) is None
        assert len(found) == 3
        assert not [one for one in threading.enumerate() if one.name.startswith("tokenizing")]

    run(test)


def test_model_that_cannot_be_loaded(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    async def main() -> None:
        write_folder(tmp_path / "good", "chatml")
        tokenizing = Tokenizing(asyncio.get_running_loop(), deadline_s=5.0)
        tokenizing.load("bad", loader(tmp_path / "none"))
        tokenizing.load("good", loader(tmp_path / "good"))
        try:
            await until(lambda: tokenizing.loaded)
            assert tokenizing.loaded == {"good"}
            found: list[array[int] | None] = []
            tokenizing.submit("bad", "/v1/completions", b'{"prompt": "a"}', found.append)
            assert found == [None]
            body = json.dumps({"messages": [{"role": "user", "content": "a"}]}).encode()
            tokenizing.submit("good", "/v1/chat/completions", body, found.append)
            await until(lambda: len(found) == 2)
            assert found[1]
        finally:
            tokenizing.close()

    uvloop.run(main())  # the loop that a worker has
    assert "no token ids for bad: " in caplog.text


@pytest.mark.parametrize("differs", [False, True])
def test_samples_are_compared(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, differs: bool
) -> None:
    write_folder(tmp_path, "chatml")
    samples = []
    for path, body in PROBES:
        ids = loader(tmp_path)().ids(path, body)
        assert ids is not None
        samples.append(Sample(path, body, ids.tobytes()))
    if differs:
        samples[-1] = msgspec.structs.replace(samples[-1], ids=samples[-1].ids[4:])

    async def main() -> None:
        tokenizing = Tokenizing(asyncio.get_running_loop(), deadline_s=5.0)
        tokenizing.load("m", loader(tmp_path, samples=samples))
        try:
            await until(lambda: tokenizing.loaded or caplog.records)
            assert bool(tokenizing.loaded) is not differs
        finally:
            tokenizing.close()

    uvloop.run(main())  # the loop that a worker has
    assert ("makes other token ids than the engine" in caplog.text) is differs


def test_a_model_that_is_forgotten_while_it_loads_stays_forgotten() -> None:
    async def main() -> None:
        tokenizing = Tokenizing(asyncio.get_running_loop(), deadline_s=5.0)
        gate, old, new = threading.Event(), Fake(), Fake()

        def slow() -> Fake:
            gate.wait(10.0)
            return old

        try:
            tokenizing.load("m", slow)
            tokenizing.forget("m")
            tokenizing.load("n", lambda: new)
            gate.set()
            await until(lambda: tokenizing.loaded)
            assert tokenizing.loaded == {"n"}
        finally:
            gate.set()
            tokenizing.close()

    uvloop.run(main())  # the loop that a worker has


def test_a_prompt_waits_for_its_tokenizer_to_be_loaded() -> None:
    async def main() -> None:
        tokenizing = Tokenizing(asyncio.get_running_loop(), deadline_s=5.0)
        gate, found = threading.Event(), []

        def good() -> Fake:
            gate.wait(10.0)
            return Fake()

        def bad() -> Fake:
            gate.wait(10.0)
            raise OSError("a fault of the test")

        try:
            tokenizing.load("good", good)
            tokenizing.load("bad", bad)
            tokenizing.load("gone", good)
            for model in ("good", "bad", "gone", "unknown"):
                tokenizing.render(model, b"body", lambda said, of=model: found.append((of, said)))
            assert found == [("unknown", None)]
            left = tokenizing.count("good", [], ["a"], found.append)
            assert left is not None
            left.cancel()
            tokenizing.forget("gone")
            assert found[1:] == [("gone", None)]
            gate.set()
            await until(lambda: len(found) == 4)
            assert sorted(found[2:]) == [("bad", None), ("good", "body")]
            gate.clear()
            tokenizing.load("late", good)
            tokenizing.render("late", b"", found.append)
        finally:
            gate.set()
            tokenizing.close()
        assert found[4:] == [None]

    uvloop.run(main())  # the loop that a worker has


def test_nothing_is_imported_before_it_is_needed() -> None:
    program = (
        "import sys, gateway.tokenizing, engines.tokens, engines.tokens.ask, engines.tokens.probes;"
        "assert not {'tokenizers', 'jinja2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
