"""Every file of the corpus is read whole, cut in two at every byte, and byte by byte."""

import hashlib
import itertools
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.http import _window
from gateway.http._head import Fault
from gateway.http.faults import REFUSALS

CORPUS = Path(__file__).parent / "corpus"
VERDICTS: dict[str, dict[str, Any]] = tomllib.loads((CORPUS / "verdicts.toml").read_text("ascii"))


def measure(data: bytes, start: int, cuts: Sequence[int]) -> int | Fault:
    """The head's size, as found by a reader whose inputs end at the cuts."""
    seen = 0
    for end in [*(cut for cut in cuts if cut > start), len(data)]:
        size = _window.head_end(data[start:end], seen)
        if size:
            return size
        seen = end - start
    return 0


def pieces(data: bytes, start: int, cuts: Sequence[int]) -> list[bytes]:
    edges = [start, *(cut for cut in cuts if cut > start), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def describe(head: _window.Head, payload: bytes) -> str:
    words = (str(head.status).encode(),) if head.status else (head.method, head.path)
    digest = hashlib.sha256(payload).hexdigest()[:12]
    return f"{b' '.join(words).decode()} {digest}"


def read(data: bytes, cuts: Sequence[int], is_request: bool, to_head: bool) -> dict[str, Any]:
    """A verdict as the corpus states it."""
    parse = _window.request if is_request else _window.response
    messages: list[str] = []
    verdict: dict[str, Any] = {"ok": messages}
    at = 0
    while at < len(data):
        size = measure(data, at, cuts)
        head = parse(data[at : at + size]) if size > 0 else size
        if not isinstance(head, _window.Head):
            return verdict | refused(head) if head else verdict | {"incomplete": True}
        at += size
        body = _window.body(pieces(data, at, cuts), data[at - size : at], is_request, to_head)
        messages.append(describe(head, body.payload))
        if body.fault is not None:
            return verdict | refused(body.fault)
        if not body.ended:
            return verdict | {"incomplete": True}
        at = len(data) - len(body.leftover)
    return verdict


def refused(fault: object) -> dict[str, Any]:
    assert isinstance(fault, Fault)
    return {"fault": fault.name, "status": REFUSALS[fault].status}


def test_every_file_has_a_verdict() -> None:
    assert {path.stem for path in CORPUS.glob("*.http")} == set(VERDICTS)


def test_every_fault_of_the_wire_is_in_the_corpus() -> None:
    sized = {"HEAD_TOO_LARGE", "TOO_MANY_FIELDS", "TARGET_TOO_LONG"}
    assert {v["fault"] for v in VERDICTS.values() if "fault" in v} == set(Fault.__members__) - sized


@pytest.mark.parametrize("name", VERDICTS)
def test_verdict(name: str) -> None:
    data = (CORPUS / f"{name}.http").read_bytes()
    expected = {"ok": []} | VERDICTS[name]
    to_head = expected.pop("to_head", False)
    is_request = not name.startswith("response_")
    assert read(data, (), is_request, to_head) == expected
    for cut in range(1, len(data)):
        assert read(data, (cut,), is_request, to_head) == expected, f"cut at {cut}"
    assert read(data, range(1, len(data)), is_request, to_head) == expected, "byte by byte"
