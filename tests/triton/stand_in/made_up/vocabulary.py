"""The tokens of all stand-ins: bytes, two special tokens, some words and every number."""

import re

BOS = 256
EOS = 257
_FIRST_WORD = 300
# The numbers are last because there is no end of them.
_FIRST_NUMBER = 1000
_WORDS = [
    *(" river", " boat", " bridge", " harbour", " lock", " gate", " water", " stone", " wind"),
    *(" morning", " evening", " old", " small", " quiet", " green", " long", " slow", " the", " a"),
    *(" and", " under", " over", " along", " waits", " drifts", " turns", " shines", " sleeps"),
    *(" nobody", " someone", " always", " never", ",", "."),
]
_IDS = {word: _FIRST_WORD + number for number, word in enumerate(_WORDS)}
_SPECIAL = {"<s>": BOS, "</s>": EOS}
_PIECE = re.compile(
    "|".join([*map(re.escape, _SPECIAL), *map(re.escape, sorted(_WORDS, reverse=True)), r" \d+"])
)
WORDS = list(_IDS.values())


def encode(text: str) -> list[int]:
    """Words, numbers and special tokens where the text has them, bytes elsewhere; adds nothing."""
    ids: list[int] = []
    at = 0
    for match in _PIECE.finditer(text):
        ids += text[at : match.start()].encode()
        ids.append(_id_of(match[0]))
        at = match.end()
    return [*ids, *text[at:].encode()]


def data_of(token: int) -> bytes:
    """What the token adds to a text; nothing for a special token."""
    if token < BOS:
        return bytes([token])
    if token < _FIRST_WORD:
        return b""
    if token < _FIRST_NUMBER:
        return _WORDS[token - _FIRST_WORD].encode()
    return b" %d" % (token - _FIRST_NUMBER)


def decode(ids: list[int]) -> bytes:
    return b"".join(map(data_of, ids))


def number(value: int) -> int:
    """The token of ` value`."""
    return _FIRST_NUMBER + value


def _id_of(piece: str) -> int:
    if piece in _SPECIAL:
        return _SPECIAL[piece]
    return _IDS[piece] if piece in _IDS else number(int(piece))
