"""What engines serve is switched while they serve: the whole product over simulated vLLMs."""

import asyncio
import json
import os
import sys

import httpx
import pytest

from tests.e2e.product import Product, until

CHAT = "/v1/chat/completions"
HELD = "hold: {no_engine_s: 30}\n"


def asked(model="sim", **fields):
    return {"model": model, "messages": [{"role": "user", "content": "hi"}], **fields}


class Operator:
    """Talks to the admin port of a house."""

    def __init__(self, house, engines):
        self.house = house
        self.places = [engine.url.removeprefix("http://") for engine in engines]

    async def ask(self, method, path, body=None, at=0):
        place = f"{self.house.admin}/admin/endpoints/{self.places[at]}"
        async with httpx.AsyncClient(
            trust_env=False, timeout=60, headers={"authorization": "Bearer t"}
        ) as client:
            return await client.request(method, f"{place}/{path}", json=body)

    async def post(self, path, body=None, at=0):
        return await self.ask("POST", path, body, at)

    async def done(self, path, body=None, at=0):
        answer = await self.post(path, body, at)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def models(self, at=0):
        return (await self.ask("GET", "models", at=at)).json()

    async def endpoint(self, at=0):
        async with httpx.AsyncClient(trust_env=False) as client:
            answer = await client.get(
                f"{self.house.admin}/admin/endpoints/{self.places[at]}",
                headers={"authorization": "Bearer t"},
            )
        return answer.json()

    async def is_in(self, state, at=0):
        return (await self.endpoint(at))["state"] == state

    async def is_coming(self, model, at=0):
        return model in (await self.endpoint(at))["coming"]

    async def n_blocks(self, at=0):
        return (await self.endpoint(at))["cache"]["blocks"]


POET = {"name": "poet", "path": "/adapters/poet"}


def test_eight_callers_are_one_load(product):
    async def scene(house, engines):
        (engine,) = engines
        operator = Operator(house, engines)
        first = asyncio.create_task(operator.post("adapters", POET))
        await until(lambda: operator.is_coming("poet"))
        calls = [asyncio.create_task(operator.post("adapters", POET)) for _ in range(8)]
        first.cancel()
        answers = [call.json() for call in await asyncio.gather(*calls)]
        assert [answer["changed"] for answer in answers] == [True] * 8
        assert {answer["message"] for answer in answers} == {
            "Success: LoRA adapter 'poet' added successfully."
        }
        assert sum(answer["joined"] for answer in answers) == 8
        assert engine.state()["adapter_loads"] == 1
        again = await operator.done("adapters", POET)
        assert (again["changed"], engine.state()["adapter_loads"]) == (False, 1)
        assert "already" in again["message"]
        answer = await house.client.post(CHAT, json=asked("poet"))
        assert answer.status_code == 200, "the model table is read at once"

    product(scene, 1, switch_s=0.8)


def test_requests_for_what_is_being_loaded_wait(product):
    async def scene(house, engines):
        (engine,) = engines
        operator = Operator(house, engines)
        unknown = await house.client.post(CHAT, json=asked("poet"))
        assert (unknown.status_code, unknown.headers["x-headgate-reason"]) == (404, "unknown_model")
        load = asyncio.create_task(operator.done("adapters", POET))
        await until(lambda: operator.is_coming("poet"))
        assert engine.state()["adapter_loads"] == 0
        answers = await asyncio.gather(
            *(house.client.post(CHAT, json=asked("poet")) for _ in "123")
        )
        assert [answer.status_code for answer in answers] == [200] * 3
        assert (await load)["changed"]
        gone = await operator.ask("DELETE", "adapters/poet")
        assert gone.json()["changed"]
        answer = await house.client.post(CHAT, json=asked("poet"))
        assert answer.status_code == 404

    product(scene, 1, HELD, switch_s=1.0)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_what_comes_while_it_sleeps_is_answered_when_it_wakes(product, level):
    async def scene(house, engines):
        (engine,) = engines
        operator = Operator(house, engines)
        assert (await house.client.post(CHAT, json=asked())).status_code == 200
        done = await operator.done("sleep", {"level": level})
        assert done["changed"]
        assert await operator.is_in("asleep")
        found = await operator.models()
        assert found["asleep"]
        assert {one["state"] for one in found["data"]} == {"asleep"}
        again = await operator.done("sleep", {"level": level})
        assert not again["changed"]
        seen = engine.state()["requests_seen"]
        waiting = [asyncio.create_task(house.client.post(CHAT, json=asked())) for _ in range(5)]
        await until(lambda: held(house, 5))
        assert engine.state()["requests_seen"] == seen, "none of them hangs in the engine"
        assert (await operator.done("wake"))["changed"]
        answers = await asyncio.gather(*waiting)
        assert [answer.status_code for answer in answers] == [200] * 5
        assert engine.state()["has_weights"], "weights that were dropped are read again"
        assert not (await operator.done("wake"))["changed"]
        state = engine.state()
        assert (state["sleeps"], state["wakes"]) == (1, 1)

    product(scene, 1, HELD)


async def held(house, n):
    return (await house.metrics()).get("headgate_held_requests") == n


def test_asleep_is_not_now_and_not_unknown(product):
    async def scene(house, engines):
        operator = Operator(house, engines)
        await operator.done("sleep")
        answer = await house.client.post(CHAT, json=asked())
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "2"
        assert answer.headers["x-headgate-reason"] == "no_endpoint"
        assert (await house.client.get("/v1/models")).json()["data"][0]["id"] == "sim"
        await operator.done("wake")
        assert (await house.client.post(CHAT, json=asked())).status_code == 200

    product(scene, 1)


def test_one_of_two_falls_asleep_under_load(product):
    """Those that run there finish, the others go to the other one, and nobody notices."""

    async def scene(house, engines):
        operator = Operator(house, engines)
        answers = []

        async def ask():
            body = asked(stream=True, max_tokens=40)
            answers.append(await house.client.post(CHAT, json=body))

        running = [asyncio.create_task(ask()) for _ in range(20)]
        await until(lambda: engines[0].state()["running"] > 3)
        sleeping = asyncio.create_task(operator.done("sleep", {"level": 1}))
        running += [asyncio.create_task(ask()) for _ in range(20)]
        await sleeping
        before = engines[0].state()["requests_seen"]
        running += [asyncio.create_task(ask()) for _ in range(20)]
        await asyncio.gather(*running)
        assert {answer.status_code for answer in answers} == {200}
        for answer in answers:
            assert answer.text.endswith("data: [DONE]\n\n")
            assert '"finish_reason":"length"' in answer.text
        assert engines[0].state()["requests_seen"] == before

    product(scene, 2, profile="demo", time_scale=0.3)


def test_what_has_no_time_to_finish_is_cut_by_the_engine(product):
    async def scene(house, engines):
        operator = Operator(house, engines)
        body = asked(stream=True, max_tokens=20000)
        running = asyncio.create_task(house.client.post(CHAT, json=body))
        await until(lambda: engines[0].state()["running"] == 1)
        done = await operator.done("sleep", {"grace_s": 0.3})
        assert done["took_s"] >= 0.3
        assert '"finish_reason":"abort"' in (await running).text

    product(scene, 1, profile="demo")


def test_put_to_sleep_and_woken_by_others(product):
    async def scene(house, engines):
        (engine,) = engines
        operator = Operator(house, engines)
        async with httpx.AsyncClient(base_url=engine.url, trust_env=False) as other:
            await other.post("/sleep?level=1")
            await until(lambda: operator.is_in("asleep"))
            waiting = asyncio.create_task(house.client.post(CHAT, json=asked()))
            await until(lambda: held(house, 1))
            await other.post("/wake_up")
            assert (await waiting).status_code == 200
        assert await operator.is_in("ready")

    product(scene, 1, HELD)


def test_a_gateway_that_starts_when_its_engine_sleeps(tmp_path, new_sim):
    class Impatient(Product):
        async def all_up(self, _):
            return True

    async def scene():
        engine = new_sim()
        await engine.start()
        async with httpx.AsyncClient(base_url=engine.url, trust_env=False) as other:
            await other.post("/sleep?level=2")
        house = Impatient()
        await house.start([engine], tmp_path, HELD)
        try:
            operator = Operator(house, [engine])
            await until(lambda: operator.is_in("asleep"))
            causes = [one["cause"] for one in (await operator.endpoint())["transitions"]]
            assert causes == ["asleep"], "it was not ready in between"
            waiting = asyncio.create_task(house.client.post(CHAT, json=asked()))
            await until(lambda: held(house, 1))
            await operator.done("wake")
            assert (await waiting).status_code == 200
            assert engine.state()["has_weights"]
        finally:
            await house.stop()
            await engine.stop()

    asyncio.run(asyncio.wait_for(scene(), 60))


def test_what_was_cached_is_forgotten(product):
    async def scene(house, engines):
        operator = Operator(house, engines)
        await house.client.post(
            CHAT, json=asked(messages=[{"role": "user", "content": "w " * 4000}])
        )
        await until(lambda: has_blocks(operator))
        await operator.done("sleep", {"level": 1})
        assert await operator.n_blocks() == 0
        await operator.done("wake")
        await operator.done("adapters", POET)
        await house.client.post(
            CHAT, json=asked(messages=[{"role": "user", "content": "w " * 4000}])
        )
        await until(lambda: has_blocks(operator))
        again = await operator.done("adapters", {**POET, "path": "/adapters/poet-2"})
        assert again["changed"], "another path is another adapter"
        assert await operator.n_blocks() == 0

    product(scene, 1)


async def has_blocks(operator):
    return await operator.n_blocks() > 10


CANNOT = [
    ("POST", "load", {"model": "other"}, "was started with"),
    ("POST", "unload", {"model": "sim"}, "was started with"),
    ("POST", "adapters", POET, "VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
    ("POST", "sleep", None, "VLLM_SERVER_DEV_MODE"),
    ("POST", "wake", None, "VLLM_SERVER_DEV_MODE"),
]


def test_what_an_engine_cannot_do_it_says_itself(product):
    async def scene(house, engines):
        operator = Operator(house, engines)
        able = (await operator.models())["capabilities"]
        assert able.pop("sleep_levels") == []
        assert {name for name, one in able.items() if one["yes"]} == {"cancel"}
        for method, path, body, words in CANNOT:
            answer = await operator.ask(method, path, body)
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (501, "engine_cannot")
            assert words in error["message"]
        loaded = await operator.done("load", {"model": "sim"})
        assert (loaded["changed"], loaded["message"]) == (False, "'sim' is loaded already")
        gone = await operator.ask("DELETE", "adapters/poet")
        assert gone.status_code == 200
        assert not gone.json()["changed"]

    product(scene, 1, runtime_adapters=False, dev_mode=False)


BAD = [
    ("load", {}, "model"),
    ("load", {"model": ""}, "length"),
    ("load", {"model": "m", "timeout_s": 0}, "timeout_s"),
    ("load", {"model": "m", "what": 1}, "what"),
    ("sleep", {"level": 3}, "level"),
    ("adapters", {"name": "poet"}, "path"),
    ("wake", [], "object"),
]


def test_bad_orders(product):
    async def scene(house, engines):
        operator = Operator(house, engines)
        for path, body, words in BAD:
            answer = await operator.post(path, body)
            assert answer.status_code == 400, (path, body)
            assert words in answer.json()["error"]["message"]
        async with httpx.AsyncClient(trust_env=False) as client:
            for path in ("models", "load", "sleep"):
                url = f"{house.admin}/admin/endpoints/{operator.places[0]}/{path}"
                assert (await client.post(url)).status_code == 401
            nobody = await client.post(
                f"{house.admin}/admin/endpoints/nobody/wake", headers={"authorization": "Bearer t"}
            )
        assert nobody.status_code == 404
        taken = await operator.post("adapters", {"name": "sim", "path": "/x"})
        assert (taken.status_code, taken.json()["error"]["engine_status"]) == (409, 409)
        await operator.done("sleep", {"level": 1})
        deeper = await operator.post("sleep", {"level": 2})
        assert deeper.status_code == 409
        assert "level 1" in deeper.json()["error"]["message"]
        asleep = await operator.post("adapters", POET)
        assert "wake it" in asleep.json()["error"]["message"]

    product(scene, 1)


def test_who_has_no_more_time_is_told_and_the_load_goes_on(product):
    async def scene(house, engines):
        (engine,) = engines
        operator = Operator(house, engines)
        answer = await operator.post("adapters", {**POET, "timeout_s": 0.3})
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "still_running")
        assert "goes on" in answer.json()["error"]["message"]
        waited = await operator.done("adapters", POET)
        assert (waited["changed"], waited["joined"]) == (True, True)
        assert engine.state()["adapter_loads"] == 1

    product(scene, 1, switch_s=1.5)


def test_an_engine_that_is_gone(product):
    async def scene(house, engines):
        operator = Operator(house, engines)
        engines[0].fault("refuse")
        answer = await operator.post("adapters", POET)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_unreachable")
        assert "refused" in answer.json()["error"]["message"]
        assert (await operator.ask("GET", "models")).status_code == 503
        assert (await house.client.post(CHAT, json=asked())).status_code == 200, "the other serves"

    product(scene, 2)


async def command(house, folder, *arguments):
    """(exit code, standard output, standard error) of `headgate engines ...`"""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headgate", "engines", *arguments),
        *("--config", str(folder / "headgate.yaml"), "--admin", house.admin),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    out, err = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, out.decode(), err.decode()


def test_the_command_line(product, tmp_path):
    async def scene(house, engines):
        place = engines[0].url.removeprefix("http://")

        async def run(*arguments):
            code, out, err = await command(house, tmp_path, *arguments)
            assert (code, err) == (0, "")
            return out

        assert place in (await run("list")).splitlines()[1]
        assert "added successfully" in await run("load-adapter", place, "org/poet", "/a/poet")
        assert "nothing to do" in await run("load-adapter", place, "org/poet", "/a/poet")
        listed = await run("models", place)
        assert listed.splitlines()[2].split() == ["org/poet", "ready", "sim"]
        assert "levels 0, 1, 2" in listed
        assert await run("ready", place, "org/poet") == f"{place}: 'org/poet' is ready\n"
        assert "level 2" in await run("sleep", place, "--level", "2")
        assert "asleep" in (await run("list")).splitlines()[1]
        code, out, _ = await command(house, tmp_path, "ready", place, "sim")
        assert (code, out) == (1, f"{place}: 'sim' is not ready\n")
        assert json.loads(await run("wake", place, "--json"))["changed"]
        assert "removed successfully" in await run("unload-adapter", place, "org/poet")
        code, out, err = await command(house, tmp_path, "load", place, "other")
        assert (code, out) == (1, "")
        assert "answers 501: vLLM serves the model it was started with" in err
        code, _, err = await command(house, tmp_path, "load", place, "m", "--option", "x")
        assert (code, "NAME=VALUE" in err) == (2, True)

    product(scene, 1)
