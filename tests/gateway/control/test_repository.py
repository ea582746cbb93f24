"""Loading and unloading a model everywhere: what counts as done, and whose words are told."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from gateway.repository import change_repository


class Prober:
    """Answers in the engines' place."""

    def __init__(self, answers):
        self.answers = answers
        self.asked = []

    async def change_repository(self, member, path, body):
        self.asked.append((member.name, path, body))
        return self.answers[member.name]


def member(name, kind="triton", address="127.0.0.1", leaving=False):
    engine = SimpleNamespace(kind=kind)
    return SimpleNamespace(name=name, engine=engine, address=address, leaving=leaving)


OK = 200, b""
CASES = {
    "all": ({"a": OK, "b": OK}, 200, None),
    "one refuses": ({"a": OK, "b": (400, b'{"error":"its words"}')}, 400, "its words"),
    "one is silent": ({"a": (0, b"no answer"), "b": OK}, 503, "a: no answer"),
    "none is there": ({}, 503, "no Triton"),
}


@pytest.mark.parametrize("name", CASES)
def test_change_everywhere(name):
    answers, status, text = CASES[name]
    prober = Prober(answers)
    members = [member(one) for one in answers]
    members += [member("v", kind="vllm"), member("l", leaving=True), member("n", address="")]
    found = asyncio.run(change_repository(prober, members, "a b", "load", b""))
    assert found[0] == status
    assert text is None or text in json.loads(found[1])["error"]
    path = "/v2/repository/models/a%20b/load"
    assert prober.asked == [(one, path, b"{}") for one in answers]


def test_no_other_verb():
    prober = Prober({"a": OK})
    found = asyncio.run(change_repository(prober, [member("a")], "m", "index", b""))
    assert found[0] == 404
    assert not prober.asked
