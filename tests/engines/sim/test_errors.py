"""Refusals, word for word where a capture of vLLM 0.32 gives the words."""

from __future__ import annotations

import pytest

CHAT = "/v1/chat/completions"
HI = '"messages":[{"role":"user","content":"hi"}]'
JSON = "application/json"

REFUSALS = [
    (
        '{"model":"sim","messages":[{"role":"',
        "Bad Request",
        "body.35",
        "1 validation error:\n  {'type': 'json_invalid', 'loc': 'body.35', "
        "'msg': 'JSON decode error', 'input': '<dict of 0 items>', "
        "'ctx': {'error': 'Unterminated string starting at'}}",
    ),
    (
        "",
        "Bad Request",
        "body",
        "1 validation error:\n  {'type': 'missing', 'loc': 'body', 'msg': 'Field required', "
        "'input': 'None'}",
    ),
    (
        "[]",
        "Bad Request",
        "body",
        "1 validation error:\n  {'type': 'model_attributes_type', 'loc': 'body', 'msg': 'Input "
        "should be a valid dictionary or object to extract fields from', "
        "'input': '<list of 0 items>'}",
    ),
    (
        '{"model":"sim"}',
        "Bad Request",
        "body.messages",
        "1 validation error:\n  {'type': 'missing', 'loc': 'body.messages', "
        "'msg': 'Field required', 'input': '<dict of 1 items>'}",
    ),
    (
        f'{{{HI},"temperature":-1}}',
        "BadRequestError",
        "temperature",
        "temperature must be non-negative, got -1.0. (parameter=temperature, value=-1.0)",
    ),
    (
        f'{{{HI},"max_tokens":0}}',
        "BadRequestError",
        "max_tokens",
        "max_tokens must be at least 1, got 0. (parameter=max_tokens, value=0)",
    ),
    (
        f'{{{HI},"max_tokens":"abc"}}',
        "Bad Request",
        "body.max_tokens",
        "1 validation error:\n  {'type': 'int_parsing', 'loc': 'body.max_tokens', 'msg': 'Input "
        "should be a valid integer, unable to parse string as an integer', 'input': 'abc'}",
    ),
    (
        f'{{{HI},"max_tokens":99999}}',
        "BadRequestError",
        "max_tokens",
        "max_tokens=99999 cannot be greater than max_model_len=2048. Please request fewer output "
        "tokens. (parameter=max_tokens, value=99999)",
    ),
    (
        f'{{{HI},"stream_options":{{"include_usage":true}}}}',
        "BadRequestError",
        "stream_options",
        "Stream options can only be defined when `stream=True`. (parameter=stream_options)",
    ),
    (
        '{"messages":[]}',
        "BadRequestError",
        None,
        "Cannot apply chat template to an empty conversation. Provide at least one message.",
    ),
    (
        '{"stream":true,"messages":[{"role":"user","content":"' + "x" * 9000 + '"}]}',
        "BadRequestError",
        "input_tokens",
        None,
    ),
]


@pytest.mark.parametrize(("body", "kind", "param", "message"), REFUSALS)
def test_refusals(sim, body, kind, param, message):
    async def scenario(engine, client):
        response = await client.post(CHAT, content=body, headers={"content-type": JSON})
        assert response.status_code == 400
        assert response.headers["content-type"] == JSON
        error = response.json()["error"]
        assert list(error) == ["message", "type", "param", "code"]
        assert (error["type"], error["param"], error["code"]) == (kind, param, 400)
        if message is not None:
            assert error["message"] == message
        assert engine.state()["requests_refused"] == 1

    sim(scenario, max_model_len=2048)


def test_other_media_types(sim):
    async def scenario(engine, client):
        response = await client.post(
            CHAT, content=f"{{{HI}}}", headers={"content-type": "text/plain"}
        )
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, None)
        assert error["message"].endswith("Only 'application/json' is allowed")

    sim(scenario)


def test_a_body_that_is_no_utf8(sim):
    async def scenario(engine, client):
        response = await client.post(CHAT, content=b'{"a":"\xff"}', headers={"content-type": JSON})
        assert response.status_code == 400
        assert response.json() == {"detail": "There was an error parsing the body"}

    sim(scenario)


def test_an_unknown_model_names_the_base_names(sim):
    async def scenario(engine, client):
        body = f'{{"model":"nope",{HI}}}'
        response = await client.post(CHAT, content=body, headers={"content-type": JSON})
        assert (response.status_code, response.json()["error"]) == (
            404,
            {
                "message": "The model `nope` does not exist. Valid aliases: sim, chat.",
                "type": "NotFoundError",
                "param": "model",
                "code": 404,
            },
        )

    sim(scenario, aliases=("chat",), adapters=("poet",))


def test_no_route_and_wrong_method(sim):
    async def scenario(engine, client):
        lost = await client.get("/nope")
        assert (lost.status_code, lost.json()) == (404, {"detail": "Not Found"})
        wrong = await client.get(CHAT)
        assert (wrong.status_code, wrong.json()) == (405, {"detail": "Method Not Allowed"})
        assert wrong.headers["allow"] == "POST"
        head = await client.head("/health")
        assert (head.status_code, head.content) == (405, b"")

    sim(scenario)


def test_keys_guard_v1_only(sim):
    async def scenario(engine, client):
        refused = await client.get("/v1/models")
        assert (refused.status_code, refused.json()) == (401, {"error": "Unauthorized"})
        key = {"authorization": "Bearer secret"}
        assert (await client.get("/v1/models", headers=key)).status_code == 200
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/metrics")).status_code == 200

    sim(scenario, api_key="secret")


def test_the_smallest_context_still_serves(sim):
    async def scenario(engine, client):
        body = {"prompt": "a b c d", "max_tokens": 60}
        fits = await client.post("/v1/completions", json=body)
        assert fits.json()["usage"]["total_tokens"] == 64
        too_much = await client.post("/v1/completions", json={**body, "max_tokens": 61})
        assert too_much.json()["error"]["param"] == "input_tokens"
        natural = await client.post("/v1/completions", json={"prompt": "a " * 30})
        assert natural.json()["usage"]["total_tokens"] <= 64

    sim(scenario, kv_tokens=64, block_size=16)


def test_a_full_queue_refuses(sim):
    async def scenario(engine, client):
        engine.fault("freeze")
        queued = {"input": "x", "background": True}
        assert (await client.post("/v1/responses", json=queued)).status_code == 200
        response = await client.post("/v1/completions", json={"prompt": "x"})
        assert response.status_code == 503
        assert response.json()["error"]["type"] == "Service Unavailable"
        assert "retry-after" not in response.headers
        page = (await client.get("/metrics")).text
        assert 'reason="max_num_queued_reqs"} 1.0' in page

    sim(scenario, max_num_queued_reqs=1)
