"""The whole control process in this one: admin port, signals, reload; the workers are doubles."""

import asyncio
import os
import signal
from array import array
from pathlib import Path

import httpx
import pytest
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from engines.profile import PROFILES
from gateway.config import load
from gateway.control import Control
from gateway.listener import open_listeners
from gateway.messages import Sent

TOKEN = {"authorization": "Bearer t0ken"}
BASE = """
listen: {port: 0}
admin: {port: 0, token: t0ken}
health: {interval_s: 0.2}
drain: {pre_stop_s: 0.3, grace_s: 1}
"""


class House:
    """A running Control and a client of its admin port."""

    def __init__(self, control, port, path):
        self.control = control
        self.path = path
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False)

    def __getattr__(self, name):
        return getattr(self.client, name)

    async def names(self):
        found = (await self.get("/admin/endpoints", headers=TOKEN)).json()["data"]
        return {entry["name"]: entry["state"] for entry in found}

    async def until_ready(self):
        for _ in range(1000):
            if (await self.get("/ready")).status_code == 200:
                return
            await asyncio.sleep(0.01)
        raise AssertionError((await self.get("/ready")).text)


@pytest.fixture
def scene(tmp_path, engine_double):
    """Run `play(house, engine)`; returns the exit code of the control process."""

    def run(play, text="", base=BASE):
        async def inside():
            engine = await engine_double().start()
            path = Path(tmp_path / "h.yaml")
            path.write_text(base + f"engines: [{engine.url}]\n" + text)

            def read():
                return load(str(path), {})

            config = read()
            (admin,) = open_listeners("127.0.0.1", 0, 1, 16)
            listeners = open_listeners("127.0.0.1", 0, config.workers, 16)
            module = "tests.gateway.control.dummy_worker"
            control = Control(config, read, listeners, admin, module)
            running = asyncio.create_task(control.run())
            house = House(control, admin.getsockname()[1], path)
            try:
                await house.until_ready()
                await play(house, engine)
                if not control.is_draining:
                    os.kill(os.getpid(), signal.SIGTERM)
                return await running
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
                await house.aclose()
                await engine.stop()

        return uvloop.run(inside())

    return run


def test_the_three_open_answers(scene):
    async def play(house, engine):
        assert (await house.get("/health")).json()["status"] == "ok"
        assert (await house.get("/ready")).json() == {"status": "ready", "reasons": []}
        page = await house.get("/metrics")
        assert page.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert "server" not in page.headers
        names = {family.name for family in text_string_to_metric_families(page.text)}
        assert {"headgate_requests_accepted", "headgate_endpoint_state"} <= names
        head = await house.head("/metrics")
        assert (head.status_code, head.content) == (200, b"")

    assert scene(play) == 0


def test_without_a_token_admin_is_off(scene):
    async def play(house, engine):
        for path in ("/admin/endpoints", "/admin", "/admin/nothing"):
            answer = await house.get(path, headers=TOKEN)
            assert answer.status_code == 403
            assert "HEADGATE_ADMIN_TOKEN" in answer.json()["error"]["message"]

    scene(play, base=BASE.replace(", token: t0ken", ""))


@pytest.mark.parametrize("headers", [{}, {"authorization": "Bearer x"}, {"authorization": "t0ken"}])
def test_a_wrong_token(scene, headers):
    async def play(house, engine):
        answer = await house.get("/admin/endpoints", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["type"] == "authentication_error"

    scene(play)


def test_errors_have_the_openai_shape(scene):
    async def play(house, engine):
        for method, path, status in (
            ("GET", "/nope", 404),
            ("GET", "/admin/nope", 404),
            ("POST", "/ready", 405),
            ("GET", "/admin/endpoints/nope", 404),
            ("POST", "/admin/endpoints/nope/drain", 404),
        ):
            answer = await house.request(method, path, headers=TOKEN)
            assert answer.status_code == status
            assert set(answer.json()["error"]) == {"message", "type", "param", "code"}

    scene(play)


def test_endpoints_come_drain_and_go(scene, engine_double, until):
    async def play(house, engine):
        other = await engine_double().start()
        body = {"url": other.url, "name": "other", "api_key": "s3cret"}
        answer = await house.post("/admin/endpoints", json=body, headers=TOKEN)
        assert (answer.status_code, answer.json()["state"]) == (201, "unknown")
        watch = house.control.prober.watches[1]
        await until(lambda: watch.health.state.name == "READY")
        answer = await house.post("/admin/endpoints", json=body, headers=TOKEN)
        assert (answer.status_code, answer.json()["error"]["message"]) == (
            409,
            "Cannot add the endpoint: an endpoint called 'other' is there already.",
        )
        shown = (await house.get("/admin/endpoints/other", headers=TOKEN)).json()
        assert (shown["models"], shown["source"]) == (["m"], "admin")
        assert "s3cret" not in str(shown)
        answer = await house.post("/admin/endpoints/other/drain", headers=TOKEN)
        assert answer.json()["state"] == "draining"
        await house.post("/admin/endpoints/other/undrain", headers=TOKEN)
        await until(lambda: watch.health.state.name == "READY")
        assert (await house.delete("/admin/endpoints/other", headers=TOKEN)).status_code == 202
        await until(lambda: "other" not in house.control.fleet.members)
        assert list(await house.names()) == [f"127.0.0.1:{engine.port}"]
        await other.stop()

    scene(play)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"{", "The body is not JSON: Input data was truncated"),
        (b"[]", "body: expected a mapping, got []"),
        (b"{}", "body: url: missing; expected text"),
        (b'{"url":"x"}', "body: url: expected http[s]://host[:port][/prefix], got 'x'"),
        (b'{"url":"https://a","ca_file":"no"}', "body: ca_file: there is no file no"),
        (
            b'{"url":"https://a","ca_file":"/etc/passwd"}',
            "body: ca_file: /etc/passwd holds no certificates in PEM",
        ),
        (b'{"url":"http://a","knd":1}', "body: knd: unknown key; did you mean 'kind'?"),
        (
            b'{"url":"http://a","api_key":"file:/etc/passwd"}',
            "body: api_key: expected the secret itself as text",
        ),
    ],
)
def test_an_endpoint_that_makes_no_sense(scene, body, text):
    async def play(house, engine):
        answer = await house.post("/admin/endpoints", content=body, headers=TOKEN)
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, text)

    scene(play)


def test_what_is_to_be_seen(scene):
    async def play(house, engine):
        models = (await house.get("/admin/models", headers=TOKEN)).json()
        assert models == {
            "complete": True,
            "models": {"m": [f"127.0.0.1:{engine.port}"]},
            "aliases": {"fast": {"m": 1.0}},
        }
        config = (await house.get("/admin/config", headers=TOKEN)).json()
        assert config["admin"]["token"] == "***"
        assert config["models"]["fast"]["alias_of"] == "m"
        (worker,) = (await house.get("/admin/sessions", headers=TOKEN)).json()["data"]
        assert (worker["ready"], worker["requests_under_way"]) == (True, 0)
        os.kill(worker["pid"], 0)
        state = (await house.get("/admin/state", headers=TOKEN)).json()
        assert (state["complete"], len(state["endpoints"])) == (True, 1)

    scene(play, "models: {fast: {alias_of: m}}")


def test_is_a_model_ready(scene):
    async def play(house, engine):
        place = f"/admin/endpoints/127.0.0.1:{engine.port}/ready"
        for model, ready in (("m", True), ("org/other", False)):
            answer = await house.get(f"{place}/{model}", headers=TOKEN)
            assert answer.json() == {
                "endpoint": f"127.0.0.1:{engine.port}",
                "model": model,
                "ready": ready,
            }
        assert (await house.get(f"{place}/m")).status_code == 401
        engine.models_status = 500
        assert (await house.get(f"{place}/m", headers=TOKEN)).status_code == 502

    scene(play)


def test_an_endpoint_that_leaves_while_it_is_asked(scene, until):
    async def play(house, engine):
        place = f"/admin/endpoints/127.0.0.1:{engine.port}"
        held = engine.held["/v1/models"] = asyncio.Event()
        engine.asked.clear()
        asked = asyncio.create_task(house.get(f"{place}/models", headers=TOKEN))
        await until(lambda: engine.count("/v1/models"))
        assert (await house.delete(place, headers=TOKEN)).status_code == 202
        await until(lambda: not house.control.fleet.members)
        held.set()
        answer = await asked
        assert answer.status_code == 404
        assert "has left" in answer.json()["error"]["message"]

    scene(play)


def test_not_ready_without_engines(scene, until):
    async def play(house, engine):
        await engine.stop()
        states = house.control.prober.watches
        await until(lambda: states[0].health.state.name == "OPEN")
        answer = await house.get("/ready")
        assert answer.status_code == 503
        none, why = answer.json()["reasons"]
        assert none == "none of 1 engines is ready"
        assert why.endswith("open, cannot connect: Connection refused")

    scene(play)


def test_reload_takes_what_is_new_and_leaves_what_is_not(scene, engine_double, until):
    async def play(house, engine):
        worker = house.control.supervisor.workers[0]
        pid = worker.pid
        other = await engine_double().start()
        text = BASE + f"engines: [{engine.url}, {other.url}]\nmodels: {{fast: {{alias_of: m}}}}\n"
        house.path.write_text(text + "usage: exact\n")
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: len(house.control.fleet.members) == 2)
        assert house.control.fleet.members[f"127.0.0.1:{engine.port}"].generation == 1
        assert house.control.config.usage == "exact"
        house.path.write_text(text + "usage: nonsense\n")
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.2)
        assert house.control.config.usage == "exact"
        house.path.write_text(BASE + f"engines: [{other.url}]\n")
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: list(house.control.fleet.members) == [f"127.0.0.1:{other.port}"])
        assert house.control.config.usage == "observe"
        assert worker.pid == pid
        await other.stop()

    scene(play)


def test_hangups_in_a_row_are_one_reload(scene, until, capsys):
    async def play(house, engine):
        for usage in ("observe", "exact"):
            house.path.write_text(BASE + f"engines: [{engine.url}]\nusage: {usage}\n")
            os.kill(os.getpid(), signal.SIGHUP)
            await asyncio.sleep(0)
        await until(lambda: house.control.config.usage == "exact")
        await asyncio.sleep(0.3)

    scene(play)
    assert capsys.readouterr().err.count("the new configuration is in force") == 1


def test_what_was_sent_to_an_endpoint_that_has_left_is_not_told_as_its_successors(scene):
    async def play(house, engine):
        told = []
        house.control.bus.alone = False
        house.control.sharer.insert = lambda slot, blocks: told.append((slot, blocks))
        (member,) = house.control.fleet.members.values()
        house.control.fleet.move(member, "127.0.0.9")
        house.control.shared.table.set_row(member.slot, generation=member.generation)
        words = array("Q")
        for generation in (1, 2):
            words.extend([generation << 32 | member.slot, 1, 70 + generation])
        house.control._on_sent(Sent(words.tobytes()))
        assert told == [(member.slot, array("Q", [72]).tobytes())]

    scene(play)


def test_reload_of_an_engine_at_the_same_name_but_another_place(scene, engine_double, until):
    async def play(house, engine):
        house.path.write_text(BASE + f"engines: [{{url: {engine.url}, name: a}}]\n")
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: list(house.control.fleet.members) == ["a"])
        slot = house.control.fleet.members["a"].slot
        other = await engine_double().start()
        house.path.write_text(BASE + f"engines: [{{url: {other.url}, name: a}}]\n")
        os.kill(os.getpid(), signal.SIGHUP)
        await until(
            lambda: [m.slot for m in house.control.fleet.members.values()] not in ([], [slot])
        )
        await until(lambda: list(house.control.fleet.members) == ["a"])
        assert house.control.fleet.members["a"].url.port == other.port
        await other.stop()

    scene(play)


def test_reload_of_an_engine_with_another_profile(scene, until):
    async def play(house, engine):
        table = house.control.shared.table
        (member,) = house.control.fleet.members.values()
        house.path.write_text(BASE + f"engines: [{{url: {engine.url}, profile: 70b-h100-tp4}}]\n")
        os.kill(os.getpid(), signal.SIGHUP)
        times = PROFILES["70b-h100-tp4"].times
        await until(lambda: tuple(table.profile(member.slot).values())[:5] == times)
        assert list(house.control.fleet.members.values()) == [member]
        assert member.generation == 1

    scene(play)


def test_unready_while_it_drains(scene):
    async def play(house, engine):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0.1)
        answer = await house.get("/ready")
        assert (answer.status_code, answer.json()["reasons"]) == (503, ["draining"])

    assert scene(play) == 0


def test_a_second_signal_ends_the_drain(scene, until):
    async def play(house, engine):
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    assert scene(play, "") == 0
