"""Probes, scrapes and the breaker against engines on real sockets."""

import asyncio
import ssl
import time
from array import array

import pytest
import trustme

from gateway.config import Engine, Secret
from gateway.config.schema import Health as HealthConfig
from router import State, make_policy
from router._demand import Demand
from router._router import Router
from tests.gateway.control.house import FAST, House

# Nothing comes of the interval in these: the tick alone finds it out.
TICK_ALONE = HealthConfig(interval_s=60.0, timeout_s=0.3, backoff_s=0.3)


@pytest.fixture
def scene(engine_double, pen, until):
    """Run `play(house, engine)` with one engine that is READY (or as `ready` says)."""

    def run(play, config=FAST, ready=State.READY, **fields):
        async def inside():
            engine = await engine_double().start()
            for name, value in fields.items():
                setattr(engine, name, value)
            house = House(config, pen)
            house.add(engine.url)
            await until(lambda: house.state() is ready)
            await play(house, engine)
            await house.prober.close()
            await engine.stop()

        asyncio.run(inside())

    return run


def test_ready_after_health_and_models(scene):
    async def play(house, engine):
        assert house.fleet.members[f"127.0.0.1:{engine.port}"].models.keys() == {"m"}
        assert house.changes >= 1
        assert house.table.row(0) == (State.READY, 1.0, 1)
        assert {path for path, _ in engine.asked} >= {"/health", "/v1/models"}

    scene(play)


def test_no_health_route_no_harm(scene):
    async def play(house, engine):
        engine.models_status = 500

    scene(play, health=404)


def test_an_engine_that_is_loading_and_one_that_wants_a_key(engine_double, pen, until):
    async def inside():
        loading, locked = await engine_double().start(), await engine_double().start()
        loading.health, locked.models_status = 503, 401
        house = House(FAST, pen)
        house.add(loading.url)
        house.add(locked.url)
        watches = house.prober.watches
        await until(lambda: all("not probed" not in w.health.reason for w in watches.values()))
        assert watches[0].health.reason == "/health answers 503"
        assert watches[1].health.reason == (
            "/v1/models answers 401: its `api_key` is missing or wrong"
        )
        assert house.state(0) is house.state(1) is State.UNKNOWN
        assert not house.fleet.is_complete()
        loading.health, locked.models_status = 200, 200
        await until(lambda: house.state(0) is house.state(1) is State.READY)
        await house.prober.close()
        await loading.stop()
        await locked.stop()

    asyncio.run(inside())


def test_key_host_and_tls(engine_double, pen, until, tmp_path):
    async def inside():
        authority = trustme.CA()
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("localhost").configure_cert(context)
        engine = await engine_double().start(ssl=context)
        house = House(FAST, pen)
        url = f"https://localhost:{engine.port}"
        member = house.add(url, ca_file=str(tmp_path / "ca.pem"), api_key=Secret("k"))
        house.add(url, name="distrusted")
        await until(lambda: house.state(0) is State.READY)
        assert member.address in ("127.0.0.1", "::1")
        head = engine.asked[0][1].lower()
        assert f"host: localhost:{engine.port}\r\n" in head
        assert "authorization: bearer k\r\n" in head
        await until(lambda: "certificate" in house.prober.watches[1].health.reason.lower())
        assert house.state(1) is State.UNKNOWN
        await house.prober.close()
        await engine.stop()

    asyncio.run(inside())


def test_a_name_without_an_address(pen, until):
    async def inside():
        house = House(FAST, pen)
        house.add("http://no-such-host.invalid:1")
        await until(lambda: "has no address" in house.prober.watches[0].health.reason)
        await house.prober.close()

    asyncio.run(inside())


def test_an_idle_engine_that_goes_is_found_dead(scene, until):
    async def play(house, engine):
        await engine.stop()
        assert await until(lambda: house.condemned) < 1.0
        (condemn,) = house.condemned
        assert (condemn.slot, condemn.generation, condemn.hung) == (0, 1, False)
        assert condemn.why == "dead: cannot connect: Connection refused"
        assert house.state() is State.OPEN
        await engine.start()
        await until(lambda: house.state() is State.TRIAL)
        assert len(house.condemned) == 1

    scene(play)


def test_a_failed_dial_is_followed_up_at_once(scene, until):
    async def play(house, engine):
        await engine.stop()
        house.cell.dials_in_row = 1
        assert await until(lambda: house.condemned) < 0.5
        assert house.state() is State.OPEN

    scene(play, TICK_ALONE)


def test_failures_open_and_a_trial_closes(scene, until):
    async def play(house, engine):
        house.pen.cells[0][0].failures_in_row = 3
        house.pen.cells[1][0].failures_in_row = 2
        assert await until(lambda: house.state() is State.OPEN) < 0.3
        assert not house.condemned
        assert await until(lambda: house.state() is State.TRIAL) > 0.2
        house.cell.successes += 1
        await until(lambda: house.state() is State.READY)
        assert house.table.row(0)[1] < 0.3
        await until(lambda: house.table.row(0)[1] == 1.0)

    scene(play)


def test_a_lost_trial_opens_again(scene, until):
    async def play(house, engine):
        house.cell.failures_in_row = 1000
        await until(lambda: house.state() is State.TRIAL)
        house.cell.failures_in_row = 1001
        await until(lambda: house.state() is State.OPEN)
        assert house.prober.watches[0].health.backoff_s == 0.6

    scene(play)


def test_an_engine_that_says_its_engine_is_dead(scene, until):
    async def play(house, engine):
        engine.health = 503
        await until(lambda: house.state() is State.OPEN)
        assert house.prober.watches[0].health.reason == "/health answers 503"
        assert not house.condemned

    scene(play)


STALLED = "vllm:num_requests_running 2\nvllm:generation_tokens_total 77\n"


def test_a_stalled_engine_is_condemned_though_its_health_is_well(scene, until):
    async def play(house, engine):
        house.cell.producing = 2
        house.cell.last_event_s = time.monotonic()
        assert 0.3 < await until(lambda: house.condemned) < 2.0
        assert house.condemned[0].hung
        assert house.state() is State.OPEN
        await asyncio.sleep(0.7)
        assert house.state() is State.OPEN
        engine.metrics = STALLED.replace("77", "78")
        await until(lambda: house.state() is State.TRIAL)

    scene(play, metrics=STALLED)


def test_a_page_that_does_not_come_is_unknown_and_no_stall(scene, until):
    async def play(house, engine):
        await until(lambda: house.prober.watches[0].load is not None)
        engine.hang.add("/metrics")
        house.cell.producing = 2
        asked = engine.count("/metrics")
        await until(lambda: engine.count("/metrics") > asked + 3)
        assert house.state() is State.READY
        assert house.prober.watches[0].load is None

    scene(play, metrics=STALLED)


def picks(house, n=4):
    """Slots that get requests, of those that are there."""
    router = Router(house.table, 0, make_policy("round-robin"), None)
    sent = [
        router.send(Demand(), sorted(house.prober.watches), array("Q"), 1.0, 16.0, 0.0)
        for _ in range(n)
    ]
    for dispatch in filter(None, sent):
        dispatch.release(0.0)
    return [dispatch and dispatch.slot for dispatch in sent]


@pytest.mark.parametrize(
    ("too_much", "bearable"),
    [
        ("vllm:num_requests_waiting 32", "vllm:num_requests_waiting 31"),
        ("vllm:kv_cache_usage_perc 0.96", "vllm:kv_cache_usage_perc 0.94"),
        ("vllm:num_requests_waiting 99", ""),
    ],
    ids=["waiting", "kv cache", "no longer said"],
)
def test_an_engine_that_says_it_has_too_much_gets_nothing(
    engine_double, pen, until, too_much, bearable
):
    async def inside():
        busy, idle = await engine_double().start(), await engine_double().start()
        busy.metrics = too_much + "\n"
        house = House(FAST, pen)
        house.add(busy.url)
        house.add(idle.url)
        await until(lambda: house.state(0) is house.state(1) is State.READY)
        await until(lambda: set(picks(house)) == {1})
        busy.metrics = bearable + "\n"
        await until(lambda: set(picks(house)) == {0, 1})
        await house.prober.close()
        await busy.stop()
        await idle.stop()

    asyncio.run(inside())


def test_an_engine_gets_no_more_than_it_takes(engine_double, pen, until):
    async def inside():
        engine = await engine_double().start()
        house = House(FAST, pen)
        member = house.add(engine.url, max_in_flight=2)
        await until(lambda: house.state() is State.READY)
        assert picks(house) == [0, 0, None, None]
        member.engine = Engine(url=engine.url, max_in_flight=3)
        house.prober.refit(member)
        assert picks(house) == [0, 0, 0, None]
        await house.prober.close()
        await engine.stop()

    asyncio.run(inside())


def test_an_engine_that_answers_nothing_opens(scene, until):
    async def play(house, engine):
        engine.hang.update(["/health", "/metrics", "/v1/models"])
        await until(lambda: house.state() is State.OPEN)
        assert house.prober.watches[0].health.reason == "/health does not answer within 0.3 s"
        assert not house.condemned

    scene(play)


@pytest.mark.parametrize(
    "body",
    ['{"data":[{"id":"m","x":NaN}]}', '{"data":[{"id":"\\ud800"}]}', '{"data":1}', "[" * 5000],
)
def test_a_model_list_that_cannot_be_told_again_is_none(scene, until, body):
    """It goes on to workers and clients: one bad engine must not stop the others' news."""

    async def play(house, engine):
        (member,) = house.fleet.members.values()
        engine.models_body = body
        asked = engine.count("/v1/models")
        await until(lambda: engine.count("/v1/models") > asked + 2)
        assert set(member.models) == {"m"}

    scene(play)


def test_models_come_and_go_and_outlive_a_failed_reading(scene, until):
    async def play(house, engine):
        (member,) = house.fleet.members.values()
        engine.models = ["m", "lora"]
        await until(lambda: set(member.models) == {"m", "lora"})
        changes = house.changes
        engine.models_status = 500
        asked = engine.count("/v1/models")
        await until(lambda: engine.count("/v1/models") > asked + 2)
        assert house.state() is State.READY
        assert (set(member.models), house.changes) == ({"m", "lora"}, changes)

    scene(play)


def test_draining_and_back_and_leaving(scene, until):
    async def play(house, engine):
        (member,) = house.fleet.members.values()
        house.prober.drain(member)
        assert house.state() is State.DRAINING
        await asyncio.sleep(0.5)
        assert house.state() is State.DRAINING
        house.prober.undrain(member)
        await until(lambda: house.state() is State.READY)
        house.cell.in_flight = 1
        member.leaving = True
        house.prober.drain(member)
        await asyncio.sleep(0.3)
        assert house.left == []
        house.cell.in_flight = 0
        await until(lambda: house.left == [member.name])
        assert house.state() is State.EMPTY

    scene(play)


def test_another_address_condemns_what_ran_at_the_old_one(scene, until):
    async def play(house, engine):
        (member,) = house.fleet.members.values()
        await engine.stop()

        async def resolve(member):
            return ["127.0.0.2"]

        house.prober._probe.resolve = resolve
        await until(lambda: member.address == "127.0.0.2")
        assert [(c.generation, c.hung) for c in house.condemned] == [(1, False)]
        assert house.table.row(0) == (State.UNKNOWN, 1.0, 2)

    scene(play)


def test_adapters_that_an_engine_has_in_use(scene, until):
    async def play(house, engine):
        def cost_s(name):
            return house.shared.adapters.cost_s(house.table, name, 0, time.monotonic())

        assert cost_s("a") == cost_s("b") == 0.5
        line = 'vllm:lora_requests_info{max_lora="1",running_lora_adapters="a"} 5.0'
        engine.metrics = line + "\n"
        await until(lambda: cost_s("a") == 0)
        assert cost_s("b") == 1.0, "its only slot is taken"
        # It dies: whatever comes back has none.
        await engine.stop()
        await until(lambda: house.state() is State.OPEN)
        assert cost_s("a") == 0.5

    scene(play)


def test_a_row_has_its_labels(engine_double, pen, until):
    async def inside():
        engine = await engine_double().start()
        house = House(FAST, pen)
        member = house.add(engine.url, role="decode", labels={"gpu": "h100"})
        await until(lambda: house.state() is State.READY)
        policy = make_policy("least-requests")
        assert policy.choose(house.table, [0], labels=member.labels) == 0
        assert policy.choose(house.table, [0], labels=1 << 1) is None
        member.labels = 1 << 1
        house.prober.refit(member)
        assert policy.choose(house.table, [0], labels=1 << 1) == 0
        await house.prober.close()
        await engine.stop()

    asyncio.run(inside())
