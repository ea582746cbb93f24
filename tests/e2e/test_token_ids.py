"""A model with a tokenizer: its prompts go where their token ids are cached."""

import asyncio
import json
import threading
from array import array

import pytest

from engines.profile import PROFILES
from gateway._shared import Count
from gateway.messages import Model, Tokenizer
from gateway.tokenizing import Tokenizing, loader
from router import State
from router._hash import block_hashes
from router.namespace import namespace
from tests.e2e.conftest import CLOSE, HANG, Answer, request
from tests.engines.tokens.models import write_folder

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
BLOCK_TOKENS = 4
TEXT = "Once upon a time a small boat went down the river until the river met the open sea. "
PROMPT = {"model": "sim", "prompt": 20 * TEXT}
CHAT = {"model": "sim", "messages": [{"role": "user", "content": 20 * TEXT}]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    write_folder(path, "chatml")
    return path


async def know_ids(house, folder):
    await know_ids_by(house, {"sim": Tokenizer(str(folder))})
    await house.until(lambda: house.worker.plane.tokenizing)
    await house.until(lambda: house.worker.plane.tokenizing.loaded)


async def know_ids_by(house, tokenizers):
    for slot in (0, 1):
        times = PROFILES["8b-h100"].times
        house.shared.table.set_row(slot, profile=(*times, 1e6))
    house.tell(
        models=[
            Model("sim", 0, [0, 1], tokenizer="sim", block_tokens=BLOCK_TOKENS),
            Model("ad", 1, [0, 1], "sim", tokenizer="sim", block_tokens=BLOCK_TOKENS),
        ],
        tokenizers=tokenizers,
        decision_header=True,
    )
    await house.until(lambda: house.worker.plane.settings.decision_header)


def cache(house, slot, ids, lora="", salt=""):
    """What the control process does when an engine tells of these blocks."""
    keys = block_hashes(namespace("", lora, salt), array("I", ids).tobytes(), 4 * BLOCK_TOKENS)
    house.shared.index.note(keys, slot)


def decision(answer: Answer) -> dict[str, str]:
    return dict(part.split("=") for part in answer["x-headgate-decision"].partition(";")[0].split())


def body_of(request, **more):
    return json.dumps({**request, **more}).encode()


@pytest.mark.parametrize(
    ("path", "request_", "more", "lora", "salt"),
    [
        ("/v1/completions", PROMPT, {}, "", ""),
        ("/v1/chat/completions", CHAT, {}, "", ""),
        ("/v1/completions", {"model": "sim", "prompt": list(range(9, 300))}, {}, "", ""),
        ("/v1/completions", PROMPT, {"model": "ad"}, "ad", ""),
        ("/v1/chat/completions", CHAT, {"cache_salt": 'a"\u00e9'}, "", 'a"\u00e9'),
    ],
)
@pytest.mark.parametrize("holder", [0, 1])
def test_goes_to_the_cache(play, script, folder, path, request_, more, lora, salt, holder):
    engines = [script([OK]), script([OK])]
    body = body_of(request_, **more)
    ids = loader(folder)().ids(path, body)

    async def scene(house):
        await know_ids(house, folder)
        for other in ("", "x"):  # what is another adapter's or salt's does not count
            cache(house, 1 - holder, ids, lora + "y", salt + other)
        cache(house, holder, ids, lora, salt)
        answer = await house.ask("POST", path, body)
        found = decision(answer)
        assert found["endpoint"] == f"e{holder}"
        cached = (len(ids) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        assert found["cached-tokens"] == f"{cached}/{len(ids)}"
        assert found["known-by"] == "token-ids"
        assert house.count(Count.IDS_KNOWN) == 1

    play(scene, *engines)
    assert [len(engine.asked) for engine in engines] == [1 - holder, holder]
    assert engines[holder].asked[0].body == body


@pytest.mark.parametrize(
    ("path", "request_", "count"),
    [
        ("/v1/completions", {**PROMPT, "suffix": "x"}, "IDS_UNKNOWN"),
        ("/v1/messages", {**CHAT, "max_tokens": 3}, "IDS_UNKNOWN"),
    ],
)
def test_a_prompt_that_is_not_known_goes_by_its_text(play, script, folder, path, request_, count):
    async def scene(house):
        await know_ids(house, folder)
        answer = await house.ask("POST", path, request_)
        assert answer.status == 200
        assert decision(answer)["known-by"] == "text"
        assert house.count(getattr(Count, count)) == 1
        await asyncio.sleep(0.1)  # its prompt has been computed, as far as anybody can tell
        again = await house.ask("POST", path, request_)
        assert decision(again)["endpoint"] == decision(answer)["endpoint"]

    play(scene, script([OK]), script([OK]))


IDS = list(range(200))


def answers(then):
    """An engine that tells the ids of a prompt by `then`, and answers requests."""

    def answer(asked):
        return then if asked.line.startswith("POST /tokenize ") else [OK]

    return answer


def told(ids):
    body = json.dumps({"count": len(ids), "max_model_len": 4096, "tokens": ids}).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
    return [head + str(len(body)).encode() + b"\r\n\r\n" + body]


async def ask_for_ids(house):
    await know_ids_by(house, {"sim": Tokenizer("")})


@pytest.mark.parametrize(
    ("then", "count"),
    [
        (told(IDS), "IDS_KNOWN"),
        ([told(IDS)[0][:100], 0.01, told(IDS)[0][100:]], "IDS_KNOWN"),
        (told([]), "IDS_UNKNOWN"),
        ([b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"], "IDS_UNKNOWN"),
        ([b"nonsense\r\n\r\n"], "IDS_UNKNOWN"),
        ([CLOSE], "IDS_UNKNOWN"),
        ([HANG], "IDS_LATE"),
    ],
)
def test_an_engine_is_asked_for_ids(play, script, then, count):
    engines = [script(answers(then)), script(answers(then))]

    async def scene(house):
        await ask_for_ids(house)
        cache(house, 1, IDS)
        answer = await house.ask(path="/v1/chat/completions", body=CHAT)
        assert answer.status == 200
        assert house.count(getattr(Count, count)) == 1
        assert house.count(Count.DISPATCHED) == 1
        if count == "IDS_KNOWN":
            assert decision(answer)["cached-tokens"] == "196/200"
            assert decision(answer)["endpoint"] == "e1"

    play(scene, *engines)
    questions = [one for engine in engines for one in engine.asked if "/tokenize" in one.line]
    assert [one.json for one in questions] == [CHAT]


def test_who_leaves_while_an_engine_is_asked_is_cancelled_at_once(play, script):
    engine = script(answers([HANG]))

    async def scene(house):
        await ask_for_ids(house)
        house.state(1, State.OPEN)
        wire = await house.dial(request("POST", "/v1/chat/completions", CHAT))
        await house.until(lambda: engine.asked)
        wire.close()
        await house.until(lambda: house.count(Count.CANCELLED) == 1)
        await house.until(lambda: engine.closed == 1)

    play(scene, engine, script([OK]))


class Slow:
    """Makes ids only when it is let go."""

    def __init__(self):
        self.gate = threading.Event()

    def ids(self, path, body):
        self.gate.wait(20.0)
        return array("I", range(100))


def with_slow_ids(scene, deadline_s):
    async def run(house):
        house.tell(
            models=[Model("sim", 0, [0], tokenizer="sim", block_tokens=BLOCK_TOKENS)],
            decision_header=True,
        )
        plane, slow = house.worker.plane, Slow()
        await house.until(lambda: "sim" in (model.name for model in house.fleet.models))
        plane.tokenizing = Tokenizing(house.loop, plane.count_ids, deadline_s=deadline_s)
        plane.tokenizing.load("sim", lambda: slow)
        await house.until(lambda: plane.tokenizing.loaded)
        try:
            await scene(house, slow)
        finally:
            slow.gate.set()

    return run


USAGE = {
    "usage": {
        "prompt_tokens": 200,
        "completion_tokens": 1,
        "prompt_tokens_details": {"cached_tokens": 64},
    }
}


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_found_is_held_against_what_was_expected(play, script, stream):
    told_usage = json.dumps({"choices": [], **USAGE}).encode()
    if stream:
        told_usage = b"data: {}\n\ndata: " + told_usage + b"\n\ndata: [DONE]\n\n"
    kind = b"text/event-stream" if stream else b"application/json"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: " + kind + b"\r\nContent-Length: "
    answer = head + str(len(told_usage)).encode() + b"\r\n\r\n" + told_usage

    def answers_(asked):
        return told(IDS) if "/tokenize" in asked.line else [answer]

    async def scene(house):
        await ask_for_ids(house)
        cache(house, 0, IDS)
        body = {**CHAT, "stream": stream}
        assert (await house.ask(path="/v1/chat/completions", body=body)).status == 200
        assert house.shared.table.hits(0) == (196, 64)

    play(scene, script(answers_), script(answers_))


def test_ids_that_are_late_are_not_waited_for(play, script):
    async def scene(house, slow):
        assert (await house.ask(path="/v1/completions", body=PROMPT)).status == 200
        assert house.count(Count.IDS_LATE) == 1

    play(with_slow_ids(scene, 0.05), script([OK]))


def test_who_leaves_while_ids_are_made_is_cancelled_at_once(play, script):
    engine = script([OK])

    async def scene(house, slow):
        wire = await house.dial()
        waiting = asyncio.create_task(wire.ask(path="/v1/completions", body=PROMPT))
        await house.until(lambda: house.count(Count.ACCEPTED) == 1)
        await asyncio.sleep(0.05)
        wire.close()
        await house.until(lambda: house.count(Count.CANCELLED) == 1)
        waiting.cancel()
        slow.gate.set()
        assert (await house.ask(path="/v1/completions", body=PROMPT)).status == 200
        # Of the one that left nothing is counted, for nobody waited any more.
        assert house.count(Count.IDS_KNOWN) == 1

    play(with_slow_ids(scene, 20.0), engine)
    assert len(engine.asked) == 1


def test_who_leaves_after_a_refusal_is_cancelled_too(play, script):
    """The first request is refused as soon as its body is there, the next one's ids are made."""
    engine = script([OK])

    async def scene(house, slow):
        models = [
            Model("sim", 0, [0], tokenizer="sim", block_tokens=BLOCK_TOKENS),
            Model("other", 1, [0], tokenizer="other", block_tokens=BLOCK_TOKENS),
        ]
        house.tell(models=models)
        house.state(0, State.OPEN)
        await house.until(lambda: len(house.fleet.models) == 2)
        refused = request("POST", "/v1/completions", {**PROMPT, "model": "other"})
        head, end, body = refused.partition(b"\r\n\r\n")
        wire = await house.dial(head + end)
        await asyncio.sleep(0.05)
        wire.write(body + request("POST", "/v1/completions", PROMPT))
        assert (await wire.answer()).status == 503
        await house.until(lambda: house.count(Count.ACCEPTED) == 2)
        wire.close()
        await house.until(lambda: house.count(Count.CANCELLED) == 1)
        slow.gate.set()
        house.state(0, State.READY)
        assert (await house.ask(path="/v1/completions", body=PROMPT)).status == 200
        assert house.count(Count.IDS_KNOWN) == 1

    play(with_slow_ids(scene, 20.0), engine)
    assert len(engine.asked) == 1


def test_the_grace_ends_while_ids_are_made(play, script):
    engine = script([OK])

    async def scene(house, slow):
        waiting = asyncio.create_task(house.ask(path="/v1/completions", body=PROMPT))
        await house.until(lambda: house.count(Count.ACCEPTED) == 1)
        house.worker.plane.cut()
        answer = await waiting
        assert answer.status == 503
        assert answer.reason == "draining"

    play(with_slow_ids(scene, 20.0), engine)
    assert not engine.asked
