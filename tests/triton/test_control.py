"""Models of a real Triton come and go through the gateway's one face for that."""

from __future__ import annotations

import json
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.real.admin import Admin, answer_of
from tests.real.fixtures import Note
from tests.real.headgate_process import ADMIN_TOKEN, Gateway, running
from tests.triton.environment import Installation
from tests.triton.server import Triton

pytestmark = pytest.mark.engines

# Until something of the gateway's own pace has happened, and a model has been loaded.
PATIENCE_S = 30.0
OUT_OF_MEMORY = "CUDA out of memory"


@pytest.fixture(scope="module")
def server(installation: Installation, servers: list[Triton], progress: Note) -> Triton:
    """One whose models this file loads and unloads."""
    server = Triton(installation, "control", models=["vllm_model"])
    return up(server, servers)


@pytest.fixture(scope="module")
def gateway(server: Triton) -> Iterator[Gateway]:
    """Requests for what is not ready wait for it."""
    with running([f"triton={server.url}"], hold={"no_engine_s": PATIENCE_S}) as gateway:
        yield gateway


def up(server: Triton, servers: list[Triton]) -> Triton:
    servers.append(server)
    server.start()
    server.wait_ready()
    return server


def complete(gateway: Gateway, model: str, prompt: str = "Hello.", tokens: int = 5) -> int:
    """The status of an answer; one that is good has all its tokens."""
    body = {"model": model, "prompt": prompt, "max_tokens": tokens}
    request = urllib.request.Request(
        f"{gateway.url}/v1/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    status, answer = answer_of(request)
    if status == 200:
        assert answer["choices"][0]["finish_reason"] == "length", answer
    return status


def wait_until(condition: Callable[[], bool], what: str) -> None:
    since_s = time.monotonic()
    while not condition():
        assert time.monotonic() - since_s < PATIENCE_S, f"not after {PATIENCE_S} s: {what}"
        time.sleep(0.02)


def test_eight_callers_are_one_load_and_requests_wait_for_it(
    gateway: Gateway, server: Triton
) -> None:
    admin = Admin(gateway, server.url)
    assert admin.states()["vllm_slow"] == "unloaded"
    assert not admin.ready("vllm_slow")
    assert complete(gateway, "vllm_slow") == 404
    with ThreadPoolExecutor(12) as pool:
        loads = [pool.submit(admin.done, "/load", "vllm_slow") for _ in range(8)]
        # Its log and not its index, which may be silent until the load is over.
        wait_until(lambda: "loading: vllm_slow:1" in server.log_tail(), "it is being loaded")
        statuses = [pool.submit(complete, gateway, "vllm_slow") for _ in range(4)]
        answers = [load.result() for load in loads]
    assert admin.ready("vllm_slow")
    assert {answer["changed"] for answer in answers} == {True}
    assert sum(answer["joined"] for answer in answers) == 7
    assert [status.result() for status in statuses] == [200] * 4
    assert server.log_tail().count("loading: vllm_slow:1") == 1
    again = admin.done("/load", "vllm_slow")
    assert (again["changed"], again["message"]) == (False, "'vllm_slow' is loaded already")
    assert admin.done("/unload", "vllm_slow")["changed"]
    assert not server.model_ready("vllm_slow"), "an unload ends when it is unloaded"
    assert complete(gateway, "vllm_slow") == 404
    assert not admin.done("/unload", "vllm_slow")["changed"]


def test_callers_of_tritons_own_protocol_share_a_load_too(gateway: Gateway, server: Triton) -> None:
    def change(verb: str, body: bytes = b"{}") -> int:
        request = urllib.request.Request(
            f"{gateway.url}/v2/repository/models/vllm_slow/{verb}",
            body,
            {"authorization": f"Bearer {ADMIN_TOKEN}"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status)

    def n_loads() -> int:
        """Since it was unloaded, if it was."""
        since = server.log_tail().rpartition("unloaded 'vllm_slow'")[2]
        return since.count("loading: vllm_slow:1")

    with ThreadPoolExecutor(12) as pool:
        loads = [pool.submit(change, "load") for _ in range(8)]
        wait_until(lambda: n_loads() == 1, "it is being loaded")
        statuses = [pool.submit(complete, gateway, "vllm_slow") for _ in range(4)]
        assert [load.result() for load in loads] == [200] * 8
    assert [status.result() for status in statuses] == [200] * 4
    assert n_loads() == 1
    assert change("unload") == 200
    assert not server.model_ready("vllm_slow")
    assert complete(gateway, "vllm_slow") == 404


class Traffic:
    """Requests for a model, one after the other in each of some threads."""

    def __init__(self, gateway: Gateway, model: str, threads: int = 6) -> None:
        self.statuses: list[int] = []
        self._gateway, self._model = gateway, model
        self._ended = threading.Event()
        self._pool = ThreadPoolExecutor(threads)
        self._runs: list[Future[None]] = [self._pool.submit(self._run) for _ in range(threads)]

    def _run(self) -> None:
        while not self._ended.is_set():
            prompt = "<made-up delay_s=0.01>"
            self.statuses.append(complete(self._gateway, self._model, prompt, 20))
            if self.statuses[-1] != 200:
                self._ended.wait(0.05)

    def wait(self, count: int) -> None:
        """For so many more answers."""
        wanted = len(self.statuses) + count
        wait_until(lambda: len(self.statuses) >= wanted, f"{count} more answers")

    def end(self) -> list[int]:
        self._ended.set()
        for run in self._runs:
            run.result()
        self._pool.shutdown()
        return self.statuses


def test_others_come_and_go_under_traffic(gateway: Gateway, server: Triton) -> None:
    admin, traffic = Admin(gateway, server.url), Traffic(gateway, "vllm_model")
    traffic.wait(12)
    for _ in range(2):
        assert admin.done("/load", "llmapi")["changed"]
        assert complete(gateway, "llmapi") == 200
        traffic.wait(6)
        assert admin.done("/unload", "llmapi")["changed"]
        assert complete(gateway, "llmapi") == 404
    assert admin.refused("/load", "vllm_broken")[0] == 400
    traffic.wait(6)
    assert set(traffic.end()) == {200}


def test_it_goes_under_traffic_and_comes_back(gateway: Gateway, server: Triton) -> None:
    """Requests are answered whole, or are told that there is no such model; nothing in between."""
    admin, traffic = Admin(gateway, server.url), Traffic(gateway, "vllm_model")
    traffic.wait(12)
    assert admin.done("/unload", "vllm_model")["changed"]
    traffic.wait(6)
    gone = len(traffic.statuses)
    traffic.wait(6)
    assert set(traffic.statuses[gone:]) == {404}
    assert admin.done("/load", "vllm_model")["changed"]
    traffic.wait(12)
    back = len(traffic.statuses)
    traffic.wait(6)
    statuses = traffic.end()
    assert set(statuses[back:]) == {200}
    assert set(statuses) == {200, 404}


def test_a_broken_model_says_why_and_harms_nobody(gateway: Gateway, server: Triton) -> None:
    admin = Admin(gateway, server.url)
    status, answer = admin.ask("/load", {"model": "vllm_broken"})
    error = answer["error"]
    assert (status, error["code"], error["engine_status"]) == (400, "engine_refused", 400)
    assert OUT_OF_MEMORY in error["message"]
    assert OUT_OF_MEMORY in error["engine_message"]
    assert admin.states()["vllm_broken"] == "failed"
    assert complete(gateway, "vllm_model") == 200
    assert gateway.usable() == 1, "readiness is a model's, not the server's"
    status, words = admin.refused("/load", "no-such-model")
    assert (status, words) == (404, "there is no model 'no-such-model' in its repository")


def test_an_ensemble_goes_with_its_steps_if_that_is_asked_for(
    gateway: Gateway, server: Triton
) -> None:
    admin = Admin(gateway, server.url)
    steps = ("preprocessing", "tensorrt_llm", "postprocessing")
    assert admin.done("/load", "ensemble")["changed"]
    assert complete(gateway, "ensemble") == 200
    assert admin.done("/unload", "ensemble")["changed"]
    assert {admin.states()[step] for step in steps} == {"ready"}
    assert admin.done("/load", "ensemble")["changed"]
    assert admin.done("/unload", "ensemble", dependents=True)["changed"]
    wait_until(lambda: {admin.states()[step] for step in steps} == {"unloaded"}, "steps go too")


def test_a_triton_that_may_not_be_controlled(
    installation: Installation, servers: list[Triton]
) -> None:
    """As the first node of a multi-node TensorRT-LLM is started: mode none, with all it has."""
    server = Triton(installation, "uncontrolled", models=[], flags=["--model-control-mode=none"])
    for folder in server.repository.iterdir():
        if folder.name != "vllm_model":
            shutil.rmtree(folder)
    up(server, servers)
    with running([f"triton={server.url}"]) as gateway:
        admin = Admin(gateway, server.url)
        _, found = admin.ask("/models")
        assert not found["capabilities"]["load"]["yes"]
        assert "--model-control-mode=explicit" in found["capabilities"]["load"]["why"]
        status, words = admin.refused("/unload", "vllm_model")
        assert status == 501
        assert "--model-control-mode=explicit" in words
        assert "explicit model load / unload is not allowed" in words, "in its own words"
        assert not admin.done("/load", "vllm_model")["changed"], "what is so, is so"
        assert complete(gateway, "vllm_model") == 200


def test_a_repository_that_wants_a_header(
    installation: Installation, servers: list[Triton], server: Triton
) -> None:
    restricted = "--http-restricted-api=model-repository:admin-key=s3cret"
    barred = up(Triton(installation, "restricted", ["vllm_model"], [restricted]), servers)
    with running([f"triton={server.url}"]) as gateway:
        endpoints = f"{gateway.admin_url}/admin/endpoints"
        headers = {"authorization": f"Bearer {ADMIN_TOKEN}"}
        admin, engine = Admin(gateway, barred.url), {"url": barred.url, "kind": "triton"}

        def add(**more: str) -> None:
            body = json.dumps({**engine, **more}).encode()
            assert answer_of(urllib.request.Request(endpoints, body, headers))[0] == 201

        header = 'set `control_header: "admin-key: ..."`'
        add()
        status, words = admin.refused("/load", "vllm_early")
        assert status == 501
        assert 'control_header: "admin-key: ..."' in words
        wait_until(
            lambda: any(header in one["last_probe"] for one in gateway.endpoints()),
            "the probe says what to set",
        )
        request = urllib.request.Request(admin.place, None, headers, method="DELETE")
        assert answer_of(request)[0] == 202
        wait_until(lambda: len(gateway.endpoints()) == 1, "it has left")
        add(control_header="admin-key: s3cret")
        wait_until(lambda: gateway.usable() == 2, "its repository can be read")
        assert admin.done("/load", "vllm_early")["changed"]
        assert complete(gateway, "vllm_early") == 200
        assert "s3cret" not in gateway.log_tail()
