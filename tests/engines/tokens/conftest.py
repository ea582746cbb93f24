"""Tokenizers are made once per run."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.tokens.folder import read_folder
from engines.tokens.prompt import PromptTokens
from tests.engines.tokens.models import TEMPLATES, write_folder


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: write_folder(root / kind, kind) for kind in TEMPLATES}


@pytest.fixture(scope="session")
def prompts(folders: dict[str, Path]) -> dict[str, PromptTokens]:
    return {kind: PromptTokens(read_folder(folder)) for kind, folder in folders.items()}
