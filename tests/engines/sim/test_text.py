"""Tokens and answers."""

from __future__ import annotations

from array import array

from hypothesis import given, settings
from hypothesis import strategies as st

from engines.sim.text import (
    END_TOKEN,
    compose,
    detokenize,
    json_pieces,
    tokenize,
)

PROMPT = tokenize("Tell me about the caf\u00e9 in Paris, please. \u6771\u4eac!")


@settings(max_examples=200, deadline=None)
@given(st.text())
def test_text_comes_back(text: str):
    tokens = tokenize(text)
    assert detokenize(tokens) == text
    assert all(0 <= token < 2**28 for token in tokens)


@given(st.text(), st.text())
def test_a_longer_text_keeps_the_tokens_before_a_line_break(start: str, more: str):
    shorter = tokenize(f"{start}\n")
    assert tokenize(f"{start}\n{more}")[: len(shorter)] == shorter


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_any_ids_can_be_shown(ids: list[int]):
    assert isinstance(detokenize(ids), str)


def test_english_has_about_four_characters_a_token():
    text = "The gateway picks the pod that answers soonest at the least cost to the others. " * 20
    assert 3.0 < len(text) / len(tokenize(text)) < 5.0


def test_the_same_prompt_has_the_same_answer_and_another_seed_another():
    assert compose(PROMPT, 30) == compose(PROMPT, 30)
    assert compose(PROMPT, 30).text != compose(PROMPT, 30, seed=b"1").text
    assert compose(PROMPT, 30).text.startswith(compose(PROMPT, 20).text[:-4])


def test_an_answer_is_as_long_as_asked_and_speaks_of_the_prompt():
    answer = compose(PROMPT, 200)
    assert (len(answer.tokens), answer.finish_reason) == (200, "length")
    assert "Paris" in answer.text


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1), st.integers(1, 60))
def test_an_answer_retokenizes_to_itself(prompt: str, limit: int):
    answer = compose(tokenize(prompt), limit)
    assert len(answer.tokens) == len(answer.pieces) == limit
    assert detokenize(answer.tokens).startswith(answer.text)
    assert "\ufffd" not in answer.text


def test_a_stop_string_ends_the_answer_before_itself():
    free = compose(PROMPT, 60).text
    word = free.split()[5]
    answer = compose(PROMPT, 60, stop=["nowhere to be found", word])
    assert answer.text == free[: free.index(word)]
    assert (answer.finish_reason, answer.stop_reason) == ("stop", word)
    assert len(answer.tokens) < 60


def test_no_stop_before_the_least_number_of_tokens():
    word = compose(PROMPT, 60).text.split()[1]
    answer = compose(PROMPT, 60, stop=[word], min_tokens=30)
    assert len(answer.tokens) >= 30


def test_a_natural_end_is_a_token_without_text():
    answer = compose(PROMPT, 500, natural_end_tokens=40)
    assert 20 <= len(answer.tokens) <= 60
    assert (answer.tokens[-1], answer.pieces[-1]) == (END_TOKEN, "")
    assert answer.finish_reason == "stop"


def test_pieces_are_json_already():
    assert json_pieces(['a"b', "\n", "\u00e9"]) == [b'a\\"b', b"\\n", "\u00e9".encode()]


def test_an_answer_to_nothing_is_still_an_answer():
    assert len(compose(array("I", [300]), 12).tokens) == 12
