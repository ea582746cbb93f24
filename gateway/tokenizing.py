"""Makes prompts' token ids off the event loop: a few threads, a bounded queue, a deadline. Whoever
needs a tokenizer, to render a chat or to count tokens, uses the same threads, and waits.

Thread rules. `submit`, `Job.cancel`, `close` and all callbacks belong to the loop's thread; a
callback runs exactly once, before `submit` returns where the answer is known at once, or never if
its job was cancelled. The threads touch nothing of the loop but `call_soon_threadsafe`. Of a job
they read path and body, which must not change any more, and write the answer, once. A maker of ids
is shared by all threads.

What it does to the loop: tokenizers lets go of the interpreter's lock while it encodes, decoding
and rendering (some 0.3 ms for a prompt of 16 KB) do not. So more than one or two threads only help
while most prompts are new. Lateness is looked at by one timer for all jobs: they are due in the
order in which they came.
"""

from __future__ import annotations  # array is no generic before Python 3.12

import asyncio
import contextlib
import logging
import os
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

from gateway.messages import Sample

__all__ = ["Job", "Maker", "MismatchError", "Tokenizing", "loader"]

log = logging.getLogger("headgate.tokenizing")

THREADS = 1
QUEUE = 64
"""Jobs that no thread has begun; a full queue is some 50 ms behind with warm prompts."""
DEADLINE_S = 0.2
"""A choice that knows less is better than one that is made so much later: about as long as the
prompt of a few thousand tokens takes that is computed once more in the wrong place."""
CLOSE_S = 1.0
INFINITE = float("inf")

Callback = Callable[[Any], None]
Loader = Callable[[], "Maker"]
Use = Callable[["Maker"], Any]


class Maker(Protocol):
    """What `engines.tokens.prompt.PromptTokens` is to this file."""

    def ids(self, path: str, body: bytes) -> array[int] | None:
        """The ids, None if not known; from any thread, never raising."""

    def render(self, body: bytes) -> Any:
        """A chat's prompt as text (`engines.tokens.prompt.Rendered`); as `ids`."""

    def count(self, prompts: Sequence[str], texts: Sequence[str]) -> tuple[int, int]:
        """Tokens of all these prompts, and of all these texts; from any thread."""


class MismatchError(Exception):
    """The ids made here are not those that an engine makes."""


def loader(folder: Path, *, chat_template: str = "", samples: Sequence[Sample] = ()) -> Loader:
    """Loads a model's tokenizer when called; until then tokenizers and jinja2 are not imported.

    `chat_template`: a file. What is loaded must make the ids of `samples`, or MismatchError.
    """

    def load() -> Maker:
        # Else tokenizers hands each text to a thread per core of its own and waits for them. It
        # reads this variable at each call.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from engines.tokens.prompt import PromptTokens

        template = Path(chat_template).read_text("utf-8") if chat_template else None
        maker = PromptTokens.load(folder, template=template)
        for sample in samples:
            ids = maker.ids(sample.path, sample.body)
            if ids is not None and ids.tobytes() != sample.ids:
                raise MismatchError(
                    f"{folder} makes other token ids than the engine of a request to {sample.path}"
                    f" ({len(ids)} and {len(sample.ids) // 4}); is it the engine's model, and "
                    "`chat_template` the engine's --chat-template?"
                )
        return maker

    return load


class Job:
    """One prompt on its way."""

    __slots__ = ("answer", "callback", "due_s", "is_made", "make")

    def __init__(
        self, make: Callable[[], Any], callback: Callback, due_s: float = INFINITE
    ) -> None:
        self.make = make
        """Called in a thread, once."""
        self.callback: Callback | None = callback
        """None: nobody waits any more."""
        self.due_s = due_s
        self.answer: Any = None
        self.is_made = False
        """By the thread: `answer` is there."""

    def cancel(self) -> None:
        """Nobody waits for it: its callback will not be called."""
        self.callback = None


def _nothing() -> None:
    """What a job makes that has not got its maker yet: no thread sees it."""


class Tokenizing:
    """Ids for some models, by name. Until a model is loaded, and if it cannot be: None. What needs
    its tokenizer (`render`, `count`) waits until that is known.

    `count(how)` is called for each job that was not cancelled: known, unknown, late, full (too many
    wait), unloaded.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        count: Callable[[str], None] = lambda how: None,
        *,
        threads: int = THREADS,
        queue: int = QUEUE,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        self._loop = loop
        self._count = count
        self._limit = queue
        self._deadline_s = deadline_s
        self._makers: dict[str, Maker] = {}
        self._wanted: dict[str, Loader] = {}
        self._loading: dict[str, list[tuple[Job, Use]]] = {}
        """Models that are being loaded, and what waits for each."""
        self._waiting: deque[Job] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        self._queue: SimpleQueue[Job | None] = SimpleQueue()
        self._threads = [
            Thread(target=self._run, name=f"tokenizing-{index}", daemon=True)
            for index in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def loaded(self) -> frozenset[str]:
        """Names of models whose ids can be made."""
        return frozenset(self._makers)

    def knows(self, name: str) -> bool:
        """Whether it is loaded, or will be."""
        return name in self._wanted

    def load(self, name: str, load: Loader) -> None:
        """Make the ids of a model's prompts from when it is loaded. Again: by another loader."""
        self._makers.pop(name, None)
        self._wanted[name] = load
        self._loading.setdefault(name, [])
        # In a thread of its own: a large tokenizer takes seconds, in which all prompts were late.
        Thread(target=self._load, args=(name, load), name=f"loading-{name}", daemon=True).start()

    def forget(self, name: str) -> None:
        """No longer."""
        self._makers.pop(name, None)
        self._wanted.pop(name, None)
        self._end_loading(name, None)

    def submit(self, model: str, path: str, body: bytes, callback: Callback) -> Job | None:
        """Give the callback the ids of a prompt, or None; None: it has been given None already."""
        maker = self._makers.get(model)
        if maker is None or self._closed or self._queue.qsize() >= self._limit:
            self._count("full" if maker and not self._closed else "unloaded")
            callback(None)
            return None
        due_s = self._loop.time() + self._deadline_s
        job = Job(partial(maker.ids, path, body), callback, due_s)
        while self._waiting and self._waiting[0].callback is None:
            self._waiting.popleft()
        self._waiting.append(job)
        if self._timer is None:
            self._timer = self._loop.call_at(job.due_s, self._look)
        self._queue.put(job)
        return job

    def render(self, model: str, body: bytes, callback: Callback) -> Job | None:
        """Give the callback a chat's prompt as text, however long it takes; else as `submit`."""
        return self._do(model, lambda maker: maker.render(body), callback)

    def count(
        self, model: str, prompts: Sequence[str], texts: Sequence[str], callback: Callback
    ) -> Job | None:
        """Give the callback `Maker.count` of these; else as `render`."""
        return self._do(model, lambda maker: maker.count(prompts, texts), callback)

    def _do(self, model: str, use: Use, callback: Callback) -> Job | None:
        maker = self._makers.get(model)
        if self._closed or (maker is None and model not in self._loading):
            callback(None)
            return None
        job = Job(_nothing, callback)
        if maker is None:
            self._loading[model].append((job, use))
        else:
            self._begin(job, use, maker)
        return job

    def _begin(self, job: Job, use: Use, maker: Maker) -> None:
        job.make = partial(use, maker)
        self._queue.put(job)

    def _end_loading(self, name: str, maker: Maker | None) -> None:
        for job, use in self._loading.pop(name, ()):
            if maker is None:
                self._end(job, "unloaded", None)
            else:
                self._begin(job, use, maker)

    def close(self) -> None:
        """End the threads; who still waits gets None. Takes no longer than one prompt."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for job in self._waiting:
            self._end(job, "late", None)
        self._waiting.clear()
        for name in list(self._loading):
            self._end_loading(name, None)
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(CLOSE_S)

    def _look(self) -> None:
        """Let go of the jobs that are due; look again when the next one is."""
        self._timer = None
        now_s = self._loop.time()
        while self._waiting:
            job = self._waiting[0]
            if job.callback is not None and job.due_s > now_s:
                self._timer = self._loop.call_at(job.due_s, self._look)
                return
            self._waiting.popleft()
            if job.is_made:
                self._deliver(job)  # the loop was late, not the thread
            else:
                self._end(job, "late", None)

    def _deliver(self, job: Job) -> None:
        self._end(job, "unknown" if job.answer is None else "known", job.answer)

    def _end(self, job: Job, how: str, answer: Any) -> None:
        callback = job.callback
        if callback is not None:
            job.callback = None
            if job.due_s < INFINITE:
                self._count(how)
            callback(answer)

    def _loaded(self, name: str, load: Loader, maker: Maker | None) -> None:
        if self._wanted.get(name) is not load:
            return
        if maker is not None:
            self._makers[name] = maker
            log.info("token ids for %s are made here", name)
        self._end_loading(name, maker)

    # -- in the threads

    def _run(self) -> None:
        while True:
            job = self._queue.get()
            if job is None:
                return
            if job.callback is not None:
                try:
                    job.answer = job.make()
                except Exception:  # a bug, and the thread is still needed
                    log.exception("making token ids failed")
                job.is_made = True
                try:
                    self._loop.call_soon_threadsafe(self._deliver, job)
                except RuntimeError:  # the loop is closed: nobody is there to wait
                    return
            del job

    def _load(self, name: str, load: Loader) -> None:
        maker = None
        try:
            maker = load()
        except Exception as error:  # a folder may be broken in any way; requests go on without
            log.error("no token ids for %s: %s", name, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._loaded, name, load, maker)
