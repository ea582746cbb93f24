"""Text to ids, with a memory for the pieces that begin with a special token.

A tokenizer cuts a text at its added tokens first and encodes what lies between piece by piece, so
a piece, with the mark it begins with, has the same ids wherever it stands: a conversation of which
only the last turn is new costs the last turn. Only the piece before the first mark is different:
some tokenizers put a blank before a text's first word. Of a conversation that was here before, the
pieces that it begins with are not even looked for.

Whether a tokenizer really works like that is tried when it is loaded. Of one that does not, and of
a text with an added token that looks at its neighbours, everything is encoded in one go.
"""

from __future__ import annotations  # array is no generic before Python 3.12

import random
import re
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from threading import Lock

from tokenizers import Tokenizer

from engines.tokens.beginnings import Beginning, Beginnings

__all__ = ["Encoder"]

# The text of a piece, in a namespace if there is one.
Key = str | tuple[str, str]

PIECE_BYTES = 250
"""What a remembered piece takes beyond its text and its ids: objects, links, a place in the map."""

MAX_PIECES = 4096
"""A text with more marks is encoded in one go, which does not hold the interpreter's lock."""

SAMPLES = 400

OPENING_MARKS = 4
"""Up to this one a text tells its conversation: behind a system prompt and a first question."""
OPEN_PIECES = 3
"""At a text's end, and none of its beginning: the last question, and where the answer goes."""


class Encoder:
    """May be used by several threads at once: the tokenizer is only read.

    `memory_bytes` bounds what is remembered; 0: nothing is.
    """

    def __init__(self, tokenizer: Tokenizer, memory_bytes: int) -> None:
        self._tokenizer = tokenizer
        self._memory_bytes = memory_bytes
        self._pieces: OrderedDict[Key, array[int]] = OrderedDict()
        self._held_bytes = 0
        self._lock = Lock()
        tokens = [
            token
            for token in tokenizer.get_added_tokens_decoder().values()
            if token.content and not token.normalized
        ]
        # These reach into the text beside them, or are not taken where they touch a word.
        self._odd = frozenset(
            token.content for token in tokens if token.lstrip or token.rstrip or token.single_word
        )
        self._marks = sorted(token.content for token in tokens)
        self._any_mark = re.compile(_pattern(self._marks)) if self._marks else None
        # One per first letter: a pattern that begins with a letter is searched for by memchr.
        self._scans = [
            re.compile(_pattern([mark for mark in self._marks if mark[0] == first]))
            for first in sorted({mark[0] for mark in self._marks})
        ]
        is_nested = any(one != two and one in two for one in self._marks for two in self._marks)
        self._begins = len(self._scans) == 1 and not self._odd and not is_nested
        self._beginnings = Beginnings(memory_bytes // 4)
        self._memory_bytes -= memory_bytes // 4
        self._affixes = self._find_affixes()
        has_marks = bool(self._marks) and self._marks[0][0] != "\0"  # see _by_pieces
        self.remembers = memory_bytes > 0 and has_marks and self._holds()
        """Are pieces encoded and remembered on their own?"""

    @property
    def held_bytes(self) -> int:
        """What is remembered now, at most `memory_bytes`."""
        return self._held_bytes + self._beginnings.held_bytes

    @property
    def leading(self) -> str:
        """What `add_special_tokens` puts before every text, as a text: <s>, say."""
        before = self._affixes[0] if self._affixes is not None else ()
        return "".join(self._tokenizer.id_to_token(id) or "" for id in before)

    def encode(self, text: str, *, add_special_tokens: bool, namespace: str = "") -> array[int]:
        """The ids of a text, a new array. Whatever tokenizers raises.

        What is remembered in one namespace is not known in another: it shows in the time taken.
        """
        if add_special_tokens and self._affixes is None:
            return self._whole(text, True)
        ids = self._by_pieces(text, namespace) if self.remembers else self._whole(text, False)
        if add_special_tokens and self._affixes is not None:
            before, behind = self._affixes
            return before + ids + behind
        return ids

    def _whole(self, text: str, add_special_tokens: bool) -> array[int]:
        # Not Tokenizer.encode: that one keeps the interpreter's lock all the while (750 ms for a
        # text of 320 KB), and works out where each token stands.
        (encoding,) = self._tokenizer.encode_batch_fast(
            [text], add_special_tokens=add_special_tokens
        )
        return array("I", encoding.ids)

    def _by_pieces(self, text: str, namespace: str) -> array[int]:
        opening = self._opening(text, namespace)
        known = None if opening is None else self._beginnings.find(opening, text)
        starts = self._find_marks(text, 0 if known is None else known.n_chars)
        if starts is None:
            return self._whole(text, False)
        pieces = [text[start:end] for start, end in pairwise(starts)]
        if known is None:
            # The NUL tells it from those that begin with a mark: no mark begins with it.
            pieces.insert(0, "\0" + text[: starts[0]])
        found = self._encode_pieces(pieces, namespace)
        result = array("I") if known is None else known.ids[:]
        for ids in found[:-OPEN_PIECES]:
            result += ids
        if opening is not None and len(starts) > OPEN_PIECES:
            self._keep(opening, text, starts[-1 - OPEN_PIECES], result[:])
        for ids in found[-OPEN_PIECES:]:
            result += ids
        return result

    def _opening(self, text: str, namespace: str) -> str | None:
        """None: too short for one, or marks can be cut in more than one way."""
        if not self._begins:
            return None
        (scan,) = self._scans
        first = next(islice(scan.finditer(text), OPENING_MARKS - 1, None), None)
        return None if first is None else f"{namespace}\0{text[: first.start()]}"

    def _keep(self, opening: str, text: str, at: int, ids: array[int]) -> None:
        """`text[:at]` has these ids; a mark begins there."""
        mark = self._any_mark.match(text, at) if self._any_mark is not None else None
        if mark is not None:
            self._beginnings.keep(opening, Beginning(text[: mark.end()], at, ids))

    def _encode_pieces(self, pieces: list[str], namespace: str) -> list[array[int]]:
        keys: Sequence[Key] = [(namespace, one) for one in pieces] if namespace else pieces
        remembered = self._pieces
        found: list[array[int] | None] = []
        with self._lock:
            for key in keys:
                ids = remembered.get(key)
                if ids is not None:
                    remembered.move_to_end(key)
                found.append(ids)
        missing = [at for at, ids in enumerate(found) if ids is None]
        if missing:
            encodings = self._tokenizer.encode_batch_fast(
                [pieces[at].removeprefix("\0") for at in missing], add_special_tokens=False
            )
            fresh = [array("I", encoding.ids) for encoding in encodings]
            for at, ids in zip(missing, fresh, strict=True):
                found[at] = ids
            self._remember(zip([keys[at] for at in missing], fresh, strict=True))
        return [ids for ids in found if ids is not None]

    def _find_marks(self, text: str, at: int) -> list[int] | None:
        """Where marks begin from `at` on, and the text's end; None: it is not for pieces."""
        if len(self._scans) == 1 and not self._odd:
            (scan,) = self._scans
            starts = [match.start() for match in islice(scan.finditer(text, at), MAX_PIECES + 1)]
            starts.append(len(text))
            return starts if len(starts) <= MAX_PIECES else None
        found: list[re.Match[str]] = []
        for scan in self._scans:
            found += islice(scan.finditer(text), MAX_PIECES + 1)
        if len(found) > MAX_PIECES:
            return None
        found.sort(key=re.Match.start)
        if any(one.end() > two.start() for one, two in pairwise(found)):
            # One mark inside another: which of them counts, only a common search can tell.
            assert self._any_mark is not None
            found = list(self._any_mark.finditer(text))
        if self._odd and any(match[0] in self._odd for match in found):
            return None
        return [*(match.start() for match in found), len(text)]

    def _remember(self, pieces: Iterable[tuple[Key, array[int]]]) -> None:
        with self._lock:
            for key, ids in pieces:
                size = _size(key, ids)
                if key not in self._pieces and size <= self._memory_bytes // 4:
                    self._pieces[key] = ids
                    self._held_bytes += size
            while self._held_bytes > self._memory_bytes:
                self._held_bytes -= _size(*self._pieces.popitem(last=False))

    # -- what holds for this tokenizer

    def _find_affixes(self) -> tuple[array[int], array[int]] | None:
        """Nearly all tokenizers put the same ids around every text; None: this one does not."""
        bare, full = self._whole("a", False), self._whole("a", True)
        for at in range(len(full) - len(bare) + 1):
            before, behind = full[:at], full[at + len(bare) :]
            if all(
                before + self._whole(text, False) + behind == self._whole(text, True)
                for text in _samples(self._marks, 8)
            ):
                return before, behind
        return None

    def _holds(self) -> bool:
        """Are all samples the same by pieces as in one go?"""
        # Each piece is encoded once and then remembered: both ways are tried.
        try:
            return all(
                self._by_pieces(text, "") == self._whole(text, False)
                for text in _samples(self._marks, SAMPLES)
            )
        except Exception:  # whatever a tokenizer does not bear, it does not bear by pieces
            return False
        finally:
            self._pieces.clear()
            self._beginnings.clear()
            self._held_bytes = 0


def _size(key: Key, ids: array[int]) -> int:
    size = PIECE_BYTES + len(ids) * ids.itemsize
    for text in (key,) if isinstance(key, str) else key:
        size += len(text) if text.isascii() else 4 * len(text)
    return size


def _pattern(marks: Iterable[str]) -> str:
    """Matches the longest of the marks that begin at a place, as tokenizers does.

    Some models have a thousand marks that begin alike: what they share is looked at once.
    """
    by_first: dict[str, list[str]] = {}
    for mark in marks:
        by_first.setdefault(mark[0], []).append(mark[1:])
    return "|".join(re.escape(first) + _tail(rests) for first, rests in sorted(by_first.items()))


def _tail(rests: list[str]) -> str:
    longer = [rest for rest in rests if rest]
    if not longer:
        return ""
    shared = longer[0]
    for rest in longer:
        while not rest.startswith(shared):
            shared = shared[:-1]
    if shared and len(longer) == len(rests):
        return re.escape(shared) + _tail([rest[len(shared) :] for rest in longer])
    inner = f"(?:{_pattern(longer)})"
    return inner if len(longer) == len(rests) else inner + "?"


def _samples(marks: list[str], count: int) -> Iterator[str]:
    """Texts of all that could reach across a mark; the same ones each time."""
    dice = random.Random(len(marks))
    words = (
        "the river", "Tell me", "a", "I", "'s", "n't", "_", ".", ",", "!?", "<|", "|>", "[", "</",
        " ", "  ", "\n", "\n\n", "\r\n", "\t", "0", "42", "1234567", "e\u0301", "\u0301", "\u00e9",
        "\u65e5\u672c\u8a9e", "\uff21", "\ufb01", "\u0e33", "\u00a0", "\u2028", "\u200b", "\u2581",
        "\U0001f600", "\U0001f468\u200d\U0001f469", "{\"a\": 1}", "def f(x):\n    return x",
    )  # fmt: skip
    yield ""
    yield "a"
    for _ in range(count):
        pieces = []
        for _ in range(dice.randrange(1, 12)):
            pieces.append(dice.choice(words))
            if marks and dice.random() < 0.4:
                mark = dice.choice(marks)
                pieces.append(mark if dice.random() < 0.9 else mark[: len(mark) // 2])
        yield "".join(pieces)
