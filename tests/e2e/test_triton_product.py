"""A gateway process over scripted Tritons: what their probes tell it, and what it tells of them."""

import asyncio
import functools
import json

import httpx
import pytest
import uvloop

from tests.e2e.http2 import CANCEL
from tests.e2e.product import Product, until
from tests.e2e.triton import ENSEMBLE, Triton, first_and_then, responses

PATH = "/v1/completions"


async def serve(folder, scene, *engines):
    for engine in engines:
        await engine.start()
    house = Product()
    try:
        async with asyncio.timeout(60):
            await house.start(engines, folder)
            await scene(house)
            await until(functools.partial(is_idle, house))
    finally:
        code = await house.stop()
        for engine in engines:
            await engine.stop()
    assert code == 0
    assert not [line for line in house.lines if "Traceback" in line]


@pytest.fixture
def play_gateway(tmp_path):
    return lambda scene, *engines: uvloop.run(serve(tmp_path, scene, *engines))


async def loads(house):
    """Of each endpoint, as the admin port tells it."""
    async with httpx.AsyncClient(base_url=house.admin, trust_env=False) as client:
        told = await client.get("/admin/endpoints", headers={"authorization": "Bearer t"})
    return [entry["load"] for entry in told.json()["data"]]


async def in_flight(house):
    return sum(load["in_flight"] for load in await loads(house))


async def is_idle(house):
    return await in_flight(house) == 0


async def complete(house):
    answer = await house.client.post(PATH, json={"model": "sim", "prompt": "Hi"})
    return answer.status_code, answer.json()["choices"][0]["text"]


async def is_cancelled(house):
    metrics = await house.metrics()
    return any(n for name, n in metrics.items() if "client_gone" in name)


async def say_first(call):
    await call.asked.wait()
    call.head()
    call.say(responses("Hel")[0])


async def leave(house):
    """A client that goes after the first words."""
    body = {"model": "sim", "prompt": "Hi", "stream": True}
    async with house.client.stream("POST", PATH, json=body) as response:
        pieces = response.aiter_bytes()
        while b"Hel" not in await anext(pieces):
            pass
        assert await in_flight(house) == 1


def test_client_that_leaves(play_gateway):
    engine = Triton(first_and_then(say_first))

    async def scene(house):
        await leave(house)
        async with asyncio.timeout(10):
            await engine.calls[0].over.wait()
        assert engine.calls[0].reset == CANCEL
        assert await complete(house) == (200, "Hello world")

    play_gateway(scene, engine)


def test_client_that_leaves_an_ensemble(play_gateway):
    engine = Triton(first_and_then(say_first), config=ENSEMBLE)

    async def scene(house):
        await leave(house)
        await until(functools.partial(is_cancelled, house))
        await engine.links[0].settle()
        assert (await in_flight(house), engine.calls[0].reset) == (1, None)
        engine.calls[0].say(*responses("lo"))
        engine.calls[0].end()
        await until(functools.partial(is_idle, house))
        assert await complete(house) == (200, "Hello world")

    play_gateway(scene, engine)


# What a model in Triton cannot do -> what is said of it.
REFUSED = {
    "chat": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "Hi"}]},
        "has no chat template",
    ),
    "path": ("/v1/embeddings", {"input": "Hi"}, "/v1/embeddings"),
    "option": (PATH, {"prompt": "Hi", "logit_bias": {"5": 1}}, "logit_bias"),
}


@pytest.mark.parametrize("name", [*REFUSED, "fine"])
def test_what_would_be_refused_is_explained_as_that(play_gateway, name):
    path, body, words = REFUSED.get(name, (PATH, {"prompt": "Hi"}, ""))
    body = {"model": "sim", **body}

    async def scene(house):
        question = {"path": path, "headers": {}, "body": json.dumps(body), "key": ""}
        headers = {"authorization": "Bearer t"}
        async with httpx.AsyncClient(base_url=house.admin, trust_env=False) as client:
            answer = await client.post("/admin/explain", json=question, headers=headers)
        assert answer.status_code == 200, answer.text
        told = answer.json().get("refused", {"message": "", "status": 200})
        assert words in told["message"]
        sent = await house.client.post(path, json=body)
        assert sent.status_code == told["status"]

    play_gateway(scene, Triton())
