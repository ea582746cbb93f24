"""Read what a model's folder says of its tokenizer. The only I/O of this package, once per model.

Which file counts is decided as transformers 5 does it (`PreTrainedTokenizerBase._from_pretrained`):
template files come before the configuration, `special_tokens_map.json` counts only where the
configuration lists no added tokens.
"""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

__all__ = ["NAMED", "Added", "Folder", "FolderError", "read_folder"]

NAMED = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
"""The special tokens that a template may call by name."""

MAX_FILE_BYTES = 256 << 20

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
# With one of these vLLM takes Mistral's own tokenizer library instead of tokenizer.json.
MISTRAL_FILES = ("tekken.json", "tokenizer.model.v*")


class FolderError(Exception):
    """The folder has no tokenizer that can be used; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class Added:
    """A token outside the vocabulary proper, with the flags of tokenizers' `AddedToken`."""

    content: str
    special: bool = True
    normalized: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    is_listed: bool = False
    """With all its flags, in `added_tokens_decoder`."""


@dataclass(frozen=True, slots=True)
class Folder:
    """What the files say, nothing decided yet but which file counts."""

    tokenizer: str
    """tokenizer.json"""
    added: tuple[Added, ...] = ()
    """Of the configuration, in the order of their ids; the named and extra ones last."""
    names: dict[str, str] = field(default_factory=dict)
    """Text by name, of `NAMED`."""
    unsaid: frozenset[str] = frozenset()
    """Names that no file mentions: classes of transformers have defaults for some."""
    templates: dict[str, str] = field(default_factory=dict)
    """By name; `default` is the one without."""
    processor_template: str | None = None
    """Of a multimodal model: goes before `templates` while there are no tools."""
    model_type: str = ""
    splits_special: bool = False
    """Special tokens in a text are text."""


def read_folder(path: Path) -> Folder:
    """What `path` holds. FolderError: unreadable, or a tokenizer that is not tokenizer.json's."""
    for pattern in MISTRAL_FILES:
        if any(path.glob(pattern)):
            raise FolderError(f"{path} has {pattern}: its engine uses mistral-common")
    tokenizer = _text(path / "tokenizer.json")
    if tokenizer is None:
        raise FolderError(f"{path} has no tokenizer.json")
    config = _object(path / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config.update(_object(path / "special_tokens_map.json"))
    names = {}
    for name in NAMED:
        if config.get(name) is not None:
            names[name] = _content(config[name])
    is_multimodal = any((path / name).exists() for name in PROCESSOR_FILES)
    legacy = _object(path / "chat_template.json").get("chat_template")
    templates = _templates(path, config)
    processor_template = None
    if is_multimodal:
        found = templates.get("default") if (path / "chat_template.jinja").exists() else legacy
        processor_template = found if isinstance(found, str) else None
    if not templates and isinstance(legacy, str):
        templates = {"default": legacy}
    return Folder(
        tokenizer,
        added=_added(config, names),
        names=names,
        unsaid=frozenset(name for name in NAMED if name not in config),
        templates=templates,
        processor_template=processor_template,
        model_type=str(_object(path / "config.json").get("model_type", "")),
        splits_special=bool(config.get("split_special_tokens")),
    )


def _templates(path: Path, config: dict[str, Any]) -> dict[str, str]:
    found = {}
    default = _text(path / "chat_template.jinja")
    if default is not None:
        found["default"] = default
    for file in sorted((path / "additional_chat_templates").glob("*.jinja")):
        text = _text(file)
        if text is not None:
            found[file.name.removesuffix(".jinja")] = text
    if found:
        return found
    said = config.get("chat_template")
    if isinstance(said, str):
        return {"default": said}
    if isinstance(said, list):
        return {one["name"]: one["template"] for one in said if isinstance(one, dict)}
    return {}


def _added(config: dict[str, Any], names: dict[str, str]) -> tuple[Added, ...]:
    listed = config.get("added_tokens_decoder") or {}
    by_id = sorted(listed.items(), key=lambda item: int(item[0]))
    found = [replace(_token(one), is_listed=True) for _, one in by_id]
    known = {one.content for one in found}
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
    # Models with images name more: image_token and the like.
    own = [
        one
        for name, one in config.items()
        if name.endswith("_token") and name not in NAMED and isinstance(one, str)
    ]
    if isinstance(extra, dict):
        own, extra = own + list(extra.values()), []
    for one in [config[name] for name in names] + own + extra:
        token = _token(one)
        if token.content not in known:
            known.add(token.content)
            found.append(token)
    return tuple(found)


def _token(value: Any) -> Added:
    if isinstance(value, str):
        return Added(value)
    if not isinstance(value, dict):
        raise FolderError(f"tokenizer_config.json has a token that is none: {value!r:.80}")
    special = bool(value.get("special", True))
    return Added(
        _content(value),
        special=special,
        normalized=bool(value.get("normalized", not special)),
        lstrip=bool(value.get("lstrip")),
        rstrip=bool(value.get("rstrip")),
        single_word=bool(value.get("single_word")),
    )


def _content(value: Any) -> str:
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str):
        raise FolderError(f"tokenizer_config.json has a token without a text: {value!r:.80}")
    return content


def _text(path: Path) -> str | None:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise FolderError(f"{path} has more than {MAX_FILE_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise FolderError(f"{path}: {error}") from error


def _object(path: Path) -> dict[str, Any]:
    text = _text(path)
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise FolderError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise FolderError(f"{path} is not a JSON object")
    return value
