"""Fixtures of the lane that puts a real Triton behind the gateway.

HEADGATE_REQUIRE_ENGINES=1 makes a machine that cannot have it a failure instead of a skip.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.real import headgate_process
from tests.real.fixtures import Note, without_engine
from tests.real.venv import UnavailableError
from tests.triton import environment
from tests.triton.environment import Installation
from tests.triton.server import Triton

# A fixture may build the environment and wait for servers before the first line of a test runs.
TEST_TIMEOUT_S = 180


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and config.pluginmanager.hasplugin("timeout"):
            item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S))


@pytest.fixture(scope="session")
def installation(progress: Note) -> Installation:
    try:
        return environment.ensure(progress)
    except UnavailableError as error:
        without_engine(f"no Triton on this machine: {error}")


@pytest.fixture(scope="session")
def servers() -> Iterator[list[Triton]]:
    """Those of the session, ended together."""
    servers: list[Triton] = []
    try:
        yield servers
    finally:
        for server in servers:
            if server.running():
                server.terminate()
        for server in servers:
            server.stop()


@pytest.fixture(scope="session")
def triton(installation: Installation, servers: list[Triton], progress: Note) -> Triton:
    """With a model of each kind. A test that harms a server makes one of its own."""
    server = Triton(installation, "shared")
    servers.append(server)
    server.start()
    server.wait_ready()
    progress(f"Triton is up after {server.start_s:.0f} s, {len(server.models)} models")
    return server


@pytest.fixture(scope="session")
def through_gateway() -> None:
    """As the vLLM lane has it: here everything that names it goes through the gateway."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the servers' logs beside a failure."""
    report = yield
    servers = getattr(item, "funcargs", {}).get("servers", [])
    if report.failed:
        report.sections += [("gateway", log) for log in headgate_process.logs()]
        report.sections += [("Triton", server.log_tail()) for server in servers if server.started]
    return report
