"""KServe's protocol on the data port: routes, refusals in Triton's shape, what is relayed how."""

import json

import pytest

from gateway._shared import Count
from router import State

JSON = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
EVENTS = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
TRITON = {0: {"kind": "triton"}}
INFER = "/v2/models/m/infer"


def chunk(data):
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(text):
    return b"data: " + json.dumps({"text_output": text}).encode() + b"\n\n"


LOCAL = {
    "live": ("GET", "/v2/health/live", 200, b""),
    "ready": ("GET", "/v2/health/ready", 200, b""),
    "model": ("GET", "/v2/models/m/ready", 200, b""),
    "alias": ("GET", "/v2/models/nick/ready", 200, b""),
    "version": ("GET", "/v2/models/m/versions/1/ready", 200, b""),
    "other engine's": ("GET", "/v2/models/v/ready", 400, b'{"error":"Model version not ready"}'),
    "unknown": ("GET", "/v2/models/nope/ready", 400, b'{"error":"Model version not ready"}'),
    "index": (
        "POST",
        "/v2/repository/index",
        200,
        b'[{"name":"m","version":"1","state":"READY"}]',
    ),
}


@pytest.mark.parametrize("name", LOCAL)
def test_what_is_asked_of_the_fleet(play, script, name):
    method, path, status, body = LOCAL[name]
    engine = script([])

    async def scene(house):
        wire = await house.dial()
        for _ in range(2):
            answer = await wire.ask(method, path, b"{}" if method == "POST" else None)
            assert (answer.status, answer.body, answer.complete) == (status, body, True)
        assert not engine.asked

    models = {"m": [0], "v": [1]}
    options = {"aliases": {"nick": {"m": 1}}, "endpoints": TRITON}
    play(scene, engine, script([]), models=models, **options)


def test_fleet_that_is_not_ready(play, script):
    async def scene(house):
        house.state(0, State.OPEN)
        assert (await house.ask("GET", "/v2/health/live")).status == 200
        assert (await house.ask("GET", "/v2/health/ready")).status == 400
        assert (await house.ask("GET", "/v2/models/m/ready")).status == 400
        (entry,) = (await house.ask("POST", "/v2/repository/index", {})).json
        assert (entry["name"], entry["state"]) == ("m", "UNAVAILABLE")
        assert (await house.ask("POST", "/v2/repository/index", {"ready": True})).json == []

    play(scene, script([]), models={"m": [0]}, endpoints=TRITON)


def test_server_metadata(play, script):
    async def scene(house):
        for path in ("/v2", "/v2/"):
            found = (await house.ask("GET", path)).json
            assert found["name"] == "headgate"
            assert "binary_tensor_data" in found["extensions"]
            assert not any("shared_memory" in name for name in found["extensions"])

    play(scene, script([]), endpoints=TRITON)


REFUSALS = {
    "unknown model": ("POST", "/v2/models/nope/infer", b"{}", 404, "unknown model: 'nope'"),
    "other engine's model": ("POST", "/v2/models/v/generate", b"{}", 404, "unknown model: 'v'"),
    "unknown path": ("GET", "/v2/nothing", None, 404, "Unknown path"),
    "all statistics": ("GET", "/v2/models/stats", None, 404, "ask the server itself"),
    "trace": ("POST", "/v2/models/m/trace/setting", b"{}", 404, "Unknown path"),
    "climbing": ("GET", "/v2/models/../logging", None, 404, "Unknown path"),
    "method": ("GET", "/v2/models/m/infer", None, 405, "GET"),
    "index by GET": ("GET", "/v2/repository/index", None, 405, "GET"),
    "no object": ("POST", "/v2/models/m/generate", b"[1]", 400, "JSON object"),
    "too large": ("POST", "/v2/models/m/infer", b" " * 5000, 413, "4096"),
    "load": ("POST", "/v2/repository/models/m/load", b"{}", 403, "admin token"),
    "unload": ("POST", "/v2/repository/models/m/unload", b"", 403, "admin token"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_have_tritons_shape(play, script, name):
    method, path, body, status, text = REFUSALS[name]
    engine = script([])

    async def change(target, lines, body):
        return 403, b""

    async def scene(house):
        house.worker.plane.change_repository = change
        answer = await house.ask(method, path, body)
        assert answer.status == status
        assert list(answer.json) == ["error"]
        assert text in answer.json["error"]
        assert not engine.asked

    models = {"m": [0], "v": [1]}
    play(scene, engine, script([]), models=models, endpoints=TRITON, body_bytes=4096)


def test_admin_changes_the_repository(play, script):
    asked = []

    async def change(target, lines, body):
        asked.append((target, b"Bearer t\r\n" in lines, body))
        return 400, b'{"error":"its own words"}'

    async def scene(house):
        house.worker.plane.change_repository = change
        headers = [("Authorization", "Bearer t")]
        body = {"parameters": {"config": "{}"}}
        answer = await house.ask("POST", "/v2/repository/models/m/load", body, headers)
        assert (answer.status, answer.json) == (400, {"error": "its own words"})
        assert asked == [(b"/v2/repository/models/m/load", True, json.dumps(body).encode())]

    # The admin needs no client's key.
    play(scene, script([]), models={"m": [0]}, endpoints=TRITON, keys={"k": {}})


def test_binary_tensors_pass_unchanged(play, script):
    header = json.dumps(
        {"inputs": [{"name": "text_input", "parameters": {"binary_data_size": 9}}]}
    ).encode()
    body = header + b"\x05\0\0\0Hello"
    answer = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
        b"Inference-Header-Content-Length: 2\r\nContent-Length: 6\r\n\r\n{}\x00\xff\r\n"
    )
    engine = script([answer])

    async def scene(house):
        headers = [
            ("Content-Type", "application/octet-stream"),
            ("Inference-Header-Content-Length", str(len(header))),
        ]
        found = await house.ask("POST", INFER, body, headers)
        assert (found.status, found.body) == (200, b"{}\x00\xff\r\n")
        assert found["inference-header-content-length"] == "2"
        (asked,) = engine.asked
        assert asked.body == body
        assert asked.all("inference-header-content-length") == [str(len(header))]

    play(scene, engine, models={"m": [0]}, endpoints=TRITON)


def test_compressed_tensors_pass(play, script):
    engine = script([JSON])

    async def scene(house):
        headers = [("Content-Encoding", "gzip")]
        assert (await house.ask("POST", INFER, b"\x1f\x8b", headers)).status == 200
        assert engine.asked[0].all("content-encoding") == ["gzip"]

    play(scene, engine, models={"m": [0]}, endpoints=TRITON)


def test_alias_stands_in_the_path(play, script):
    engine = script([JSON])

    async def scene(house):
        body = {"text_input": "x"}
        await house.ask("POST", "/v2/models/nick/versions/1/generate?a=b", body)
        assert engine.asked[0].line == "POST /v2/models/m/versions/1/generate?a=b HTTP/1.1"
        assert engine.asked[0].json == body

    play(scene, engine, models={"m": [0]}, aliases={"nick": {"m": 1}}, endpoints=TRITON)


def test_events_are_counted_and_passed(play, script):
    events = [event(text) for text in ("one", "two")]
    engine = script([EVENTS, chunk(events[0]), 0.02, chunk(events[1]), b"0\r\n\r\n"])

    async def scene(house):
        path = "/v2/models/m/generate_stream"
        answer = await house.ask("POST", path, {"text_input": "x", "stream": True})
        assert (answer.complete, answer.body) == (True, b"".join(events))
        assert house.count(Count.EVENTS) == 2

    play(scene, engine, models={"m": [0]}, endpoints=TRITON)


def test_stream_that_breaks_ends_with_tritons_error(play, script):
    engine = script([EVENTS, chunk(event("one")), 0.02, "close"])

    async def scene(house):
        answer = await house.ask("POST", "/v2/models/m/generate_stream", {"text_input": "x"})
        first, last = answer.events
        assert first + b"\n\n" == event("one")
        assert list(json.loads(last.removeprefix(b"data: "))) == ["error"]

    play(scene, engine, models={"m": [0]}, endpoints=TRITON)


def test_500_of_one_model_opens_no_circuit(play, script):
    engine = script([JSON.replace(b"200 OK", b"500 X")])

    async def scene(house):
        for _ in range(8):
            assert (await house.ask("POST", INFER, b"{}")).status == 500
        assert house.shared.table.load(0)["failures_in_row"] == 0

    play(scene, engine, models={"m": [0]}, endpoints=TRITON)


def test_sequence_stays_where_it_is(play, script):
    engines = [script([JSON]) for _ in range(3)]

    async def scene(house):
        for sequence in ("a", 7, "b", 8):
            before = [len(engine.asked) for engine in engines]
            for _ in range(4):
                await house.ask("POST", INFER, {"parameters": {"sequence_id": sequence}})
            after = [len(engine.asked) for engine in engines]
            assert sorted(b - a for a, b in zip(before, after, strict=True)) == [0, 0, 4]

    endpoints = {slot: {"kind": "triton"} for slot in range(3)}
    models = {"m": [0, 1, 2]}
    play(scene, *engines, models=models, endpoints=endpoints, policy="round-robin")


def test_info_comes_from_one_engine(play, script):
    engines = [script([JSON]), script([JSON])]

    async def scene(house):
        for path in ("/v2/models/m", "/v2/models/m/config", "/v2/models/m/stats"):
            assert (await house.ask("GET", path)).status == 200
        assert [len(engine.asked) for engine in engines] == [3, 0]
        house.state(0, State.OPEN)
        assert (await house.ask("GET", "/v2/models/m/stats")).status == 200
        assert len(engines[1].asked) == 1

    endpoints = {0: {"kind": "triton"}, 1: {"kind": "triton"}}
    play(scene, *engines, models={"m": [0, 1]}, endpoints=endpoints, policy="round-robin")


TEXT = "A prompt of some length, as long as a block or two of text. " * 20
FORMS = {
    "generate": ("/v2/models/m/generate", {"text_input": TEXT}),
    "stream": ("/v2/models/m/generate_stream", {"text_input": TEXT, "stream": True}),
    "infer": (INFER, {"inputs": [{"name": "text_input", "data": [TEXT]}]}),
}


@pytest.mark.parametrize("form", FORMS)
def test_prompts_meet_whatever_they_come_as(play, script, form):
    engines = [script([JSON]), script([JSON]), script([JSON])]

    async def scene(house):
        for path, body in (FORMS["generate"], FORMS[form], FORMS[form], FORMS["generate"]):
            assert (await house.ask("POST", path, body)).status == 200
        assert sorted(len(engine.asked) for engine in engines) == [0, 0, 4]

    endpoints = {slot: {"kind": "triton"} for slot in range(3)}
    models = {"m": [0, 1, 2]}
    play(scene, *engines, models=models, endpoints=endpoints, policy="prefix-affinity")
