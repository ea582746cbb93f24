"""What reaches the engine, and what comes back from it: headers, bodies, ids, usage, TLS."""

import asyncio
import ssl

import pytest
import trustme

from gateway._shared import Count, EndpointWord, ModelWord

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
DROPPED = (
    "Connection: keep-alive, X-Named",
    "X-Named: 1",
    "Keep-Alive: timeout=5",
    "Proxy-Connection: keep-alive",
    "Proxy-Authorization: Basic x",
    "TE: trailers",
    "Trailer: X-T",
    "Upgrade: h2c",
    "HTTP2-Settings: AAA",
    "X-Headgate-Anything: 1",
    "X-data-parallel-rank: 3",
    "X-Vllm-Priority: -100",
)


def names(lines):
    return {line.partition(":")[0].lower() for line in lines}


def test_headers_of_requests(play, script):
    engine = script([OK])
    kept = [("Accept", "*/*"), ("X-Custom", "a b"), ("traceparent", "00-1-2-01"), ("Cookie", "c=1")]
    extra = [tuple(line.split(": ")) for line in DROPPED]

    async def scene(house):
        answer = await house.ask("POST", "/v1/completions?x=%20y", {"model": "sim"}, kept + extra)
        assert answer.status == 200

    play(scene, engine, endpoints={0: {"path_prefix": "/engine-a"}})
    (asked,) = engine.asked
    assert asked.line == "POST /engine-a/v1/completions?x=%20y HTTP/1.1"
    assert asked.all("host") == [f"127.0.0.1:{engine.port}"]
    for name, value in kept:
        assert asked.all(name.lower()) == [value]
    assert not {name for name, _ in asked.headers} & names(DROPPED)
    assert asked.all("content-type") == ["application/json"]


def test_headers_of_responses(play, script):
    lines = [
        *DROPPED[:7],
        "X-Headgate-Reason: forged",
        "Server: uvicorn",
        "X-Own: 1",
        "Set-Cookie: a",
    ]
    head = b"HTTP/1.1 200 OK\r\n" + "".join(line + "\r\n" for line in lines).encode()
    engine = script([head + b"Set-Cookie: b\r\nContent-Length: 2\r\n\r\n{}"])

    async def scene(house):
        answer = await house.ask(body={"model": "sim"})
        assert answer.status == 200
        present = {name for name, _ in answer.headers}
        assert not present & names(DROPPED[:7])
        assert answer.reason is None
        assert (answer["server"], answer["x-own"]) == ("uvicorn", "1")
        assert [v for n, v in answer.headers if n == "set-cookie"] == ["a", "b"]

    play(scene, engine)


@pytest.mark.parametrize("given", [None, "mine-1", "x" * 128, "x" * 129, ""])
def test_request_ids(play, script, given):
    engine = script([b"HTTP/1.1 200 OK\r\nx-request-id: engine's\r\nContent-Length: 2\r\n\r\n{}"])

    async def scene(house):
        headers = [] if given is None else [("X-Request-Id", given)]
        answer = await house.ask(body={"model": "sim"}, headers=headers)
        told = answer["x-request-id"]
        assert engine.asked[0].all("x-request-id") == [told]
        assert (told == given) == (given is not None and 0 < len(given) <= 128)
        await asyncio.sleep(0.15)
        assert [line["request_id"] for line in house.access] == [told]

    play(scene, engine)


@pytest.mark.parametrize(
    ("keys", "own", "sent", "seen"),
    [
        ({}, "", "Bearer mine", ["Bearer mine"]),
        ({}, "theirs", None, ["Bearer theirs"]),
        ({"mine": {}}, "", "Bearer mine", []),
        ({"mine": {}}, "theirs", "Bearer mine", ["Bearer theirs"]),
    ],
)
def test_credentials(play, script, keys, own, sent, seen):
    engine = script([OK])

    async def scene(house):
        headers = [] if sent is None else [("Authorization", sent)]
        assert (await house.ask(body={"model": "sim"}, headers=headers)).status == 200

    play(scene, engine, keys=keys, endpoints={0: {"api_key": own}})
    assert engine.asked[0].all("authorization") == seen


BODIES = [
    (b'{"model":"nick","a":1}', b'{"model":"sim","a":1}'),
    (b'{ "a" : [1, 2.50] ,\n"model"\t:  "nick" }', b'{ "a" : [1, 2.50] ,\n"model"\t:  "sim" }'),
    (b'{"model":"x","model":"nick"}', b'{"model":"x","model":"sim"}'),
    (b'{"model":"n\\u0069ck"}', b'{"model":"sim"}'),
    (b'{"m\\u006fdel":"nick","b":"\\ud83d"}', b'{"m\\u006fdel":"sim","b":"\\ud83d"}'),
    (b'{"model":"sim","x":"nick"}', b'{"model":"sim","x":"nick"}'),
]


def test_an_alias_is_spliced_and_no_other_byte_changes(play, script):
    engine = script([OK])

    async def scene(house):
        for sent, _ in BODIES:
            assert (await house.ask(body=sent)).status == 200

    play(scene, engine, aliases={"nick": {"sim": 1.0}})
    assert [asked.body for asked in engine.asked] == [seen for _, seen in BODIES]


def test_a_split_keeps_to_its_weights(play, script):
    engine = script([OK])

    async def scene(house):
        for _ in range(40):
            assert (await house.ask(body={"model": "nick"})).status == 200
        listed = await house.ask("GET", "/v1/models")
        assert [card["id"] for card in listed.json["data"]] == ["a", "b", "nick"]

    play(scene, engine, models={"a": [0], "b": [0]}, aliases={"nick": {"a": 3.0, "b": 1.0}})
    models = [asked.json["model"] for asked in engine.asked]
    assert (models.count("a"), models.count("b")) == (30, 10)


def test_audio_uploads_name_their_model_in_a_part(play, new_sim, script):
    engine = script([OK])
    form = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n'
        b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nsim\r\n--b--\r\n'
    )

    async def scene(house):
        headers = [("Content-Type", "multipart/form-data; boundary=b")]
        answer = await house.ask("POST", "/v1/audio/transcriptions", form, headers)
        assert answer.status == 200

    play(scene, engine, models={"sim": [0], "other": []})
    assert engine.asked[0].body == form


def test_sizes_around_every_bound(play, script):
    """The body is the same whatever its size and however it is passed on."""
    sizes = [0, 1, 16_383, 16_384, 16_385, 32_767, 32_768, 32_769, 262_143, 1 << 20, 5 << 20]
    engine = script([OK])

    async def scene(house):
        wire = await house.dial()
        for size in sizes:
            body = b'{"model":"sim","x":"' + b"y" * size + b'"}'
            assert (await wire.ask(body=body)).status == 200
            chunks = b"%x\r\n%s\r\n" % (len(body), body)
            wire.write(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
                + chunks
                + b"0\r\n\r\n"
            )
            assert (await wire.answer()).status == 200
            assert engine.asked[-1].body == engine.asked[-2].body == body
            assert engine.asked[-1].all("transfer-encoding") == []

    play(scene, engine)


def test_usage_is_observed_or_estimated(play, new_sim, chat):
    async def scene(house):
        await house.ask(body=chat(max_tokens=5))
        assert house.model_word(ModelWord.M_TOKENS_OUT) == 5
        tokens_in = house.model_word(ModelWord.M_TOKENS_IN)
        assert tokens_in > 0
        await house.ask(body=chat(max_tokens=5, stream=True))
        assert house.model_word(ModelWord.M_TOKENS_OUT) == 5
        assert house.model_word(ModelWord.M_TOKENS_OUT_ESTIMATED) > 0
        await house.ask(
            body=chat(max_tokens=5, stream=True, stream_options={"include_usage": True})
        )
        assert house.model_word(ModelWord.M_TOKENS_OUT) == 10
        assert house.model_word(ModelWord.M_TOKENS_IN) == 2 * tokens_in
        ttft = [house.count(8192 + 0)]
        assert ttft is not None

    play(scene, new_sim())


@pytest.mark.parametrize("asks", [False, True])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_exact_usage_is_hidden_from_who_did_not_ask(play, new_sim, asks, path):
    fields = {"model": "sim", "max_tokens": 6, "stream": True}
    fields |= (
        {"messages": [{"role": "user", "content": "Hi"}]} if "chat" in path else {"prompt": "Hi"}
    )
    options = {"stream_options": {"include_usage": True}} if asks else {}

    async def scene(house):
        answer = await house.ask("POST", path, fields | options)
        assert answer.complete
        assert answer.events[-1] == b"data: [DONE]"
        assert (b'"usage":{' in answer.body) == asks
        assert b"system_fingerprint" in answer.body
        assert house.model_word(ModelWord.M_TOKENS_OUT) == 6

    play(scene, new_sim(), usage="exact")


def test_exact_usage_by_key(play, new_sim, chat):
    async def scene(house):
        for key in ("a", "b"):
            answer = await house.ask(
                body=chat(stream=True, max_tokens=4), headers=[("Authorization", f"Bearer {key}")]
            )
            assert b'"usage":{' not in answer.body
        assert house.model_word(ModelWord.M_TOKENS_OUT) == 4

    play(scene, new_sim(), keys={"a": {"usage": "exact"}, "b": {}})


def test_times_are_observed_once_per_request(play, new_sim, chat):
    async def scene(house):
        for _ in range(3):
            await house.ask(body=chat(stream=True, max_tokens=4))
        await house.ask(body=chat(max_tokens=4))

        def observed(start, of):
            return sum(of(start + bucket) for bucket in range(21))

        assert observed(ModelWord.M_TTFT, house.model_word) == 3
        assert observed(ModelWord.M_TOTAL, house.model_word) == 4
        assert observed(EndpointWord.E_TTFT, house.endpoint_word) == 3
        events = house.count(Count.EVENTS)
        assert observed(ModelWord.M_ITL, house.model_word) == events - 3

    play(scene, new_sim())


def test_responses_stay_with_their_engine(play, new_sim):
    async def scene(house):
        made = {}
        for _ in range(6):
            answer = await house.ask(
                "POST", "/v1/responses", {"model": "sim", "input": "Hi", "stream": True}
            )
            assert b"response.completed" in answer.body
        for message in house.made:
            made[message.response] = message.slot
        assert set(made.values()) == {0, 1}
        for name, slot in made.items():
            got = await house.ask("GET", f"/v1/responses/{name}")
            assert (got.status, got.json["id"]) == (200, name)
            before = house.engines[slot].state()["requests_seen"]
            answer = await house.ask(
                "POST",
                "/v1/responses",
                {"model": "sim", "input": "On", "previous_response_id": name},
            )
            assert answer.status == 200
            assert house.engines[slot].state()["requests_seen"] == before + 1

    play(scene, new_sim(), new_sim("sim-1"))


def test_tls_on_both_sides(play, script, tmp_path):
    ca = trustme.CA()
    certificate = ca.issue_cert("localhost", "127.0.0.1")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(server)
    client = ssl.create_default_context()
    ca.configure_trust(client)
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    engine = script([OK])
    fields = {"tls": True, "server_name": "localhost", "ca_file": str(tmp_path / "ca.pem")}

    async def scene(house):
        wire = await house.dial()
        for _ in range(3):
            assert (await wire.ask(body={"model": "sim"})).status == 200
        answer = await wire.ask(body=b"x")
        assert answer.status == 400
        assert engine.opened == 1

    play(
        scene,
        engine,
        listen_tls=server,
        client_tls=client,
        engine_tls=server,
        endpoints={0: fields},
    )


def test_an_engine_with_another_certificate_is_no_engine(play, script, tmp_path):
    ca, other = trustme.CA(), trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("localhost").configure_cert(server)
    other.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    engine = script([OK])
    fields = {"tls": True, "server_name": "localhost", "ca_file": str(tmp_path / "ca.pem")}

    async def scene(house):
        answer = await house.ask(body={"model": "sim"})
        assert (answer.status, answer.reason) == (503, "connect_failed")

    play(scene, engine, engine_tls=server, endpoints={0: fields})
    assert not engine.asked
