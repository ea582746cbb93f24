"""What the gateway refuses by itself: status, reason, dialect; no engine hears of it."""

import json

import pytest
from openai import APIStatusError

CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
JSON = ("Content-Type", "application/json")

# name -> (method, path, body, headers), status, reason
CASES = {
    "unknown path": (("POST", "/v1/nothing", {}, ()), 404, "unknown_path"),
    "method": (("GET", CHAT, None, ()), 405, "method_not_allowed"),
    "no body": (("POST", CHAT, None, ()), 400, "bad_json"),
    "empty body": (("POST", CHAT, b"", ()), 400, "bad_json"),
    "array": (("POST", CHAT, b"[1]", ()), 400, "bad_json"),
    "cut off": (("POST", CHAT, b'{"model":"si', ()), 400, "bad_json"),
    "text": (("POST", CHAT, b"hello", ()), 400, "bad_json"),
    "deep": (("POST", CHAT, b'{"a":' + b"[" * 200 + b"]" * 200 + b"}", ()), 400, "bad_json"),
    "behind the end": (("POST", CHAT, b'{"model":"sim"}{}', ()), 400, "bad_json"),
    "model is a number": (("POST", CHAT, {"model": 5}, ()), 400, "bad_model"),
    "model is an object": (("POST", CHAT, {"model": {}}, ()), 400, "bad_model"),
    "duplicate model": (("POST", CHAT, b'{"model":"sim","model":7}', ()), 400, "bad_model"),
    "escaped duplicate": (
        ("POST", CHAT, b'{"model":"sim","m\\u006fdel":"none"}', ()),
        404,
        "unknown_model",
    ),
    "no model of two": (("POST", CHAT, {}, ()), 400, "no_model"),
    "null model of two": (("POST", CHAT, {"model": None}, ()), 400, "no_model"),
    "unknown model": (("POST", CHAT, {"model": "none"}, ()), 404, "unknown_model"),
    "long model": (("POST", CHAT, {"model": "m" * 3000}, ()), 404, "unknown_model"),
    "model that is no UTF-8": (("POST", CHAT, b'{"model":"\xff"}', ()), 404, "unknown_model"),
    "too large": (("POST", CHAT, b" " * 5000, ()), 413, "body_too_large"),
    "gzip": (("POST", CHAT, {}, [("Content-Encoding", "gzip")]), 415, "content_encoding"),
    "websocket": (
        ("GET", "/v1/realtime", None, [("Connection", "upgrade"), ("Upgrade", "websocket")]),
        501,
        "upgrade",
    ),
    "kv transfer": (
        ("POST", CHAT, {"model": "sim", "kv_transfer_params": {"x": 1}}, ()),
        400,
        "forbidden_field",
    ),
    "previous response": (
        ("POST", "/v1/responses", {"model": "sim", "previous_response_id": "resp_1"}, ()),
        404,
        "unknown_response",
    ),
    "response": (("GET", "/v1/responses/resp_1", None, ()), 404, "unknown_response"),
    "cancel": (("POST", "/v1/responses/resp_1/cancel", None, ()), 404, "unknown_response"),
    "no form": (("POST", "/v1/audio/transcriptions", b"x", ()), 400, "bad_json"),
    "metrics": (("GET", "/metrics", None, ()), 404, "unknown_path"),
    "unknown card": (("GET", "/v1/models/none", None, ()), 404, "unknown_model"),
    "messages": (("POST", MESSAGES, {"model": "none"}, ()), 404, "unknown_model"),
    "messages, no JSON": (("POST", MESSAGES, b"x", ()), 400, "bad_json"),
}


@pytest.mark.parametrize("name", CASES)
def test_refusal(play, script, name):
    (method, path, body, headers), status, reason = CASES[name]
    engine = script([])

    async def scene(house):
        wire = await house.dial()
        answer = await wire.ask(method, path, body, headers)
        assert (answer.status, answer.reason, answer.complete) == (status, reason, True)
        assert len(answer.body) < 1000
        assert answer["content-type"] == "application/json"
        assert answer.get("x-request-id")
        check_shape(answer, path)
        assert house.reasons() == {reason: 1}
        # The connection goes on unless the body was left unread.
        if answer.get("connection") != "close":
            assert (await wire.ask("GET", "/health")).status == 200

    play(scene, engine, models={"sim": [0], "other": [0]}, body_bytes=4096)
    assert engine.opened == 0


def check_shape(answer, path):
    error = answer.json["error"]
    if path == MESSAGES:
        assert answer.json["type"] == "error"
        assert set(error) == {"type", "message"}
    else:
        assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]


def test_the_sole_model_needs_no_name(play, script):
    engine = script([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"])

    async def scene(house):
        assert (await house.ask(body={})).status == 200
        assert (await house.ask(body={"model": None})).status == 200

    play(scene, engine)
    assert engine.asked[0].json == {}


def test_no_model_names_the_choices(play, script):
    async def scene(house):
        answer = await house.ask(body={})
        message = answer.json["error"]["message"]
        assert "sim" in message
        assert "nick" in message

    play(scene, script([]), models={"sim": [0], "b": [0]}, aliases={"nick": {"sim": 1}})


@pytest.mark.parametrize(
    ("options", "body"),
    [
        ({"models": {}, "complete": False}, {"model": "sim"}),
        ({"models": {}, "complete": False}, {}),
        ({"models": {"other": [0]}, "complete": False}, {"model": "sim"}),
        ({"models": {"sim": []}}, {"model": "sim"}),
    ],
)
def test_what_may_come_back_is_503(play, script, options, body):
    async def scene(house):
        answer = await house.ask(body=body)
        assert (answer.status, answer.reason) == (503, "no_endpoint")
        assert int(answer["retry-after"]) > 0

    play(scene, script([]), **options)


@pytest.mark.parametrize("state", ["UNKNOWN", "OPEN", "DRAINING", "EMPTY"])
def test_an_endpoint_out_of_service_gets_nothing(play, script, state):
    from router import State

    engine = script([])

    async def scene(house):
        house.state(0, State[state])
        answer = await house.ask(body={"model": "sim"})
        assert (answer.status, answer.reason) == (503, "no_endpoint")
        assert answer["retry-after"]

    play(scene, engine)
    assert engine.opened == 0


KEYS = {"k1": {}, "k2": {"models": ["sim"]}}
KEY_CASES = {
    "none": ((), "sim", 401),
    "wrong": ([("Authorization", "Bearer x")], "sim", 401),
    "basic": ([("Authorization", "Basic k1")], "sim", 401),
    "bare": ([("Authorization", "k1")], "sim", 401),
    "empty": ([("Authorization", "Bearer ")], "sim", 401),
    "prefix": ([("Authorization", "Bearer k")], "sim", 401),
    "bearer": ([("Authorization", "Bearer k1")], "sim", 200),
    "case": ([("authorization", "bearer k1")], "sim", 200),
    "x-api-key": ([("x-api-key", "k1")], "sim", 200),
    "wrong x-api-key": ([("x-api-key", "k3")], "sim", 401),
    "its model": ([("x-api-key", "k2")], "sim", 200),
    "not its model": ([("x-api-key", "k2")], "other", 403),
    "not its alias": ([("x-api-key", "k2")], "nick", 403),
}


@pytest.mark.parametrize("name", KEY_CASES)
@pytest.mark.parametrize("path", [CHAT, MESSAGES])
def test_keys(play, script, name, path):
    headers, model, status = KEY_CASES[name]
    engine = script([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"])

    async def scene(house):
        answer = await house.ask("POST", path, {"model": model}, headers)
        assert answer.status == status
        if status == 401:
            assert answer.reason == "unauthorized"
            assert answer["www-authenticate"] == "Bearer"
            check_shape(answer, path)
        if status == 403:
            assert answer.reason == "forbidden_model"
        await house.until(lambda: house.access or house.worker.plane.tick())

    play(scene, engine, models={"sim": [0], "other": [0]}, aliases={"nick": {"sim": 1}}, keys=KEYS)
    for asked in engine.asked:
        assert not asked.all("authorization")
        assert not asked.all("x-api-key")


def test_what_needs_no_key(play, script):
    async def scene(house):
        assert (await house.ask("GET", "/health")).status == 200
        assert (await house.ask("GET", "/v1/models")).status == 401
        listed = await house.ask("GET", "/v1/models", None, [("x-api-key", "k1")])
        assert [card["id"] for card in listed.json["data"]] == ["sim"]
        origin = [("Origin", "https://a.example")]
        answer = await house.ask("OPTIONS", CHAT, None, origin)
        assert (answer.status, answer["access-control-allow-origin"]) == (204, origin[0][1])
        answer = await house.ask("POST", CHAT, {}, origin)
        assert (answer.status, answer["access-control-allow-origin"]) == (401, origin[0][1])
        assert "x-headgate-reason" in answer["access-control-expose-headers"]
        answer = await house.ask("OPTIONS", CHAT, None, [("Origin", "https://b.example")])
        assert (answer.status, answer.get("access-control-allow-origin")) == (405, None)

    play(scene, script([]), keys=KEYS, cors_origins=["https://a.example"])


def test_the_openai_client_maps_the_errors(play, script):
    """Status and body make the client raise what its users catch."""
    import httpx
    import openai

    expected = {
        "unknown model": openai.NotFoundError,
        "array": openai.BadRequestError,
        "method": APIStatusError,
    }

    async def scene(house):
        for name, kind in expected.items():
            (method, path, body, headers), status, _ = CASES[name]
            answer = await house.ask(method, path, body, headers)
            response = httpx.Response(
                status, json=answer.json, request=httpx.Request(method, "http://x" + path)
            )
            client = openai.OpenAI(api_key="x", base_url="http://x")
            error = client._make_status_error_from_response(response)
            assert isinstance(error, kind)
            assert json.loads(answer.body)["error"]["message"] in str(error)

    play(scene, script([]), models={"sim": [0], "other": [0]})
