"""Text and token ids: a reversible tokenizer of about four characters a token, and the answers.

The tokenizer needs no vocabulary file: an id encodes its own characters. Ids 0-255 are single
bytes (white space, and everything that is not ASCII); 256 ends an answer; from 512 on an id is one
to four printable characters with or without a space before them, written as a number. All ids
fit 28 bits. Pieces never run across white space, so equal text after a line break gives equal
tokens whatever stood before it: an answer that comes back as part of the next prompt finds its
blocks in the prefix cache.

Answers are made of the prompt's own words and a few common ones, chosen by a hash of the prompt:
the same prompt gets the same answer from every engine with the same seed.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from json import dumps

__all__ = ["END_TOKEN", "Answer", "compose", "detokenize", "echo", "json_pieces", "tokenize"]

END_TOKEN = 256
_FIRST_PIECE = 512
_BASE = 95  # 94 printable characters and "none"
_SPACED = _BASE**4
_PIECE = re.compile(rb" ?[!-~]{1,4}|.", re.DOTALL)
_WORD = re.compile(r"[^\W\d_][\w'-]{1,15}")

# The chat template's own words are no part of what was said.
_MARKUP = re.compile(r"<\|\w+\|>(?:\w+\n)?")

# How much of either end of a prompt its answer draws words from.
_WINDOW_BYTES = 2048

# fmt: off
_COMMON = [
    "the", "of", "and", "to", "in", "is", "that", "it", "for", "as", "with", "on", "be",
    "this", "are", "by", "at", "from", "or", "an", "which", "one", "all", "can", "more",
    "when", "each", "other", "some", "time", "these", "two", "may", "then", "first", "any",
    "new", "after", "also", "most", "way", "even", "many", "through", "back", "work",
    "years", "where", "must", "well", "such",
]
# fmt: on


@lru_cache(maxsize=65536)
def _encode(piece: bytes) -> int:
    body = piece.lstrip(b" ") if len(piece) > 1 else piece
    if len(piece) == 1 and not 0x21 <= piece[0] <= 0x7E:
        return piece[0]
    number = 0
    for char in body:
        number = number * _BASE + char - 0x20
    return _FIRST_PIECE + number + (_SPACED if len(body) < len(piece) else 0)


@lru_cache(maxsize=65536)
def _decode(token: int) -> bytes:
    if token < 256:
        return bytes((token,))
    number = token - _FIRST_PIECE
    if number < 0 or number >= 2 * _SPACED:
        return b""
    spaced, number = divmod(number, _SPACED)
    chars = bytearray()
    while number:
        number, char = divmod(number, _BASE)
        chars.append(char + 0x20)
    return b" " * spaced + bytes(reversed(chars))


def tokenize(text: str) -> array[int]:
    """Token ids of the text. `detokenize` gives exactly the text back."""
    return _ids(text.encode("utf-8", "surrogatepass"))


def detokenize(tokens: Sequence[int]) -> str:
    """Text of the ids. Ids that mean nothing give nothing; broken UTF-8 gives U+FFFD."""
    return b"".join(map(_decode, tokens)).decode("utf-8", "replace")


def _ids(data: bytes) -> array[int]:
    return array("I", map(_encode, _PIECE.findall(data)))


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model will say to one prompt, and why it stops."""

    tokens: array[int]
    pieces: list[str]
    """Text that each token adds; empty where a token only begins a character, or ends the text."""
    finish_reason: str
    """`length` or `stop`."""
    stop_reason: str | None = None
    """The stop string that ended it."""

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.pieces)


def compose(
    prompt: array[int],
    max_tokens: int,
    *,
    seed: bytes = b"",
    stop: Sequence[str] = (),
    min_tokens: int = 0,
    natural_end_tokens: int = 0,
) -> Answer:
    """The answer to a prompt: `max_tokens` long unless a stop string or a natural end comes first.

    A natural end lies between half and one and a half times `natural_end_tokens` (0: never).
    """
    digest = blake2b(prompt, digest_size=16, key=seed[:64]).digest()
    limit, reason = max_tokens, "length"
    if natural_end_tokens:
        spread = int.from_bytes(digest[8:12], "big") % (natural_end_tokens + 1)
        natural = max(min_tokens, natural_end_tokens // 2 + spread, 1)
        if natural <= max_tokens:
            limit, reason = natural - 1, "stop"
    tokens = array("I")
    for word in _words(prompt, int.from_bytes(digest[:8], "big")):
        if len(tokens) >= limit:
            break
        tokens.extend(_ids(word))
    del tokens[limit:]
    if reason == "stop":
        tokens.append(END_TOKEN)
    return _cut(tokens, reason, stop, min_tokens)


def echo(text: str) -> Answer:
    """An answer of exactly this text."""
    tokens = tokenize(text) or array("I", (END_TOKEN,))
    return Answer(tokens, _texts(tokens), "stop")


def _words(prompt: array[int], state: int) -> Iterator[bytes]:
    """Endless words; every one but the first carries the space before it."""
    window = _WINDOW_BYTES // 4
    ends = prompt if len(prompt) <= 2 * window else prompt[:window] + prompt[-window:]
    own = _WORD.findall(_MARKUP.sub(" ", detokenize(ends))) or _COMMON
    count = 0
    while True:
        # A linear congruential step (Knuth's MMIX constants); its high bits are good enough.
        state = (state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        source = own if state >> 63 else _COMMON
        word = source[(state >> 33) % len(source)]
        count += 1
        ending = "." if (state >> 24) % 13 == 0 else ""
        yield f"{' ' if count > 1 else ''}{word}{ending}".encode()


def _cut(tokens: array[int], reason: str, stop: Sequence[str], min_tokens: int) -> Answer:
    """End the answer at the first stop string that is complete after `min_tokens`."""
    pieces = _texts(tokens)
    text = "".join(pieces)
    floor = sum(map(len, pieces[:min_tokens]))
    best: tuple[int, int, str] | None = None
    for word in stop:
        at = text.find(word, max(0, floor - len(word) + 1)) if word else -1
        if at >= 0 and (best is None or (at + len(word), at) < best[:2]):
            best = (at + len(word), at, word)
    if best is None:
        return Answer(tokens, pieces, reason)
    end, start, word = best
    kept: list[str] = []
    length = 0
    for piece in pieces:
        kept.append(piece[: max(0, start - length)])
        length += len(piece)
        if length >= end:
            break
    return Answer(tokens[: len(kept)], kept, "stop", word)


def _texts(tokens: array[int]) -> list[str]:
    """The text each token adds. A character's bytes are held back until it is whole."""
    texts: list[str] = []
    held = b""
    for token in tokens:
        data = _decode(token)
        if not held and data.isascii():
            texts.append(data.decode("ascii"))
            continue
        held += data
        try:
            texts.append(held.decode("utf-8"))
            held = b""
        except UnicodeDecodeError as broken:
            if broken.end < len(held) or len(held) > 3:
                texts.append(held.decode("utf-8", "replace"))
                held = b""
            else:
                texts.append("")
    return texts


def json_pieces(pieces: list[str]) -> list[bytes]:
    """Each piece as the inside of a JSON string, UTF-8, unescaped where JSON allows."""
    return [_json_inside(piece) for piece in pieces]


@lru_cache(maxsize=65536)
def _json_inside(piece: str) -> bytes:
    return dumps(piece, ensure_ascii=False)[1:-1].encode()
