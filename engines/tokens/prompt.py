"""`PromptTokens`: the ids of a request's prompt, equal to those vLLM feeds its engine.

Rebuilt from what vLLM 0.32 does between a request's body and its engine. What it can be told on
its command line and what changes prompts are arguments here. Not covered: models that vLLM renders
by code of their own (`OWN_RENDERERS`, mistral-common), and tokenizer classes of transformers that
ignore what tokenizer.json says. Compare with an engine (`probes`) before believing.
"""

from __future__ import annotations  # array is no generic before Python 3.12

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import msgspec
from tokenizers import AddedToken, Tokenizer

from engines.tokens.content_format import ContentFormat
from engines.tokens.conversation import (
    read_documents,
    read_messages,
    read_tools,
    system_for_developer,
)
from engines.tokens.encoder import Encoder
from engines.tokens.folder import Added, Folder, FolderError, read_folder
from engines.tokens.template import ChatTemplate
from engines.tokens.why import UnknownError, Why

__all__ = ["PromptTokens", "Rendered"]

MAX_BODY_BYTES = 1 << 20
"""Of a body; at the tokenizer's 0.2 us per byte a cold one of this size takes 200 ms."""
MAX_TEXT = 2 << 20
"""Characters of a rendered prompt: a template may write a text more than once."""
MEMORY_BYTES = 64 << 20
"""Per model and process: the pieces of 600 to 1000 conversations of 16 KB."""
MAX_ID = (1 << 32) - 1

# Kinds of models whose chats vLLM does not render by template.
OWN_RENDERERS = frozenset(
    (
        "deepseek_v32",
        "deepseek_v4",
        "deepseek_v41",
        "gpt_oss",
        "inkling",
        "kimi_audio",
        "kimi_k3",
    )
)
# Names of `chat_template_kwargs` that are not variables of a template but arguments around it.
_ARGUMENTS = frozenset(
    (
        "chat_template",
        "conversation",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    )
)
_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
_REFUSALS = {
    Why.SIZE: "the conversation is too long",
    Why.BODY: "messages, tools or their options are not as a chat request has them",
    Why.MEDIA: "the model takes text, no images, audio or video",
    Why.OPTION: "a chat_template of the request's own, or truncation, is not taken",
    Why.NO_TEMPLATE: "the model's tokenizer folder has no chat template",
    Why.TEMPLATE: "the model's chat template refuses this conversation",
    Why.CLOCK: "the model's chat template writes the time of day",
}


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as its model reads it."""

    text: str
    """Without what the engine's tokenizer puts before every text."""
    n_tokens: int
    refused: str = ""
    """Why there is no text, in words for the client; empty: there is one."""


class PromptTokens:
    """One per model; `ids` may be called by several threads at once.

    `template`, `content_format`, `variables` and `hides_tools` are vLLM's `--chat-template` (the
    file's text), `--chat-template-content-format`, `--default-chat-template-kwargs` and
    `--exclude-tools-when-tool-choice-none`. FolderError if the folder does not work.
    """

    def __init__(
        self,
        folder: Folder,
        *,
        template: str | None = None,
        content_format: ContentFormat | None = None,
        variables: Mapping[str, Any] | None = None,
        hides_tools: bool = False,
        now: Callable[[], datetime] = datetime.now,
        body_bytes: int = MAX_BODY_BYTES,
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self.counts: dict[Why, int] = dict.fromkeys(Why, 0)
        """Requests whose ids were not known, by reason. A count may miss one that another thread
        counts at the same moment."""
        self._content_format = content_format
        self._defaults = dict(variables or {})
        self._hides_tools = hides_tools
        self._body_bytes = body_bytes
        splits = folder.splits_special
        self.encoder = Encoder(_make_tokenizer(folder), 0 if splits else memory_bytes)
        self._templates: dict[str, ChatTemplate | None] = {}
        if folder.model_type not in OWN_RENDERERS:
            self._templates = _make_templates(folder, template, now)

    @classmethod
    def load(cls, path: Path, **options: Any) -> PromptTokens:
        """From a model's folder. Takes seconds for a large vocabulary."""
        return cls(read_folder(path), **options)

    def ids(self, path: str, body: bytes) -> array[int] | None:
        """The ids of the prompt of a request to `path`; None: not known. Never raises."""
        try:
            if path == "/v1/chat/completions":
                return self._chat(self._read(body))
            if path == "/v1/completions":
                return self._completion(self._read(body))
            raise UnknownError(Why.PATH)
        except UnknownError as error:
            self.counts[error.why] += 1
        except Exception:  # tokenizers and a template's values may raise anything
            self.counts[Why.FAULT] += 1
        return None

    def render(self, body: bytes) -> Rendered:
        """The prompt of a chat request, for an engine that takes text. Never raises."""
        try:
            request = self._read(body)
            text = self._chat_text(request)
            bare = text.removeprefix(self.encoder.leading)
            ids = self._encode(bare, request, True)
        except UnknownError as error:
            return Rendered("", 0, _REFUSALS.get(error.why, error.why.value))
        except Exception as error:  # tokenizers and a template's values may raise anything
            return Rendered("", 0, f"the conversation cannot be rendered: {error}")
        return Rendered(bare, len(ids))

    def count(self, prompts: Sequence[str], texts: Sequence[str]) -> tuple[int, int]:
        """How many tokens these prompts are together, with those that begin each, and how many
        these texts. Whatever tokenizers raises."""
        encode = self.encoder.encode
        return (
            sum(len(encode(prompt, add_special_tokens=True)) for prompt in prompts),
            sum(len(encode(text, add_special_tokens=False)) for text in texts),
        )

    def _read(self, body: bytes) -> dict[str, Any]:
        if len(body) > self._body_bytes:
            raise UnknownError(Why.SIZE)
        try:
            request = msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise UnknownError(Why.BODY) from error
        if not isinstance(request, dict):
            raise UnknownError(Why.BODY)
        if request.get("truncate_prompt_tokens") is not None:
            raise UnknownError(Why.OPTION)
        transfer = request.get("kv_transfer_params")
        if isinstance(transfer, dict) and transfer.get("prompt_token_ids") is not None:
            raise UnknownError(Why.OPTION)
        return request

    def _completion(self, request: dict[str, Any]) -> array[int]:
        if request.get("suffix") is not None:
            raise UnknownError(Why.OPTION)
        if request.get("prompt_embeds") is not None:
            raise UnknownError(Why.MEDIA)
        prompt = request.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
            prompt = prompt[0]
        if isinstance(prompt, str):
            return self._encode(prompt, request, _flag(request, "add_special_tokens", True))
        if not isinstance(prompt, list) or not prompt:
            raise UnknownError(Why.BODY)
        if type(prompt[0]) is not int:
            raise UnknownError(Why.BATCH if isinstance(prompt[0], str | list) else Why.BODY)
        if not all(type(id) is int and 0 <= id <= MAX_ID for id in prompt):
            raise UnknownError(Why.BODY)
        return array("I", prompt)

    def _chat(self, request: dict[str, Any]) -> array[int]:
        text = self._chat_text(request)
        return self._encode(text, request, _flag(request, "add_special_tokens", False))

    def _chat_text(self, request: dict[str, Any]) -> str:
        if request.get("chat_template") is not None:
            raise UnknownError(Why.OPTION)
        tools = read_tools(request.get("tools"))
        if self._hides_tools and request.get("tool_choice", "auto" if tools else "none") == "none":
            tools = None
        template = self._choose_template(tools is not None)
        messages = read_messages(
            request.get("messages"), self._content_format or template.content_format
        )
        if not template.knows_developer:
            messages = system_for_developer(messages)
        goes_on = _flag(request, "continue_final_message", False)
        prompts = _flag(request, "add_generation_prompt", True)
        if goes_on and prompts:
            raise UnknownError(Why.BODY)
        variables = self._variables(request)
        documents = read_documents(request.get("documents"))
        if documents is None:
            documents = read_documents(variables.get("documents"))
        return template.render(
            messages,
            tools=tools,
            documents=documents,
            variables=variables,
            add_generation_prompt=prompts,
            continue_final_message=goes_on,
        )

    def _variables(self, request: dict[str, Any]) -> dict[str, Any]:
        """What a template gets beside the conversation; vLLM passes neither null nor "auto"."""
        asked = request.get("chat_template_kwargs")
        if asked is None:
            asked = {}
        if not isinstance(asked, dict):
            raise UnknownError(Why.BODY)
        effort = request.get("reasoning_effort")
        if effort is not None:
            if effort not in _EFFORTS:
                raise UnknownError(Why.BODY)
            thinking = {} if "enable_thinking" in asked else {"enable_thinking": effort != "none"}
            asked = {**asked, "reasoning_effort": effort, **thinking}
        variables = self._defaults | {
            name: value for name, value in asked.items() if value is not None and value != "auto"
        }
        if not _ARGUMENTS.isdisjoint(variables):
            raise UnknownError(Why.OPTION)
        return variables

    def _choose_template(self, has_tools: bool) -> ChatTemplate:
        names = ("tool_use", "default") if has_tools else ("processor", "default")
        template = next((self._templates[name] for name in names if name in self._templates), None)
        if template is None:
            raise UnknownError(Why.NO_TEMPLATE)
        return template

    def _encode(self, text: str, request: dict[str, Any], add_special_tokens: bool) -> array[int]:
        if len(text) > MAX_TEXT:
            raise UnknownError(Why.SIZE)
        # Who salts an engine's cache does not want to be found in ours either.
        salt = request.get("cache_salt") or ""
        if not isinstance(salt, str):
            raise UnknownError(Why.BODY)
        return self.encoder.encode(text, add_special_tokens=add_special_tokens, namespace=salt)


def _make_tokenizer(folder: Folder) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(folder.tokenizer)
    except Exception as error:  # tokenizers raises plain Exception
        raise FolderError(f"tokenizer.json: {error}") from error
    # Some files ask for both; an engine asks for neither.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = folder.splits_special
    known = {token.content: token for token in tokenizer.get_added_tokens_decoder().values()}
    for added in folder.added:
        token = known.get(added.content)
        # What the configuration says of a token counts for more than what tokenizer.json says; of
        # one that it only names, it says nothing.
        if token is None or (added.is_listed and not _is_same(token, added)):
            tokenizer.add_tokens(
                [
                    AddedToken(
                        added.content,
                        special=added.special,
                        normalized=added.normalized,
                        lstrip=added.lstrip,
                        rstrip=added.rstrip,
                        single_word=added.single_word,
                    )
                ]
            )
    return tokenizer


def _is_same(token: AddedToken, added: Added) -> bool:
    return all(
        getattr(token, name) == getattr(added, name)
        for name in ("special", "normalized", "lstrip", "rstrip", "single_word")
    )


def _make_templates(
    folder: Folder, template: str | None, now: Callable[[], datetime]
) -> dict[str, ChatTemplate | None]:
    """By name: tool_use, default, processor. None: it is that one, and cannot be trusted."""
    if template is not None:
        sources = {"default": template}
    else:
        sources = {
            name: text for name, text in folder.templates.items() if name in ("tool_use", "default")
        }
        if folder.processor_template is not None:
            sources["processor"] = folder.processor_template
    made: dict[str, ChatTemplate | None] = {}
    for name, source in sources.items():
        try:
            one = ChatTemplate(source, folder.names, now)
        except jinja2.TemplateError as error:
            raise FolderError(f"the chat template: {error}") from error
        # A class of transformers may have a default for a name that no file gives.
        made[name] = one if one.variables.isdisjoint(folder.unsaid) else None
    return made


def _flag(request: dict[str, Any], name: str, default: bool) -> bool:
    value = request.get(name, default)
    if not isinstance(value, bool):
        raise UnknownError(Why.BODY)
    return value
