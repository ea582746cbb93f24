"""Fixtures of the lane that puts a real vLLM behind the gateway.

HEADGATE_DIRECT=1 runs the contract against the engine itself, without a gateway: it tells a fault
of the gateway from a change of the engine. HEADGATE_REQUIRE_ENGINES=1 makes a machine that cannot
have the engine a failure instead of a skip.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.engines.tokens.models import write_folder
from tests.real import headgate_process
from tests.real.fixtures import Note, without_engine
from tests.real.headgate_process import Gateway
from tests.real.venv import UnavailableError
from tests.vllm import environment
from tests.vllm.fleet import Fleet
from tests.vllm.server import ADAPTERS, Server

# A fixture may build the environment and wait for servers before the first line of a test runs.
TEST_TIMEOUT_S = 1800


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and config.pluginmanager.hasplugin("timeout"):
            item.add_marker(pytest.mark.timeout(TEST_TIMEOUT_S))


@pytest.fixture(scope="session")
def direct() -> bool:
    return os.environ.get("HEADGATE_DIRECT") == "1"


@pytest.fixture(scope="session")
def through_gateway(direct: bool) -> None:
    """For tests that say nothing about an engine alone."""
    if direct:
        pytest.skip("HEADGATE_DIRECT=1: there is no gateway")


@pytest.fixture(scope="session")
def vllm_python(progress: Note) -> Path:
    try:
        return environment.ensure(progress)
    except UnavailableError as error:
        without_engine(f"no vLLM on this machine: {error}")


@pytest.fixture(scope="session")
def fleet(
    vllm_python: Path, tmp_path_factory: pytest.TempPathFactory, progress: Note
) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("vllm")
    model, caching = folder / "model", folder / "caching"
    adapters = [str(folder / name) for name in ADAPTERS]
    script = str(Path(__file__).with_name("tiny_model.py"))
    subprocess.run([str(vllm_python), script, str(model)], check=True)
    subprocess.run([str(vllm_python), script, str(caching), *adapters], check=True)
    write_folder(caching, "chatml")
    fleet = Fleet(vllm_python, model, caching, progress)
    try:
        yield fleet
    finally:
        fleet.stop()


@pytest.fixture(scope="session")
def pair(fleet: Fleet) -> list[Server]:
    """Two replicas that answer alike. A test that harms one takes its servers from `fleet`."""
    return fleet.require(plain=2)


@pytest.fixture(scope="session")
def embedder(fleet: Fleet) -> Server:
    return fleet.require(embedding=1)[0]


@pytest.fixture(scope="module")
def gateway(pair: list[Server]) -> Iterator[Gateway]:
    with headgate_process.running([server.url for server in pair]) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def base_url(direct: bool, pair: list[Server], request: pytest.FixtureRequest) -> str:
    """Where a client sends its requests."""
    if direct:
        return pair[0].url
    gateway: Gateway = request.getfixturevalue("gateway")
    return gateway.url


@pytest.fixture(scope="module")
def embedding_url(direct: bool, pair: list[Server], embedder: Server) -> Iterator[str]:
    """The same, over engines of two kinds with a model each."""
    if direct:
        yield embedder.url
        return
    with headgate_process.running([pair[0].url, embedder.url]) as gateway:
        yield gateway.url


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Put the engines' logs beside a failure: it is seldom the client's side that says why."""
    report = yield
    fleet = getattr(item, "funcargs", {}).get("fleet")
    if report.failed and isinstance(fleet, Fleet):
        report.sections += [("gateway", log) for log in headgate_process.logs()]
        report.sections += [("vLLM", log) for log in fleet.logs()]
    return report
