"""A real vLLM is switched through the gateway: LoRA adapters come and go, and it sleeps."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.real.admin import Admin
from tests.real.headgate_process import Gateway, running
from tests.vllm.fleet import Fleet
from tests.vllm.server import ADAPTERS, MODEL, Server

pytestmark = pytest.mark.engines

TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def servers(fleet: Fleet) -> list[Server]:
    """One that may load adapters while it runs, and one that may not."""
    plain, caching = fleet.require(plain=1, caching=1)
    return [caching, plain]


@pytest.fixture(scope="module")
def gateway(servers: list[Server]) -> Iterator[Gateway]:
    with running([server.url for server in servers]) as gateway:
        yield gateway


def status_of(gateway: Gateway, model: str) -> int:
    body = {"model": model, "prompt": "Hello", "max_tokens": 4}
    return httpx.post(f"{gateway.url}/v1/completions", json=body, timeout=TIMEOUT_S).status_code


def test_adapters_come_and_go(gateway: Gateway, fleet: Fleet, servers: list[Server]) -> None:
    admin, adapter = Admin(gateway, servers[0].url), ADAPTERS[0]
    path = str(fleet.caching_model.with_name(adapter))
    assert adapter in admin.states()
    assert status_of(gateway, adapter) == 200
    _, found = admin.ask("/models")
    assert found["capabilities"]["load_adapter"]["yes"]
    assert {one["id"]: one["parent"] for one in found["data"]}[adapter] is not None

    status, answer = admin.ask(f"/adapters/{adapter}", {}, "DELETE")
    assert (status, answer["changed"]) == (200, True), answer
    assert adapter not in admin.states()
    assert status_of(gateway, adapter) == 404
    status, answer = admin.ask(f"/adapters/{adapter}", {}, "DELETE")
    assert (status, answer["changed"]) == (200, False), "what is so, is so"

    for changed in (True, False):
        status, answer = admin.ask("/adapters", {"name": adapter, "path": path})
        assert (status, answer["changed"]) == (200, changed), answer
        assert status_of(gateway, adapter) == 200


def test_an_adapter_that_is_not_there(gateway: Gateway, servers: list[Server]) -> None:
    """In the engine's own words; nothing else changes."""
    admin = Admin(gateway, servers[0].url)
    before = admin.states()
    status, answer = admin.ask("/adapters", {"name": "none", "path": "/nowhere/adapter"})
    assert status >= 400
    assert "/nowhere/adapter" in answer["error"]["message"]
    assert admin.states() == before
    assert status_of(gateway, "none") == 404


def test_a_vllm_that_may_not(gateway: Gateway, servers: list[Server]) -> None:
    admin = Admin(gateway, servers[1].url)
    _, found = admin.ask("/models")
    able = found["capabilities"]
    assert not able["load_adapter"]["yes"]
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in able["load_adapter"]["why"]
    status, answer = admin.ask("/adapters", {"name": "a", "path": "/a"})
    assert status == 501
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in answer["error"]["message"]


@pytest.mark.parametrize("level", [0, 1, 2])
def test_sleep(gateway: Gateway, servers: list[Server], level: int) -> None:
    """What is asked meanwhile goes to the other one, and not into an engine that sleeps."""
    sleeper = servers[1]
    admin = Admin(gateway, sleeper.url)
    status, answer = admin.ask("/sleep", {"level": level})
    assert (status, answer["changed"]) == (200, True), answer
    assert set(admin.states().values()) == {"asleep"}
    assert httpx.get(f"{sleeper.url}/is_sleeping").json()["is_sleeping"]
    assert gateway.usable() == 1
    assert [status_of(gateway, MODEL) for _ in range(6)] == [200] * 6
    for changed in (True, False):
        status, answer = admin.ask("/wake", {})
        assert (status, answer["changed"]) == (200, changed), answer
    assert set(admin.states().values()) == {"ready"}
    assert gateway.usable() == 2
    assert [status_of(gateway, MODEL) for _ in range(6)] == [200] * 6
