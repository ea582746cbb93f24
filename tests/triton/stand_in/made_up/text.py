"""What a stand-in says: made of the prompt, so that the same question has the same answer."""

import hashlib
import itertools
import json
import random
from collections.abc import Iterator

from made_up import vocabulary
from made_up.script import Script

_LETTERS = "Grüße aus Zürich, наша река, 川の流れ 🚣 "


def tokens(prompt: str, script: Script, choice: object = 0) -> Iterator[int]:
    """The ids of one answer, endless unless the script ends it. `choice` makes another answer."""
    endless = _SAYS[script.text](prompt, choice)
    if script.end_at < 0:
        return endless
    return itertools.chain(itertools.islice(endless, script.end_at), [vocabulary.EOS])


def json_tokens(schema: dict) -> Iterator[int]:
    """The shortest object of a schema, and the end."""
    yield from vocabulary.encode(json.dumps(_instance(schema)))
    yield vocabulary.EOS


def _words(prompt: str, choice: object) -> Iterator[int]:
    digest = hashlib.sha256(f"{choice}/{prompt}".encode()).digest()
    pick = random.Random(digest).choice
    while True:
        yield pick(vocabulary.WORDS)


def _count(prompt: str, choice: object) -> Iterator[int]:
    return map(vocabulary.number, itertools.count())


def _letters(prompt: str, choice: object) -> Iterator[int]:
    return itertools.cycle(_LETTERS.encode())


_SAYS = {"words": _words, "count": _count, "letters": _letters}


def _instance(schema: dict) -> object:
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type", "object")
    if kind == "object":
        properties = schema.get("properties", {})
        return {name: _instance(inner) for name, inner in properties.items()}
    if kind == "array":
        return [_instance(schema.get("items", {}))]
    return {"string": "made", "boolean": True, "null": None}.get(kind, 7)
