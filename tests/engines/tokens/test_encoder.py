"""With a memory the ids are those without one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from engines.tokens.encoder import PIECE_BYTES, Encoder, _pattern
from engines.tokens.folder import read_folder
from engines.tokens.prompt import PromptTokens
from tests.engines.tokens.models import SPECIAL, make_tokenizer

MARKS = [*SPECIAL["chatml"], *SPECIAL["llama"][:5], *SPECIAL["mistral"]]
TEXTS = st.lists(
    st.one_of(
        st.sampled_from(MARKS),
        st.sampled_from(
            [mark[:3] for mark in MARKS] + [" ", "\n", "  \n", "'s", "e\u0301", "\u2581"]
        ),
        st.text(max_size=6),
        st.text("the river 12.\n", max_size=40),
    ),
    max_size=12,
).map("".join)


def made(kind: str) -> Tokenizer:
    tokenizer = make_tokenizer(kind)
    tokenizer.no_truncation()
    return tokenizer


def plain(tokenizer: Tokenizer, text: str, special: bool = False) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=special).ids)


TOKENIZERS = {kind: made(kind) for kind in SPECIAL}
ENCODERS = {kind: Encoder(tokenizer, 30_000) for kind, tokenizer in TOKENIZERS.items()}


@pytest.mark.parametrize("kind", SPECIAL)
def test_usual_tokenizers_are_remembered(kind: str) -> None:
    assert ENCODERS[kind].remembers


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, special=st.booleans())
def test_same_as_in_one_go(text: str, special: bool) -> None:
    for kind, encoder in ENCODERS.items():
        assert list(encoder.encode(text, add_special_tokens=special)) == plain(
            TOKENIZERS[kind], text, special
        )
        assert encoder.held_bytes <= 30_000


MESSAGE = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["system", "user", "assistant", "tool"]),
        "content": st.one_of(
            TEXTS, st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": TEXTS}))
        ),
    }
)


@settings(max_examples=60, deadline=None)
@given(
    conversation=st.lists(MESSAGE, min_size=1, max_size=6),
    turns=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    add_generation_prompt=st.booleans(),
)
def test_conversations_are_the_same_with_and_without(
    warm: dict[str, tuple[PromptTokens, PromptTokens]],
    conversation: list[dict[str, object]],
    turns: list[int],
    add_generation_prompt: bool,
) -> None:
    """Prefixes of a conversation in any order, as its turns would come, and again."""
    for end in turns:
        request = {
            "messages": conversation[:end],
            "add_generation_prompt": add_generation_prompt,
        }
        body = json.dumps(request).encode()
        for remembering, forgetful in warm.values():
            wanted = forgetful.ids("/v1/chat/completions", body)
            assert remembering.ids("/v1/chat/completions", body) == wanted


@pytest.fixture(scope="module")
def warm(folders: dict[str, Path]) -> dict[str, tuple[PromptTokens, PromptTokens]]:
    found = {}
    for kind, folder in folders.items():
        said = read_folder(folder)
        remembering = PromptTokens(said, memory_bytes=50_000)
        assert remembering.encoder.remembers
        found[kind] = remembering, PromptTokens(said, memory_bytes=0)
    return found


def test_memory_is_bounded() -> None:
    encoder = Encoder(made("chatml"), 20_000)
    for index in range(300):
        encoder.encode(f"<|im_start|>{index} {'river ' * (index % 50)}", add_special_tokens=False)
        assert encoder.held_bytes <= 20_000
    # A quarter is for the beginnings of conversations.
    assert encoder.held_bytes > 15_000 - 2 * (50 * 10 + PIECE_BYTES)
    before = encoder.held_bytes
    encoder.encode("<|im_start|>" + "mountain " * 2000, add_special_tokens=False)
    assert encoder.held_bytes == before, "one piece must not drive out all others"


TURNS = st.lists(
    st.tuples(
        st.sampled_from(["goes on", "is asked anew", "other question", "other system", "broken"]),
        st.text("the river 12.\n'", max_size=30),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(turns=TURNS, namespaces=st.lists(st.sampled_from(["", "a"]), min_size=12, max_size=12))
def test_conversations_that_go_on(turns: list[tuple[str, str]], namespaces: list[str]) -> None:
    """Each next text begins as one before did, or nearly so."""
    system, said = "You are a river.", ["What?"]
    for (what, new), namespace in zip(turns, namespaces, strict=False):
        if what == "goes on":
            said += [new, "more " + new]
        elif what == "is asked anew":
            said[-1] = new
        elif what == "other question":
            said = [new]
        elif what == "other system":
            system = new
        for kind in ("chatml", "llama"):
            begin, end = SPECIAL[kind][:2]
            pieces = [system, *said, ""]
            text = end.join(f"{begin}{at % 2}\n{piece}" for at, piece in enumerate(pieces))
            if what == "broken":  # a mark is cut off, right where a beginning may end
                text = text[: text.rfind(begin) + len(begin) // 2] + new
            got = CONVERSATIONS[kind].encode(text, add_special_tokens=False, namespace=namespace)
            assert list(got) == plain(TOKENIZERS[kind], text)


CONVERSATIONS = {kind: Encoder(TOKENIZERS[kind], 40_000) for kind in ("chatml", "llama")}


@pytest.mark.parametrize("kind", ["chatml", "mistral"])
def test_too_many_marks_for_pieces(kind: str) -> None:
    encoder = Encoder(TOKENIZERS[kind], 100_000)
    text = "a" + SPECIAL[kind][1] * 10_000 + SPECIAL[kind][2] + "b"
    assert list(encoder.encode(text, add_special_tokens=False)) == plain(TOKENIZERS[kind], text)
    assert encoder.held_bytes == 0


def test_namespaces_are_apart() -> None:
    encoder = Encoder(TOKENIZERS["chatml"], 100_000)
    text = "x<|im_start|>the river<|im_end|>"
    sizes = []
    for namespace in ("", "a", "b", "a", ""):
        ids = encoder.encode(text, add_special_tokens=False, namespace=namespace)
        assert list(ids) == plain(TOKENIZERS["chatml"], text)
        sizes.append(encoder.held_bytes)
    assert sizes[0] < sizes[1] < sizes[2] == sizes[3] == sizes[4]


def test_no_memory() -> None:
    encoder = Encoder(made("chatml"), 0)
    assert not encoder.remembers
    assert list(encoder.encode("<|im_start|>a", add_special_tokens=False)) == plain(
        made("chatml"), "<|im_start|>a"
    )
    assert encoder.held_bytes == 0


@pytest.mark.parametrize("flags", [{"lstrip": True}, {"rstrip": True}, {"single_word": True}])
def test_marks_with_an_eye_on_the_text(flags: dict[str, bool]) -> None:
    tokenizer = made("chatml")
    tokenizer.add_special_tokens([AddedToken("<mask>", special=True, **flags)])
    encoder = Encoder(tokenizer, 100_000)
    assert encoder.remembers
    for text in ("a <mask> b", "a<mask>b", "<|im_start|> <mask> <|im_end|>", "<|im_end|> x"):
        assert list(encoder.encode(text, add_special_tokens=False)) == plain(tokenizer, text)


def test_marks_inside_marks() -> None:
    tokenizer = made("chatml")
    tokenizer.add_special_tokens(["[<a>]", "<a>", "<a>]]", "a>", "[[", "[[<a>"])
    encoder = Encoder(tokenizer, 100_000)
    assert encoder.remembers
    for text in ("x[<a>]y", "[<a>]]", "<a>]]", "[[<a>]", "[[[<a>]a>", "<a>]", "[[<a>]]"):
        assert list(encoder.encode(text, add_special_tokens=False)) == plain(tokenizer, text), text


def test_normalized_tokens_stay_in_their_pieces() -> None:
    tokenizer = made("chatml")
    tokenizer.add_tokens([AddedToken("caf\u00e9", normalized=True)])
    encoder = Encoder(tokenizer, 100_000)
    text = "<|im_start|>cafe\u0301 caf\u00e9<|im_end|>"
    assert list(encoder.encode(text, add_special_tokens=False)) == plain(tokenizer, text)


def test_tokenizer_that_is_not_the_same_by_pieces() -> None:
    """No tokenizer at hand is so; one that is cut inside words is."""

    class Wrong(Encoder):
        def _find_marks(self, text: str) -> list[int] | None:
            return [*(found.start() for found in re.finditer("i", text)), len(text)]

    tokenizer = made("chatml")
    wrong = Wrong(tokenizer, 100_000)
    assert not wrong.remembers
    assert wrong.held_bytes == 0
    text = "the river"
    assert list(wrong.encode(text, add_special_tokens=False)) == plain(tokenizer, text)


@given(
    st.lists(st.text("ab<|>", min_size=1, max_size=5), min_size=1, max_size=30), st.text("ab<|>")
)
def test_pattern_takes_the_longest_mark(marks: list[str], text: str) -> None:
    found = [match.span() for match in re.finditer(_pattern(sorted(set(marks))), text)]
    wanted, at = [], 0
    while at < len(text):
        ends = [at + len(mark) for mark in marks if text.startswith(mark, at)]
        if ends:
            wanted.append((at, max(ends)))
        at = max([at + 1, *ends])
    assert found == wanted
