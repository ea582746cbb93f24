"""Each kind of engine, by recorded answers over real sockets: what it is taken for, what it says.

The recordings name a path's status and body; every other path answers 404.
"""

import asyncio
import json
from pathlib import Path

import pytest

from engines.load import EngineLoad
from gateway.config import Config, Secret
from router import State
from tests.gateway.control.house import FAST, House

RECORDINGS = Path(__file__).parents[2] / "engines" / "recordings"
BUSY = {"running": 2.0, "waiting": 1.0}
HALF = {**BUSY, "kv_usage": 0.25}

CASES = [
    ("vllm", "vllm", EngineLoad(**HALF)),
    (
        "sglang",
        "sglang",
        EngineLoad(**HALF, kv_capacity_tokens=471258.0, generation_tokens=7557572.0),
    ),
    (
        "sglang_renamed",
        "sglang",
        EngineLoad(**HALF, kv_capacity_tokens=471258.0, generation_tokens=7557572.0),
    ),
    ("trtllm", "trtllm", EngineLoad(**HALF, block_size=32.0, kv_capacity_tokens=3200.0)),
    ("ollama", "ollama", None),
    ("ollama_without_models", "ollama", None),
    ("nim", "nim", EngineLoad(**HALF)),
    ("nim_1", "nim", EngineLoad(**HALF, prompt_tokens=40.0)),
    ("llamacpp", "llamacpp", EngineLoad(**BUSY, generation_tokens=34.0, prompt_tokens=12.0)),
    ("llamacpp_without_metrics", "llamacpp", None),
    ("tgi", "tgi", EngineLoad(**BUSY, requests=5.0, generation_tokens=340.0)),
    ("openai", "openai", None),
    ("openai_of_many", "openai", None),
]


def recording(name):
    return json.loads((RECORDINGS / f"{name}.json").read_text())


def play(engine_double, pen, until, answers, inside, **fields):
    """An engine that answers so; `inside(house, member, engine)` once it is ready."""

    async def run():
        engine = await engine_double().start()
        engine.recorded = answers
        house = House(FAST, pen)
        member = house.add(engine.url, **{"kind": "auto"} | fields)
        await until(lambda: house.state() is State.READY)
        await inside(house, member, engine)
        await house.prober.close()
        await engine.stop()

    asyncio.run(run())


@pytest.mark.parametrize(("name", "kind", "load"), CASES, ids=[case[0] for case in CASES])
def test_is_told_by_what_it_answers(engine_double, pen, until, name, kind, load):
    async def inside(house, member, engine):
        assert member.kind == kind
        listed = json.loads(engine.recorded["/v1/models"][1])["data"] or []
        assert set(member.models) == {entry["id"] for entry in listed}
        watch = house.prober.watches[0]
        if load is not None:
            await until(lambda: watch.load is not None)
        assert watch.load == load
        assert house.fleet.build(Config()).endpoints[0].kind == kind

    play(engine_double, pen, until, recording(name), inside)


def test_a_triton_tells_itself_and_its_metrics_stand_elsewhere(engine_double, pen, until):
    async def run():
        engine, metrics = [await engine_double().start() for _ in range(2)]
        engine.recorded = metrics.recorded = recording("triton")
        house = House(FAST, pen)
        member = house.add(engine.url, kind="auto", metrics_port=metrics.port)
        watch = house.prober.watches[0]
        wanted = EngineLoad(running=2.0, waiting=1.0, kv_usage=0.25, models_ready=("vllm_model",))
        await until(lambda: watch.load == wanted)
        assert member.kind == "triton"
        assert set(member.models) == {"vllm_model"}
        assert not engine.count("/metrics")
        await house.prober.close()
        await engine.stop()
        await metrics.stop()

    asyncio.run(run())


GENERATES = {
    "input": [
        {"name": "text_input", "data_type": "TYPE_STRING"},
        {"name": "sampling_parameters", "data_type": "TYPE_STRING"},
    ],
    "output": [{"name": "text_output", "data_type": "TYPE_STRING"}],
}
UNREAD = {
    "failing": ((500, {"error": "busy"}), "/v2/models/m/config answers 500"),
    "restricted": (
        (403, {"error": "This API is restricted, expecting header 'k'"}),
        '/v2/models/m/config answers 403: set `control_header: "k: ..."`',
    ),
    "silent": (None, "/v2/models/m/config does not answer within 0.3 s"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_a_configuration_that_is_not_read_takes_no_model_away(triton_double, pen, until, name):
    config, why = UNREAD[name]

    async def run():
        engine = await triton_double().start()
        engine.config = 200, GENERATES
        house = House(FAST, pen)
        member = house.add(engine.url, kind="triton")
        await until(lambda: house.state() is State.READY)
        models, changes = member.triton, house.changes
        assert set(models) == {"m"}
        if config is None:
            engine.hang.add("/v2/models/m/config")
        else:
            engine.config = config
        await until(lambda: house.described(0)["models_fault"] == why)
        assert (member.triton, house.changes) == (models, changes)
        assert house.state() is State.READY
        engine.hang.clear()
        engine.config = 404, {"error": "Request for unknown model: 'm' is not found"}
        await until(lambda: not member.triton)
        assert house.described(0)["models_fault"] == ""
        await house.prober.close()
        await engine.stop()

    asyncio.run(run())


def test_a_restricted_index_says_what_to_set(triton_double, pen, until):
    async def run():
        engine = await triton_double().start()
        engine.index_refusal = 403, "This API is restricted, expecting header 'admin-key'"
        house = House(FAST, pen)
        house.add(engine.url, kind="triton")
        wanted = '/v2/repository/index answers 403: set `control_header: "admin-key: ..."`'
        await until(lambda: house.described(0)["last_probe"] == wanted)
        assert house.state() is State.UNKNOWN
        await house.prober.close()
        await engine.stop()

    asyncio.run(run())


def test_admins_see_loads_rates_and_what_is_wrong(engine_double, pen, until):
    async def inside(house, member, engine):
        def described():
            return house.described(0)

        await until(lambda: described()["engine"] is not None)
        assert described()["kind"] == "tgi"
        assert described()["ends_with_connection"] is True
        assert described()["engine_fault"] == ""
        engine.recorded["/metrics"][1] += "tgi_request_duration_sum 7\n"
        await until(lambda: (described()["engine"]["rates"] or {}).get("requests_per_s") == 0.0)
        assert described()["engine"]["running"] == 2.0
        assert described()["engine"]["rates"]["generation_tokens_per_s"] == 0.0
        engine.recorded["/metrics"] = [500, ""]
        await until(lambda: described()["engine"] is None)
        assert described()["engine_fault"] == "answers 500"

    play(engine_double, pen, until, recording("tgi"), inside)


def test_what_is_configured_is_not_asked_for(engine_double, pen, until):
    async def inside(house, member, engine):
        assert member.kind == "vllm"
        assert {path for path, _ in engine.asked} <= {
            "/health",
            "/v1/models",
            "/metrics",
            "/kv_event_sources",
            "/is_sleeping",
        }

    play(engine_double, pen, until, recording("sglang"), inside, kind="vllm")


def test_it_is_asked_once_in_its_life(engine_double, pen, until):
    async def inside(house, member, engine):
        asked = engine.count("/v1/metadata")
        lists = engine.count("/v1/models")
        await until(lambda: engine.count("/v1/models") > lists + 2)
        assert engine.count("/v1/metadata") == asked == 1
        await engine.stop()
        await until(lambda: house.state() is State.OPEN)
        engine.recorded = recording("tgi")
        await engine.start()
        await until(lambda: member.kind == "tgi")
        await until(lambda: house.prober.watches[0].load == CASES[10][2])

    play(engine_double, pen, until, recording("vllm"), inside)


def test_its_own_health_decides_once_it_has_told(engine_double, pen, until):
    """A vLLM lists its models all the same when its engine is dead."""

    async def run():
        engine = await engine_double().start()
        engine.recorded = recording("vllm") | {"/health": [503, ""]}
        house = House(FAST, pen)
        house.add(engine.url, kind="auto")
        watch = house.prober.watches[0]
        await until(lambda: "503" in watch.last_probe)
        assert watch.last_probe == "/health answers 503"
        assert house.state() is State.UNKNOWN
        await house.prober.close()
        await engine.stop()

    asyncio.run(run())


def test_metrics_on_another_port_and_of_gpus(engine_double, pen, until):
    async def run():
        engine, metrics, gpus = [await engine_double().start() for _ in range(3)]
        engine.recorded = recording("vllm")
        metrics.metrics = "vllm:num_requests_running 9\n"
        gpus.metrics = 'DCGM_FI_DEV_GPU_UTIL{gpu="0"} 50\nDCGM_FI_DEV_GPU_UTIL{gpu="1"} 100\n'
        house = House(FAST, pen)
        house.add(
            engine.url,
            metrics_port=metrics.port,
            gpu_metrics=f"{gpus.url}/metrics",
            gpu_labels={"gpu": "0"},
            api_key=Secret("k"),
        )
        watch = house.prober.watches[0]
        wanted = EngineLoad(running=9.0, gpu_utilisation=0.5)
        await until(lambda: watch.load == wanted)
        assert not engine.count("/metrics")
        assert not any("Bearer" in head for _, head in metrics.asked + gpus.asked)
        await house.prober.close()
        for double in (engine, metrics, gpus):
            await double.stop()

    asyncio.run(run())


def test_ranks_are_told_apart(engine_double, pen, until):
    async def inside(house, member, engine):
        watch = house.prober.watches[0]
        await until(lambda: watch.load == EngineLoad(running=5.0))

    page = 'vllm:num_requests_running{engine="0"} 3\nvllm:num_requests_running{engine="1"} 5\n'
    answers = recording("vllm") | {"/metrics": [200, page]}
    play(engine_double, pen, until, answers, inside, rank=1)
