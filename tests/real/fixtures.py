"""Fixtures of all lanes that have a real engine, and the one place that lets a machine without it
skip or fail."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NoReturn

import pytest

Note = Callable[[str], None]

_figures = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def figure(pytestconfig: pytest.Config) -> Note:
    """Keep a measured figure for the end of the report."""
    return pytestconfig.stash.setdefault(_figures, []).append


@pytest.fixture(scope="session")
def progress(pytestconfig: pytest.Config) -> Note:
    """Show a line at once: minutes of silence look like a hang."""
    reporter = pytestconfig.pluginmanager.getplugin("terminalreporter")
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")

    def show(line: str) -> None:
        with capture.global_and_fixture_disabled():
            reporter.write_line(f"  engines: {line}")

    return show


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if figures := config.stash.get(_figures, []):
        terminalreporter.section("measured with real engines")
        for line in figures:
            terminalreporter.write_line(line)


def without_engine(text: str) -> NoReturn:
    """Skip; HEADGATE_REQUIRE_ENGINES=1 makes it a failure."""
    if os.environ.get("HEADGATE_REQUIRE_ENGINES") == "1":
        pytest.fail(f"{text}\n(HEADGATE_REQUIRE_ENGINES=1)", pytrace=False)
    pytest.skip(text)
