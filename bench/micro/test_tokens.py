"""Prompts to token ids: a conversation of 16 KB, all of it new, or the last turn only."""

import json
import os
import time
from collections.abc import Callable
from pydoc_data.topics import topics

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from bench.micro.conftest import Measure
from engines.tokens.folder import Folder
from engines.tokens.prompt import PromptTokens

# As gateway.tokenizing has it.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

VOCABULARY = 16_000
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# Qwen's
WORDS = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content }}
        {%- if message.tool_calls %}{{- message.tool_calls | tojson }}{%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""

ENGLISH = "\n".join(topics[name] for name in sorted(topics))
TURNS = 20
SYSTEM_BYTES = 2000
TURN_BYTES = 700
NEW_BYTES = 300

Run = Callable[[int], float]


@pytest.fixture(scope="module")
def folder() -> Folder:
    """A vocabulary that makes 4 bytes a token, as large ones do of English."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(WORDS, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(ENGLISH.splitlines(), trainer)
    return Folder(tokenizer.to_str(), templates={"default": TEMPLATE})


def pieces_of_a_body() -> tuple[bytes, bytes]:
    """What stands before and behind the number that makes each last turn a new one."""
    messages = [{"role": "system", "content": ENGLISH[:SYSTEM_BYTES]}]
    for turn in range(TURNS):
        at = SYSTEM_BYTES + turn * TURN_BYTES
        role = "assistant" if turn % 2 else "user"
        messages.append({"role": role, "content": ENGLISH[at : at + TURN_BYTES]})
    messages.append({"role": "user", "content": "@@" + ENGLISH[-NEW_BYTES:]})
    body = {"model": "mock", "messages": messages, "stream": True}
    before, _, behind = json.dumps(body).encode().partition(b"@@")
    return before, behind


def runner(prompts: PromptTokens) -> Run:
    before, behind = pieces_of_a_body()
    count = 0

    def run(n: int) -> float:
        nonlocal count
        begun = time.perf_counter_ns()
        for _ in range(n):
            count += 1
            ids = prompts.ids("/v1/chat/completions", before + b"%d " % count + behind)
        elapsed = time.perf_counter_ns() - begun
        assert ids is not None
        return elapsed / n

    return run


def test_cold(measure: Measure, folder: Folder) -> None:
    measure("tokens:16 KB, all new", runner(PromptTokens(folder, memory_bytes=0)))


def test_last_turn_new(measure: Measure, folder: Folder) -> None:
    prompts = PromptTokens(folder)
    assert prompts.encoder.remembers
    measure("tokens:16 KB, the last 300 B new", runner(prompts))


def test_nothing_new(measure: Measure, folder: Folder) -> None:
    prompts = PromptTokens(folder)
    before, behind = pieces_of_a_body()
    body = before + behind

    def run(n: int) -> float:
        begun = time.perf_counter_ns()
        for _ in range(n):
            prompts.ids("/v1/chat/completions", body)
        return (time.perf_counter_ns() - begun) / n

    measure("tokens:16 KB, nothing new", run)
