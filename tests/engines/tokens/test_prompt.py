"""What a request's ids are. tests/vllm/test_tokens.py has the same requests answered by vLLM."""

from __future__ import annotations

import json
import threading
from array import array
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from engines.tokens.content_format import ContentFormat
from engines.tokens.folder import Folder, FolderError, read_folder
from engines.tokens.prompt import PromptTokens
from engines.tokens.why import Why
from tests.engines.tokens.models import SPECIAL, make_tokenizer, write_folder
from tests.engines.tokens.requests import CHATS, COMPLETIONS, UNKNOWN, USER

CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"


def encoded(body: Any) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def text_of(prompts: PromptTokens, tokenizer: Tokenizer, body: Any) -> str:
    ids = prompts.ids(CHAT, encoded(body))
    assert ids is not None, {why: n for why, n in prompts.counts.items() if n}
    return str(tokenizer.decode(list(ids), skip_special_tokens=False))


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    return {kind: make_tokenizer(kind) for kind in SPECIAL}


@pytest.mark.parametrize("name", CHATS)
@pytest.mark.parametrize("kind", SPECIAL)
def test_chats_are_known(prompts: dict[str, PromptTokens], kind: str, name: str) -> None:
    ids = prompts[kind].ids(CHAT, encoded(CHATS[name]))
    assert isinstance(ids, array)
    assert ids.typecode == "I"
    assert len(ids) > 3


@pytest.mark.parametrize("name", COMPLETIONS)
@pytest.mark.parametrize("kind", SPECIAL)
def test_completions_are_known(prompts: dict[str, PromptTokens], kind: str, name: str) -> None:
    assert prompts[kind].ids(COMPLETION, encoded(COMPLETIONS[name]))


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown(prompts: dict[str, PromptTokens], name: str) -> None:
    path, body, why = UNKNOWN[name]
    before = dict(prompts["chatml"].counts)
    assert prompts["chatml"].ids(path, encoded(body)) is None
    after = prompts["chatml"].counts
    assert {one: after[one] - before[one] for one in Why if after[one] != before[one]} == {why: 1}


def test_chatml(prompts: dict[str, PromptTokens], tokenizers: dict[str, Tokenizer]) -> None:
    body = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": t} for t in ("a", "b")]},
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": "c",
                        "type": "function",
                        "function": {"name": "f", "arguments": '{"x": "<\\u00e9>"}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c", "content": "42"},
        ],
    }
    assert text_of(prompts["chatml"], tokenizers["chatml"], body) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\na\nb<|im_end|>\n"
        '<|im_start|>assistant\n\n<tool_call>\n{"name": "f", "arguments": {"x": "<\u00e9>"}}\n'
        "</tool_call><|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n42\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_special_tokens_stand_once(prompts: dict[str, PromptTokens]) -> None:
    """A chat's come from the template, a completion's from the tokenizer."""
    for kind in ("llama", "mistral"):
        chat = prompts[kind].ids(CHAT, encoded({"messages": [USER]}))
        completion = prompts[kind].ids(COMPLETION, encoded({"prompt": "one"}))
        bare = prompts[kind].ids(
            COMPLETION, encoded({"prompt": "one", "add_special_tokens": False})
        )
        assert chat is not None
        assert completion is not None
        assert bare is not None
        assert chat[0] == completion[0] == 0
        assert 0 not in chat[1:]
        assert completion[1:] == bare


def test_ids_are_taken_as_they_are(prompts: dict[str, PromptTokens]) -> None:
    ids = prompts["llama"].ids(COMPLETION, b'{"prompt": [7, 4294967295, 0]}')
    assert ids == array("I", [7, 4294967295, 0])


def test_truncation_in_the_file_is_not_the_engines(prompts: dict[str, PromptTokens]) -> None:
    ids = prompts["chatml"].ids(COMPLETION, encoded({"prompt": "one two " * 200}))
    assert ids is not None
    assert len(ids) > 64


def test_options_of_the_engine(folders: dict[str, Path], tokenizers: dict[str, Tokenizer]) -> None:
    folder = read_folder(folders["chatml"])
    body = {"messages": [USER], "tool_choice": "none", "tools": [
        {"type": "function", "function": {"name": "f"}}]}  # fmt: skip
    hiding = PromptTokens(folder, hides_tools=True)
    assert "tools" not in text_of(hiding, tokenizers["chatml"], body)
    body["tool_choice"] = "auto"
    assert "tools" in text_of(hiding, tokenizers["chatml"], body)
    source = "{{ x }}{{ messages[0].content }}"
    own = PromptTokens(folder, template=source, variables={"x": 1, "y": 2})
    assert text_of(own, tokenizers["chatml"], {"messages": [USER]}) == "1" + USER["content"]
    asked = {"messages": [USER], "chat_template_kwargs": {"x": [2]}}
    assert text_of(own, tokenizers["chatml"], asked) == "[2]" + USER["content"]
    parts = PromptTokens(folder, template=source, content_format=ContentFormat.PARTS)
    assert "'type': 'text'" in text_of(parts, tokenizers["chatml"], {"messages": [USER]})


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{{ raise_exception('no') }}", Why.TEMPLATE),
        ("{{ messages[9].content.x }}", Why.TEMPLATE),
        ("{{ 1 / 0 }}", Why.TEMPLATE),
        ("{{ messages.append(1) }}", Why.TEMPLATE),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", Why.TEMPLATE),
        ("{% for x in range(1000000) %}x{% endfor %}", Why.TEMPLATE),
        ("{{ strftime_now('%H:%M') }}", Why.CLOCK),
        ("{{ 'x' * 3000000 }}", Why.SIZE),
    ],
)
def test_template_that_fails(folders: dict[str, Path], source: str, why: Why) -> None:
    prompts = PromptTokens(read_folder(folders["chatml"]), template=source)
    assert prompts.ids(CHAT, encoded({"messages": [USER]})) is None
    assert prompts.counts[why] == 1


def test_day(folders: dict[str, Path], tokenizers: dict[str, Tokenizer]) -> None:
    now = datetime(2026, 11, 5, 23, 59)
    prompts = PromptTokens(
        read_folder(folders["chatml"]),
        template="{{ strftime_now('%-d %b %Y 100%%') }}",
        now=lambda: now,
    )
    assert text_of(prompts, tokenizers["chatml"], {"messages": [USER]}) == "5 Nov 2026 100%"


@pytest.mark.parametrize("kind", ["deepseek_v32", "gpt_oss"])
def test_models_with_renderers_of_their_own(folders: dict[str, Path], kind: str) -> None:
    folder = read_folder(folders["chatml"])
    folder = Folder(folder.tokenizer, templates=folder.templates, model_type=kind)
    prompts = PromptTokens(folder)
    assert prompts.ids(CHAT, encoded({"messages": [USER]})) is None
    assert prompts.counts[Why.NO_TEMPLATE] == 1
    assert prompts.ids(COMPLETION, b'{"prompt": "a"}') is not None


def test_name_that_no_file_says(tmp_path: Path) -> None:
    """transformers may have a default for it, in a class that is not read here."""
    folder = write_folder(tmp_path, "llama")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["bos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    prompts = PromptTokens.load(folder)
    assert prompts.ids(CHAT, encoded({"messages": [USER]})) is None
    assert prompts.counts[Why.NO_TEMPLATE] == 1


def test_templates_by_name(tmp_path: Path, tokenizers: dict[str, Tokenizer]) -> None:
    named = [{"name": "default", "template": "one"}, {"name": "tool_use", "template": "two"}]
    folder = write_folder(tmp_path, "chatml", {"chat_template": named})
    tools = [{"type": "function", "function": {"name": "f"}}]

    def texts() -> list[str]:
        prompts = PromptTokens.load(folder)
        bodies: list[Any] = [{"messages": [USER]}, {"messages": [USER], "tools": tools}]
        return [text_of(prompts, tokenizers["chatml"], body) for body in bodies]

    assert texts() == ["one", "two"]
    (folder / "chat_template.jinja").write_text("three")
    assert texts() == ["three", "three"]
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("four")
    assert texts() == ["three", "four"]
    (folder / "chat_template.jinja").unlink()
    (folder / "additional_chat_templates" / "tool_use.jinja").unlink()
    (folder / "chat_template.json").write_text('{"chat_template": "five"}')
    assert texts() == ["one", "two"]
    (folder / "preprocessor_config.json").write_text("{}")
    assert texts() == ["five", "two"]


def test_legacy_files(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, "chatml", {"chat_template": None, "eos_token": None})
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<|im_end|>"}}')
    (folder / "chat_template.json").write_text('{"chat_template": "{{ eos_token }}"}')
    ids = PromptTokens.load(folder).ids(CHAT, encoded({"messages": [USER]}))
    assert ids == array("I", [SPECIAL["chatml"].index("<|im_end|>")])


def test_added_tokens_of_the_configuration(tmp_path: Path) -> None:
    added = {
        "600": {"content": "<tool>", "special": False, "normalized": False},
        "601": {"content": "<|im_end|>", "special": True},
    }
    folder = write_folder(tmp_path, "chatml", {"added_tokens_decoder": added})
    prompts = PromptTokens.load(folder)
    ids = prompts.ids(COMPLETION, b'{"prompt": "<tool><|im_end|>"}')
    assert ids is not None
    assert list(ids) == [make_tokenizer("chatml").get_vocab_size(), 2]


def test_flags_of_the_configuration(tmp_path: Path) -> None:
    """They count for more than those in tokenizer.json."""
    takes_blanks = {"2": {"content": "<|im_end|>", "special": True, "lstrip": True}}
    folder = write_folder(tmp_path, "chatml", {"added_tokens_decoder": takes_blanks})
    prompts = PromptTokens.load(folder)
    with_blank = prompts.ids(COMPLETION, b'{"prompt": "one  <|im_end|>"}')
    assert with_blank == prompts.ids(COMPLETION, b'{"prompt": "one<|im_end|>"}')


def test_tokens_with_names_of_their_own(tmp_path: Path) -> None:
    config = {"image_token": "<image>", "extra_special_tokens": {"audio_token": "<audio>"}}
    prompts = PromptTokens.load(write_folder(tmp_path, "chatml", config))
    size = make_tokenizer("chatml").get_vocab_size()
    ids = prompts.ids(COMPLETION, b'{"prompt": "<image><audio>"}')
    assert ids == array("I", [size, size + 1])


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer.json", None),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "nonsense"),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "{"),
        ("tokenizer_config.json", '{"bos_token": 3}'),
        ("tokenizer_config.json", '{"extra_special_tokens": [null]}'),
        ("chat_template.jinja", "{% for %}"),
        ("tekken.json", "{}"),
    ],
)
def test_folder_that_does_not_work(tmp_path: Path, file: str, text: str | None) -> None:
    folder = write_folder(tmp_path / "model", "chatml")
    if text is None:
        (folder / file).unlink()
    else:
        (folder / file).write_text(text)
    with pytest.raises(FolderError):
        PromptTokens.load(folder)


def test_threads_share_it(folders: dict[str, Path]) -> None:
    prompts = PromptTokens(read_folder(folders["llama"]), memory_bytes=20_000)
    bodies = [encoded(body) for body in CHATS.values()]
    wanted = [prompts.ids(CHAT, body) for body in bodies]
    found: list[bool] = []

    def run() -> None:
        found.append(all([prompts.ids(CHAT, body) for body in bodies] == wanted for _ in range(20)))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 4
