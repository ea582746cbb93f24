"""What the clients of a chaos run do: every decision, from a seed, before anything happens."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random

__all__ = ["Ask", "Leave", "Visit", "visits"]

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"
MAX_AHEAD_BYTES = 24 * 1024
"""Pipelined requests mostly stay below what the gateway takes ahead; the others are a flood."""


@dataclass(frozen=True, slots=True)
class Leave:
    """How a client disconnects of its own will."""

    where: str
    """head, upload: in the middle of sending it; wait: after sending; answer: while it comes."""
    at: float
    """head, upload: a fraction of it; wait: seconds; answer: bytes."""
    reset: bool
    """By RST instead of FIN."""


@dataclass(slots=True)
class Ask:
    """One request, and what its client does."""

    id: str
    kind: str
    path: str = CHAT
    head: bytes = b""
    body: list[bytes] = field(default_factory=list)
    """The writes in which it is sent, in its wire form."""
    body_bytes: int = 0
    """Of the payload, without its framing."""
    pause_s: float = 0.0
    """Between two writes."""
    is_stream: bool = False
    echoes: bool = False
    """A whole answer holds the request's id."""
    has_id: bool = True
    """The gateway gets to read the id: its head is well-formed."""
    leave: Leave | None = None
    slow_s: float = 0.0
    """The client's pause between two small reads."""

    @property
    def size(self) -> int:
        """Bytes on the wire."""
        return len(self.head) + sum(map(len, self.body))


@dataclass(slots=True)
class Visit:
    """Requests that share a connection as long as it lasts."""

    asks: list[Ask]
    pipelined: bool


def visits(seed: int, requests: int) -> Iterator[Visit]:
    """Visits with that many requests in total, the same for the same seed."""
    number = 0
    while number < requests:
        random = Random(f"{seed}/{number}")
        count = min(random.choice((1, 1, 2, 3, 5, 8)), requests - number)
        asks = [_ask(random, f"c{seed}x{number + at}") for at in range(count)]
        pipelined = count > 1 and random.random() < 0.25
        if pipelined:
            for ask in asks:
                if ask.leave is not None and ask.leave.where in ("head", "upload"):
                    ask.leave = Leave("wait", random.random() * 0.05, ask.leave.reset)
            # One that claims more than it sends would swallow those behind it.
            last = next((at for at, ask in enumerate(asks) if ask.kind.startswith("slow")), count)
            del asks[last + 1 :]
        if pipelined and random.random() < 0.7:
            while len(asks) > 1 and sum(ask.size for ask in asks[1:]) > MAX_AHEAD_BYTES:
                asks.pop()
        yield Visit(asks, pipelined)
        number += len(asks)


Maker = Callable[[Random, Ask], None]


def _ask(random: Random, id: str) -> Ask:
    (kind,) = random.choices(list(KINDS), [weight for weight, _ in KINDS.values()])
    ask = Ask(id, kind)
    KINDS[kind][1](random, ask)
    return ask


def _words(random: Random) -> str:
    return "tell me about gates " * random.choice((1, 1, 2, 4, 30))


def _generation(path: str, stream: bool) -> Maker:
    def make(random: Random, ask: Ask) -> None:
        tokens = random.choice((1, 2, 5, 12, 30))
        fields: dict[str, object] = {"model": "sim", "stream": stream}
        fields["max_output_tokens" if path == RESPONSES else "max_tokens"] = tokens
        if path == COMPLETIONS:
            fields["prompt"] = _words(random)
        elif path == RESPONSES:
            fields["input"] = _words(random)
        else:
            fields["messages"] = [{"role": "user", "content": _words(random)}]
        if stream and path == CHAT and random.random() < 0.5:
            fields["stream_options"] = {"include_usage": True}
        if random.random() < 0.04:
            fields["user"] = "x" * random.choice((5_000, 40_000, 300_000))
        ask.path, ask.is_stream, ask.echoes = path, stream, True
        _fill(random, ask, json.dumps(fields).encode())

    return make


def _embeddings(inputs: int) -> Maker:
    def make(random: Random, ask: Ask) -> None:
        ask.path = "/v1/embeddings"
        ask.echoes = True
        fields = {"model": "sim", "input": [_words(random) for _ in range(inputs)]}
        _fill(random, ask, json.dumps(fields).encode())
        if inputs > 1:
            ask.slow_s = random.choice((0.0, 0.003))

    return make


def _long_stream(random: Random, ask: Ask) -> None:
    ask.path, ask.is_stream, ask.echoes = COMPLETIONS, True, True
    fields = {"model": "sim", "stream": True, "max_tokens": 400, "prompt": _words(random)}
    _fill(random, ask, json.dumps(fields).encode())
    ask.slow_s = 0.002


def _plain(path: str, body: bytes | None = None, method: str = "POST") -> Maker:
    def make(random: Random, ask: Ask) -> None:
        ask.path = path
        if body is not None:
            _fill(random, ask, body)
        else:
            _head(ask, [], method)

    return make


def _bad_head(random: Random, ask: Ask) -> None:
    ask.has_id = False
    length = "Content-Length: 2"
    line = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nX-Request-Id: {ask.id}\r\n"
    ask.head = random.choice(
        (
            f"{line}{length}\r\nTransfer-Encoding: chunked\r\n\r\n{{}}",
            f"{line}{length}\r\n{length}\r\n\r\n{{}}",
            f"{line}Content-Length: +2\r\n\r\n{{}}",
            f"{line}Transfer-Encoding: gzip, chunked\r\n\r\n",
            f"{line}Host: y\r\n\r\n",
            f"{line}X: a\r\n b\r\n\r\n",
            f"{line}X: a\nY: b\r\n\r\n",
            f"{line}: a\r\n\r\n",
            f"POST {CHAT} HTTP/3.0\r\nHost: x\r\n\r\n",
            f"POST {CHAT}\r\nHost: x\r\n\r\n",
            f"{line}X: {'y' * 33_000}\r\n\r\n",
        )
    ).encode()


def _bad_chunk(random: Random, ask: Ask) -> None:
    _head(ask, ["Transfer-Encoding: chunked"])
    ask.body = [b'5\r\n{"a":\r\n', random.choice((b"zz\r\n", b"1;x=y\r\n2\r\n", b"2\r\nabc\r\n"))]
    ask.pause_s = random.choice((0.0, 0.003))


def _slow_head(random: Random, ask: Ask) -> None:
    ask.has_id = False
    ask.head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nX-Requ".encode()


def _slow_body(random: Random, ask: Ask) -> None:
    _head(ask, ["Content-Length: 1000"])
    ask.body = [b'{"model": "sim", ']


def _head(ask: Ask, lines: list[str], method: str = "POST") -> None:
    lines = [f"{method} {ask.path} HTTP/1.1", "Host: gateway", f"X-Request-Id: {ask.id}", *lines]
    ask.head = "\r\n".join([*lines, "", ""]).encode()


def _fill(random: Random, ask: Ask, body: bytes) -> None:
    """Give it head and body in some wire form, and a client that behaves, or not."""
    lines = ["Content-Type: application/json"]
    cuts = sorted(random.randrange(len(body)) for _ in range(random.choice((0, 0, 0, 1, 3))))
    edges = [0, *cuts, len(body)]
    pieces = [body[a:b] for a, b in pairwise(edges) if b > a]
    if random.random() < 0.2:
        lines.append("Transfer-Encoding: chunked")
        pieces = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces]
        pieces.append(b"0\r\n\r\n")
    else:
        lines.append(f"Content-Length: {len(body)}")
    if random.random() < 0.03:
        lines.append("Expect: 100-continue")
    if random.random() < 0.08:
        lines.append("Connection: close")
    if random.random() < 0.3:
        lines.append(f"X-Headgate-Priority: {random.randrange(-2, 3)}")
    _head(ask, lines)
    ask.body, ask.body_bytes = pieces, len(body)
    ask.pause_s = random.choice((0.0, 0.0, 0.001, 0.01))
    if random.random() < 0.16:
        ask.leave = _leave(random)
    elif random.random() < 0.05:
        ask.slow_s = random.choice((0.001, 0.005))


def _leave(random: Random) -> Leave:
    where = random.choice(("head", "upload", "wait", "wait", "answer", "answer", "answer"))
    at = random.random()
    if where == "wait":
        at = random.choice((0.0, at * 0.005, at * 0.1))
    elif where == "answer":
        at = random.choice((1, 100, 500, 1000, 4000)) * (1 + at)
    return Leave(where, at, random.random() < 0.4)


# Kind -> (weight, what it is).
KINDS: dict[str, tuple[float, Maker]] = {
    "chat": (14, _generation(CHAT, False)),
    "chat stream": (26, _generation(CHAT, True)),
    "completion": (8, _generation(COMPLETIONS, False)),
    "completion stream": (8, _generation(COMPLETIONS, True)),
    "messages": (5, _generation(MESSAGES, False)),
    "messages stream": (8, _generation(MESSAGES, True)),
    "responses": (3, _generation(RESPONSES, False)),
    "responses stream": (3, _generation(RESPONSES, True)),
    "embeddings": (6, _embeddings(1)),
    "long answer": (0.2, _embeddings(300)),
    "long stream": (0.3, _long_stream),
    "unknown model": (2, _plain(CHAT, b'{"model": "no-such", "messages": []}')),
    "bad json": (2, _plain(CHAT, b'{"model": "sim", "messages": [}')),
    "engine's 400": (1, _plain(CHAT, b'{"model": "sim", "messages": 7}')),
    "unknown path": (2, _plain("/v1/nothing", b"{}")),
    "bad method": (1, _plain(CHAT, None, "PUT")),
    "health": (2, _plain("/health", None, "GET")),
    "models": (2, _plain("/v1/models", None, "GET")),
    "bad head": (2, _bad_head),
    "bad chunk": (1, _bad_chunk),
    "slow head": (0.1, _slow_head),
    "slow body": (0.1, _slow_body),
}
