"""The ids made of a request here are those the engine makes of it.

Three models: one like Qwen in a whole engine, which also says what it fed to the model; one like
Llama 3 and one like Mistral behind vLLM's front alone.
"""

from __future__ import annotations

import json
import os
import subprocess
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engines.tokens.ask import (
    Question,
    read_render,
    read_tokenize,
    render_question,
    tokenize_question,
)
from engines.tokens.probes import PROBES
from engines.tokens.prompt import PromptTokens
from tests.engines.tokens.models import write_folder
from tests.engines.tokens.requests import CHATS, COMPLETIONS, UNKNOWN
from tests.vllm.conftest import Note
from tests.vllm.fleet import Fleet
from tests.vllm.server import GENERATE_ARGS, MODEL, Renderer, Server

pytestmark = pytest.mark.engines

TIMEOUT_S = 60.0
# How each kind calls itself in config.json: which tokenizer class transformers takes hangs on it.
TYPES = {
    "chatml": ("qwen2", "Qwen2ForCausalLM"),
    "llama": ("llama", "LlamaForCausalLM"),
    "mistral": ("mistral", "MistralForCausalLM"),
}
REQUESTS = {
    **{f"chat: {name}": ("/v1/chat/completions", body) for name, body in CHATS.items()},
    **{f"completion: {name}": ("/v1/completions", body) for name, body in COMPLETIONS.items()},
    **{f"probe {index}": (path, json.loads(body)) for index, (path, body) in enumerate(PROBES)},
}


class Model:
    """A model's folder, its server and our tokenizer of it."""

    def __init__(self, folder: Path, server: Server) -> None:
        self.server = server
        self.tokens = PromptTokens.load(folder)
        self._client = httpx.Client(base_url=server.url, timeout=TIMEOUT_S)

    def post(self, question: Question) -> httpx.Response:
        return self._client.post(
            question.path, content=question.body, headers={"content-type": "application/json"}
        )

    def fed(self, path: str, body: dict[str, Any]) -> array[int]:
        """What the engine says it gave the model."""
        answer = self._client.post(path, json={**body, "max_tokens": 1, "return_token_ids": True})
        answer.raise_for_status()
        found = answer.json()
        ids = found.get("prompt_token_ids") or found["choices"][0]["prompt_token_ids"]
        return array("I", ids)

    def close(self) -> None:
        self._client.close()


@pytest.fixture(scope="module")
def models(
    vllm_python: Path, tmp_path_factory: pytest.TempPathFactory, progress: Note
) -> Iterator[dict[str, Model]]:
    """All three start at once."""
    servers: dict[str, tuple[Path, Server]] = {}
    models: dict[str, Model] = {}
    script = Path(__file__).with_name("tiny_model.py")
    try:
        for kind, (model_type, architecture) in TYPES.items():
            folder = tmp_path_factory.mktemp("tokens") / kind
            subprocess.run([str(vllm_python), str(script), str(folder)], check=True)
            write_folder(folder, kind)
            config = json.loads((folder / "config.json").read_text())
            config |= {"model_type": model_type, "architectures": [architecture]}
            (folder / "config.json").write_text(json.dumps(config))
            if kind == "chatml":
                args = [*GENERATE_ARGS, "--enable-scale-out"]
                server = Server(vllm_python, folder, f"tokens-{kind}", args, MODEL)
            else:
                server = Renderer(vllm_python, folder, f"tokens-{kind}")
            servers[kind] = folder, server
            progress(f"starting vLLM {server.name} on port {server.port}")
            server.start()
        for kind, (folder, server) in servers.items():
            server.wait_ready()
            progress(f"{server.name} is up after {server.start_s:.0f} s")
            models[kind] = Model(folder, server)
        yield models
    finally:
        for model in models.values():
            model.close()
        for _, server in servers.values():
            server.stop()


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("name", REQUESTS)
def test_ids_are_the_engines(models: dict[str, Model], kind: str, name: str) -> None:
    path, body = REQUESTS[name]
    model = models[kind]
    raw = json.dumps({"model": MODEL, **body}).encode()
    ours = model.tokens.ids(path, raw)
    assert ours is not None, {why: n for why, n in model.tokens.counts.items() if n}

    question = render_question(path, raw)
    assert question is not None
    answer = model.post(question)
    assert read_render(answer.status_code, answer.content) == ours, answer.text[:300]

    question = tokenize_question(path, raw)
    if question is not None:
        answer = model.post(question)
        assert read_tokenize(answer.status_code, answer.content) == ours, answer.text[:300]
    else:
        assert not isinstance(body.get("prompt"), str)

    if kind == "chatml":
        assert model.fed(path, {"model": MODEL, **body}) == ours


@pytest.mark.parametrize("name", [name for name, (_, _, why) in UNKNOWN.items() if why == "body"])
def test_what_is_wrong_here_is_wrong_there(models: dict[str, Model], name: str) -> None:
    path, body, _ = UNKNOWN[name]
    raw = body if isinstance(body, bytes) else json.dumps({"model": MODEL, **body}).encode()
    model = models["chatml"]
    assert model.tokens.ids(path, raw) is None
    answer = model.post(Question(path, raw))
    if name in LENIENT:
        assert answer.status_code == 200
    else:
        assert 400 <= answer.status_code <= 500


# Taken by vLLM 0.32, in ways that nobody should lean on.
LENIENT = {"flag that is none", "ids that are none"}


CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "flags": {"added_tokens_decoder": {"3": {"content": "<|eot_id|>", "lstrip": True}}},
    "a new token": {
        "added_tokens_decoder": {
            "512": {"content": "<new>", "rstrip": True, "normalized": False, "special": True}
        }
    },
    "a new word": {
        "added_tokens_decoder": {
            "512": {"content": "river", "single_word": True, "normalized": True, "special": False}
        }
    },
    "more special tokens": {"extra_special_tokens": ["<x>", "<y>"]},
    "special tokens by name": {"extra_special_tokens": {"image_token": "<image>"}},
    "special tokens by their old name": {"additional_special_tokens": ["<x>"]},
    "usual names": {
        "pad_token": "<pad>",
        "unk_token": {"__type": "AddedToken", "content": "<unk>", "normalized": True},
    },
    "other names": {"image_token": "<image>"},
    "no BOS, says the configuration": {"add_bos_token": False},
    "EOS, says the configuration": {"add_eos_token": True},
}
TEXTS = [
    "a river <|eot_id|> b",
    "<new>  x <x> <y><image> rivers river. <pad><unk> e\u0301 \u00e9",
    "<|begin_of_text|>Hello 12345",
    "",
    " ",
]


def test_tokenizers_are_those_of_transformers(vllm_python: Path, tmp_path: Path) -> None:
    folders = []
    for index, config in enumerate(CONFIGURATIONS.values()):
        folder = write_folder(tmp_path / str(index), "llama", config)
        (folder / "config.json").write_text('{"model_type": "llama"}')
        folders.append(folder)
    done = subprocess.run(
        [str(vllm_python), str(Path(__file__).with_name("auto_tokenizer.py")), *map(str, folders)],
        input=json.dumps(TEXTS),
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    theirs = dict(zip(CONFIGURATIONS, json.loads(done.stdout), strict=True))
    ours = {}
    for name, folder in zip(CONFIGURATIONS, folders, strict=True):
        encoder = PromptTokens.load(folder).encoder
        ours[name] = [
            [list(encoder.encode(text, add_special_tokens=special)) for special in (True, False)]
            for text in TEXTS
        ]
    assert ours == theirs


def test_probes_tell_another_tokenizer(vllm_python: Path, fleet: Fleet) -> None:
    """The other tests' model: transformers replaces the rules of its tokenizer.json by Qwen's."""
    (server,) = fleet.require(plain=1)
    model = Model(fleet.model, server)
    try:
        answers = []
        for path, body in PROBES:
            question = tokenize_question(path, body)
            assert question is not None
            answer = model.post(question)
            theirs = read_tokenize(answer.status_code, answer.content)
            assert theirs is not None
            answers.append(theirs == model.tokens.ids(path, body))
    finally:
        model.close()
    assert not all(answers)
    # "a", in which they do not differ
    assert any(answers)
