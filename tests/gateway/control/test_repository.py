"""Loading and unloading a model at every Triton, as Triton's own protocol asks for it."""

import asyncio
import json

import pytest

from gateway.engine_control import EngineControl
from gateway.engine_switch import Surroundings
from gateway.repository import change_repository
from router import State
from tests.gateway.control.house import FAST, House

SLOW = "/v2/repository/models/slow/load"


@pytest.fixture
def scene(triton_double, pen, until):
    """Run `play(house, change, engines)` with Tritons that are ready, and an endpoint that is none;
    `change(model, verb, body)` asks for it."""

    def run(play, n=1):
        async def inside():
            tritons = [await triton_double().start() for _ in range(n)]
            for triton in tritons:
                triton.states["slow"] = ""
            house = House(FAST, pen)
            for triton in tritons:
                house.add(triton.url, kind="triton")
            house.add("http://127.0.0.1:1", kind="vllm")
            await until(lambda: all(house.state(slot) is State.READY for slot in range(n)))
            control = EngineControl(
                Surroundings(house.prober, house.caches, house._on_change, lambda slot: 0)
            )

            def change(model, verb="load", body=b""):
                members = list(house.fleet.members.values())
                return change_repository(control, members, model, verb, body)

            try:
                await play(house, change, tritons)
            finally:
                await control.close()
                await house.prober.close()
                for triton in tritons:
                    await triton.stop()

        asyncio.run(inside())

    return run


def asked_of(triton):
    return [order for order in triton.orders() if order[0] != "headgate-asks-whether-it-may"]


def test_callers_share_one_load_and_its_requests_are_held(scene, until):
    async def play(house, change, tritons):
        (triton,) = tritons
        member = house.fleet.members[triton.url.removeprefix("http://")]
        triton.held[SLOW] = asyncio.Event()
        calls = [asyncio.create_task(change("slow")) for _ in range(4)]
        await until(lambda: asked_of(triton))
        assert member.coming == {"slow"}
        calls[0].cancel()
        calls.append(asyncio.create_task(change("slow")))
        await asyncio.sleep(0.05)
        triton.held[SLOW].set()
        assert await asyncio.gather(*calls[1:]) == [(200, b"")] * 4
        assert asked_of(triton) == [("slow", "load", "")]
        assert not member.coming
        assert set(member.models) == {"m", "slow"}, "whoever loads one may ask it at once"

    scene(play)


ORDERS = {
    "load": ("slow", "load", b"", ""),
    "again: its files may have changed": ("m", "load", b"{}", ""),
    "overrides": (
        "slow",
        "load",
        b'{"parameters":{"config":"{}","file:1/a":"Zg=="}}',
        '{"parameters":{"config":"{}","file:1/a":"Zg=="}}',
    ),
    "unload": ("m", "unload", b'{"parameters":{"unload_dependents":false}}', ""),
    "with its steps": (
        "m",
        "unload",
        b'{"parameters":{"unload_dependents":true}}',
        '{"parameters":{"unload_dependents":true}}',
    ),
}


@pytest.mark.parametrize("name", ORDERS)
def test_it_is_done_at_all_of_them(scene, name):
    model, verb, body, wanted = ORDERS[name]

    async def play(house, change, tritons):
        assert await change(model, verb, body) == (200, b"")
        for triton in tritons:
            assert asked_of(triton) == [(model, verb, wanted)]
            assert triton.states[model] == ("READY" if verb == "load" else "UNAVAILABLE")

    scene(play, 2)


def test_an_unload_does_not_wait_for_long_streams(scene, until, monkeypatch):
    monkeypatch.setattr("gateway.repository.UNLOAD_S", 0.5)

    async def play(house, change, tritons):
        (triton,) = tritons
        member = house.fleet.members[triton.url.removeprefix("http://")]
        triton.unloaded = "UNLOADING"
        assert await change("m", "unload") == (200, b"")
        assert member.going == {"m"}
        triton.states["m"] = "UNAVAILABLE"
        await until(lambda: not member.going)
        assert "m" not in member.models

    scene(play)


def test_who_waits_in_vain_is_told_so(scene, until, monkeypatch):
    monkeypatch.setattr("gateway.repository.UNLOAD_S", 0.2)

    async def play(house, change, tritons):
        (triton,) = tritons
        triton.held[SLOW] = asyncio.Event()
        load = asyncio.create_task(change("slow"))
        await until(lambda: asked_of(triton))
        status, body = await change("slow", "unload")
        assert status == 504
        assert "ask again" in json.loads(body)["error"]
        triton.held[SLOW].set()
        assert await load == (200, b"")

    scene(play)


NO_CONTROL = "explicit model load / unload is not allowed if polling is enabled"
REFUSED = {
    "broken": ({"refusal": (400, "load failed: out of memory")}, 400, "load failed: out of memory"),
    "no control": ({"refusal": (503, NO_CONTROL)}, 503, NO_CONTROL),
    "restricted": (
        {"index_refusal": (403, "This API is restricted, expecting header 'admin-key'")},
        503,
        'set `control_header: "admin-key: ..."`',
    ),
    "silent": ({"hang": {"/v2/repository/index"}}, 503, "does not answer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_one_of_them_refuses(scene, name, monkeypatch):
    fields, status, text = REFUSED[name]
    monkeypatch.setattr("gateway.conversation.LOOK_S", 0.3)

    async def play(house, change, tritons):
        for field, value in fields.items():
            setattr(tritons[1], field, value)
        found, body = await change("slow")
        assert (found, list(json.loads(body))) == (status, ["error"])
        assert text in json.loads(body)["error"]
        assert tritons[0].states["slow"] == "READY", "the other has done it"

    scene(play, 2)


NONSENSE = {
    "unknown": (("x", "load", b""), 500, "failed to load 'x'"),
    "another verb": (("m", "index", b""), 404, "index"),
    "no JSON": (("m", "load", b"{"), 400, "not as expected"),
    "no parameters": (("m", "load", b'{"parameters":1}'), 400, "not as expected"),
    "unknown parameter": (("m", "unload", b'{"parameters":{"x":1}}'), 400, "'x'"),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_what_makes_no_sense(scene, name):
    order, status, text = NONSENSE[name]

    async def play(house, change, tritons):
        found, body = await change(*order)
        assert found == status
        assert text in json.loads(body)["error"]

    scene(play)


def test_none_is_there(scene):
    async def play(house, change, tritons):
        found, body = await change("m")
        assert (found, json.loads(body)) == (503, {"error": "no Triton is known here"})

    scene(play, 0)
