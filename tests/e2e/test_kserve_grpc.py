"""KServe's protocol over gRPC: what the gateway adds to and keeps of a scripted engine's answers.

With a real Triton and its own clients: tests/triton.
"""

import asyncio
import struct

import grpc
import hpack
import pytest
import trustme

from engines.kserve import read_repository_path
from gateway._shared import Count
from gateway.messages import Drain
from router import State
from tests.e2e.kserve import (
    SERVICE,
    Engine,
    ask,
    client,
    converse,
    failure,
    id_of,
    infer,
    message,
    part,
    play_grpc,
    status_of,
    words,
)


def test_unary_passes_unchanged(play):
    answer = message((1, "m"), (6, b"\x00\xff" * 1000))
    engine = Engine(lambda call: answer)
    request = infer(text="Hello", id="a")

    async def scene(house):
        metadata = (
            ("x-own", "1"),
            ("blob-bin", b"\x00\x01"),
            ("x-request-id", "mine"),
            ("authorization", "Bearer client"),
        )
        assert await ask(house, "ModelInfer", request, metadata=metadata, timeout=30) == answer
        (call,) = engine.calls
        assert call.request == request
        assert {name: call.metadata.get(name) for name, _ in metadata} == dict(metadata)
        assert 0 < call.remaining_s <= 30
        await house.until(lambda: house.access)
        (line,) = house.access
        assert line["path"] == SERVICE + "ModelInfer"
        assert (line["status"], line["outcome"], line["model"]) == (200, "completed", "m")
        assert (line["request_id"], line["bytes_in"]) == ("mine", len(request))

    play_grpc(play, scene, engine)


@pytest.mark.parametrize("name", ["x-headgate-priority", "x-data-parallel-rank", "user-agent"])
def test_what_is_not_for_engines_stays_here(play, name):
    engine = Engine(lambda call: b"")

    async def scene(house):
        await ask(house, "ModelInfer", infer(), metadata=((name, "7"),))
        assert engine.calls[0].metadata.get(name) != "7"

    play_grpc(play, scene, engine)


def test_engine_gets_its_own_key_and_not_the_clients(play):
    engine = Engine(words)

    async def scene(house):
        metadata = (("authorization", "Bearer k"),)
        await converse(house, infer(), metadata=metadata)
        for call in (*engine.calls, *engine.configs):
            assert call.metadata["authorization"] == "Bearer e"
        assert (len(engine.calls), len(engine.configs)) == (1, 1)

    play_grpc(play, scene, engine, keys={"k": {}}, endpoints={0: {"api_key": "e"}})


def test_alias_goes_by_its_models_name(play):
    engine = Engine(lambda call: b"")

    async def scene(house):
        await ask(house, "ModelInfer", infer("nick"))
        await ask(house, "ModelMetadata", message((1, "nick")))
        assert [call.request for call in engine.calls] == [
            infer("nick") + message((1, "m")),
            message((1, "nick"), (1, "m")),
        ]

    play_grpc(play, scene, engine, aliases={"nick": {"m": 1}})


def test_tls_on_both_sides(play, tmp_path):
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    ours = ca.issue_cert("localhost")
    ours.private_key_pem.write_to_path(tmp_path / "key.pem")
    ours.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    theirs = ca.issue_cert("engine.test")
    tls = theirs.private_key_pem.bytes(), theirs.cert_chain_pems[0].bytes()

    async def scene(house):
        credentials = grpc.ssl_channel_credentials(ca.cert_pem.bytes())
        options = [("grpc.ssl_target_name_override", "localhost")]
        async with grpc.aio.secure_channel(house.grpc_address, credentials, options) as channel:
            assert await channel.unary_unary(SERVICE + "ModelInfer")(infer()) == b"safe"
        found = await status_of(ask(house, "ModelInfer", infer(), timeout=5))
        assert found[0] in ("UNAVAILABLE", "DEADLINE_EXCEEDED")  # it speaks no TLS

    fields = {"tls": True, "ca_file": str(tmp_path / "ca.pem"), "server_name": "engine.test"}
    play_grpc(
        play,
        scene,
        Engine(lambda call: b"safe", tls=tls),
        endpoints={0: fields},
        grpc=(str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")),
    )


REFUSALS = {
    "unknown model": (infer("nope"), {}, "NOT_FOUND", "Request for unknown model: 'nope'"),
    "no protobuf": (b"\xff\xff", {}, "INVALID_ARGUMENT", "not a request"),
    "no key": (infer(), {"keys": {"k": {}}}, "UNAUTHENTICATED", "API key"),
    "no engine": (infer(), {"state": State.OPEN}, "UNAVAILABLE", "ready"),
    "too large": (infer(text="x" * 5000), {"body_bytes": 4096}, "RESOURCE_EXHAUSTED", ""),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusal(play, name):
    request, options, code, text = REFUSALS[name]
    options = dict(options)
    state = options.pop("state", State.READY)
    engine = Engine(lambda call: b"")

    async def scene(house):
        house.state(0, state)
        found = await status_of(ask(house, "ModelInfer", request))
        assert found[0] == code
        assert text in found[1]
        assert not engine.calls

    play_grpc(play, scene, engine, **options)


def test_keys_limit_models(play):
    engine = Engine(lambda call: b"")

    async def scene(house):
        metadata = (("authorization", "Bearer k"),)
        found = await status_of(ask(house, "ModelInfer", infer("m"), metadata=metadata))
        assert found[0] == "PERMISSION_DENIED"
        index = await ask(house, "RepositoryIndex", b"", metadata=metadata)
        assert index == message((1, message((1, "n"), (2, "1"), (3, "READY"))))
        for model in "mn":
            ready = await ask(house, "ModelReady", message((1, model)), metadata=metadata)
            assert ready == (b"\x08\x01" if model == "n" else b"")

    models = {"m": [0], "n": [0]}
    play_grpc(play, scene, engine, models=models, keys={"k": {"models": ["n"]}})


def test_statistics_of_all_models(play):
    def engine(*known):
        def answer(call):
            (name,) = [one for one in "mnop" if call.request == message((1, one))]
            if name in known:
                return message((1, message((1, name))))
            return call.context.abort(grpc.StatusCode.NOT_FOUND, "unloaded")

        return Engine(answer)

    async def statistics(house, key):
        metadata = (("authorization", f"Bearer {key}"),)
        return await ask(house, "ModelStatistics", b"", metadata=metadata)

    def of(*models):
        return message(*((1, message((1, name))) for name in models))

    async def scene(house):
        assert await statistics(house, "all") == of("m", "n", "p")
        assert await statistics(house, "some") == of("n")
        assert (await status_of(statistics(house, "none")))[0] == "UNAUTHENTICATED"
        house.state(1, State.OPEN)
        assert await statistics(house, "all") == of("m")

    play_grpc(
        play,
        scene,
        engine("m"),
        engine("n", "p"),
        models={"m": [0], "n": [1], "o": [0], "p": [1]},
        keys={"all": {}, "some": {"models": ["n", "o"]}},
    )


def test_server_level_calls_are_about_the_fleet(play):
    engine = Engine(lambda call: b"")

    async def scene(house):
        assert await ask(house, "ServerLive", b"") == b"\x08\x01"
        for state, up in ((State.READY, True), (State.OPEN, False)):
            house.state(0, state)
            assert await ask(house, "ServerReady", b"") == (b"\x08\x01" if up else b"")
            async with client(house) as channel:
                check = channel.unary_unary("/grpc.health.v1.Health/Check")
                assert await check(b"") == (b"\x08\x01" if up else b"\x08\x02")
            index = await ask(house, "RepositoryIndex", b"")
            assert (b"UNAVAILABLE" in index) != up
            assert bool(await ask(house, "RepositoryIndex", message((2, 1)))) == up
        assert b"headgate" in await ask(house, "ServerMetadata", b"")
        assert not engine.calls

    play_grpc(play, scene, engine)


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload"])
def test_repository_wants_the_admin(play, method):
    asked = []

    async def change(target, lines, body):
        asked.append((target, body))
        return (200, b"") if b"Bearer t\r\n" in lines else (403, b"")

    async def scene(house):
        house.worker.plane.change_repository = change
        request = message((2, "m"))
        found = await status_of(ask(house, method, request))
        assert found[0] == "PERMISSION_DENIED"
        assert "admin token" in found[1]
        assert await ask(house, method, request, metadata=(("authorization", "Bearer t"),)) == b""
        verb = b"unload" if "Unload" in method else b"load"
        assert asked[1] == (b"/v2/repository/models/m/" + verb, b'{"parameters":{}}')

    play_grpc(play, scene, Engine(lambda call: b""))


NAMES = ["a b", "x HTTP/1.1\r\nHost: a\r\n\r\nGET /metrics", "a/../b", "what?", "ü", ""]


@pytest.mark.parametrize("model", NAMES)
def test_repository_is_asked_for_one_model_whatever_its_name(play, model):
    asked = []

    async def change(target, lines, body):
        asked.append(target.decode())
        return 200, b""

    async def scene(house):
        house.worker.plane.change_repository = change
        await ask(house, "RepositoryModelLoad", message((2, model)))
        (target,) = asked
        assert target.split() == [target]
        assert read_repository_path(target) == ((model, "load") if model else None)

    play_grpc(play, scene, Engine(lambda call: b""))


def test_repository_is_not_asked_for_a_name_without_end(play):
    async def change(target, lines, body):
        raise AssertionError(target)

    async def scene(house):
        house.worker.plane.change_repository = change
        found = await status_of(ask(house, "RepositoryModelLoad", message((2, "m" * 1025))))
        assert found == ("INVALID_ARGUMENT", "the model's name is longer than 1024 characters")

    play_grpc(play, scene, Engine(lambda call: b""))


async def ask_by_hand(house, method, *metadata):
    """The grpc-status of a call whose metadata need not be what gRPC's own library would send."""

    def frame(kind, flags, stream, payload=b""):
        return (
            struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload
        )

    host, _, port = house.grpc_address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    pseudo = ((":method", "POST"), (":scheme", "http"), (":path", SERVICE + method))
    usual = ((":authority", "x"), ("te", "trailers"), ("content-type", "application/grpc"))
    head = hpack.Encoder().encode([*pseudo, *usual, *metadata])
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0))
    writer.write(frame(1, 4, 1, head) + frame(0, 1, 1, bytes(5)))
    decoder, found = hpack.Decoder(), {}
    while "grpc-status" not in found:
        prefix = await reader.readexactly(9)
        payload = await reader.readexactly(int.from_bytes(prefix[:3]))
        if prefix[3] == 1:
            found |= dict(decoder.decode(payload))
    writer.close()
    await writer.wait_closed()
    return found["grpc-status"]


def test_metadata_is_no_place_for_further_lines(play):
    asked = []

    async def change(target, lines, body):
        asked.append(lines)
        return 200, b""

    async def scene(house):
        house.worker.plane.change_repository = change
        for value in (
            "Bearer t",
            "Bearer t\r\nX: 1",
            "Bearer t\r\n\r\nGET / HTTP/1.1",
            "a\0b",
            "\xff",
        ):
            found = await ask_by_hand(house, "RepositoryModelLoad", ("authorization", value))
            assert found == ("0" if value == "Bearer t" else "3")
        assert asked == [b"authorization: Bearer t\r\n"]

    play_grpc(play, scene, Engine(lambda call: b""))


def test_bug_of_ours_is_not_the_clients(play):
    async def change(target, lines, body):
        raise ValueError("a bug")

    async def scene(house):
        house.worker.plane.change_repository = change
        found = await status_of(ask(house, "RepositoryModelLoad", message((2, "m"))))
        assert found == ("INTERNAL", "The gateway failed: ValueError")
        assert house.reasons() == {"internal": 1}

    play_grpc(play, scene, Engine(lambda call: b""), log_errors=1)


@pytest.mark.parametrize("method", ["TraceSetting", "LogSettings", "CudaSharedMemoryStatus"])
def test_what_is_one_servers_own_is_not_passed(play, method):
    engine = Engine(lambda call: b"")

    async def scene(house):
        assert (await status_of(ask(house, method, b"")))[0] == "UNIMPLEMENTED"
        assert not engine.calls

    play_grpc(play, scene, engine)


def test_engines_status_is_passed(play):
    async def refuse(call):
        await call.context.abort(grpc.StatusCode.INVALID_ARGUMENT, "its own words")

    async def scene(house):
        found = await status_of(ask(house, "ModelInfer", infer()))
        assert found == ("INVALID_ARGUMENT", "its own words")
        assert house.shared.table.load(0)["failures_in_row"] == 0

    play_grpc(play, scene, Engine(refuse))


def test_busy_engine_is_left_for_another(play):
    async def full(call):
        await call.context.abort(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")

    async def scene(house):
        for _ in range(4):
            assert await ask(house, "ModelInfer", infer()) == b"well"
        assert house.count(Count.TURNED_AWAY) >= 1

    play_grpc(play, scene, Engine(full), Engine(lambda call: b"well"), policy="round-robin")


def test_dead_engine_is_left_for_another(play):
    dead = Engine(words)

    async def scene(house):
        await dead.stop()
        for _ in range(4):
            assert len(await converse(house, infer(id="a"))) == 3
            assert await ask(house, "ModelInfer", infer()) == b""
        assert house.count(Count.DIAL_FAILED) >= 1

    async def both(call):
        async for response in words(call):
            yield response

    living = Engine(lambda call: both(call) if call.method == "ModelStreamInfer" else b"")
    play_grpc(play, scene, dead, living, policy="round-robin")


def test_stream_carries_many_requests(play):
    async def scene(house):
        requests = [infer(id=k, text=k) for k in "abcdefgh"]
        responses = await converse(house, *requests)
        for k in "abcdefgh":
            mine = [part(k, word) for word in ("one", "two", "three")]
            assert [one for one in responses if one in mine] == mine
        assert len(responses) == 24
        assert house.count(Count.EVENTS) == 24
        assert house.count(Count.COMPLETED) == 8

    play_grpc(play, scene, Engine(words), Engine(words))


def test_stream_of_decoupled_models_is_answered_as_answers_come(play):
    async def answer(call):
        await asyncio.sleep(0.3 if id_of(call.request) == "a" else 0)
        yield part(id_of(call.request))

    async def scene(house):
        found = await converse(house, infer(id="a"), infer(id="b"))
        assert found == [part("b"), part("a")]

    play_grpc(play, scene, Engine(answer))


def test_stream_of_other_models_is_answered_in_order(play):
    async def answer(call):
        name = id_of(call.request)
        if name == "c":
            yield failure("it fails", "c")
            return
        await asyncio.sleep({"a": 0.3, "b": 0.1}.get(name, 0))
        yield part(name)

    async def scene(house):
        found = await converse(house, *(infer(id=k) for k in "abcd"), infer("nope", id="e"))
        assert found[:4] == [part("a"), part("b"), failure("it fails", "c"), part("d")]
        assert b"unknown model: 'nope'" in found[4]

    engine = Engine(answer, decoupled=False)
    play_grpc(play, scene, engine)


def test_sequence_stays_where_it_is_one_after_another(play):
    async def answer(call):
        await asyncio.sleep(0.02)
        yield part(id_of(call.request))

    engines = [Engine(answer), Engine(answer), Engine(answer)]

    async def scene(house):
        found = await converse(house, *(infer(id=k, sequence=7) for k in "abcdef"))
        assert found == [part(k) for k in "abcdef"]
        assert sorted(len(engine.calls) for engine in engines) == [0, 0, 6]
        assert max(engine.most for engine in engines) == 1

    play_grpc(play, scene, *engines, policy="round-robin")


@pytest.mark.parametrize("ends", [False, True], ids=["goes on", "ends"])
def test_failed_request_in_a_stream(play, ends):
    async def scene(house):
        metadata = (("triton_grpc_error", "true"),) if ends else ()
        answer = converse(house, infer("nope", id="a"), metadata=metadata)
        if ends:
            assert (await status_of(answer))[0] == "NOT_FOUND"
        else:
            (found,) = await answer
            assert b"unknown model" in found
            assert found.endswith(message((2, message((3, "a")))))

    play_grpc(play, scene, Engine(words))


def test_full_engine_is_waited_for(play):
    async def slow(call):
        await asyncio.sleep(0.05)
        yield part(id_of(call.request))

    engine = Engine(slow)

    async def scene(house):
        house.shared.table.set_row(0, state=State.READY, share=1, generation=1, max_in_flight=1)
        found = await converse(house, *(infer(id=k) for k in "abcd"))
        assert sorted(found) == [part(k) for k in "abcd"]
        assert engine.most == 1

    play_grpc(play, scene, engine)


def test_drain_lets_streams_end(play):
    async def slow(call):
        for word in ("one", "two", "three"):
            yield part(id_of(call.request), word)
            await asyncio.sleep(0.1)

    async def scene(house):
        async with client(house) as channel:
            call = channel.stream_stream(SERVICE + "ModelStreamInfer")()
            await call.write(infer(id="a"))
            found = [await call.read()]
            house.send(Drain(0, 10))
            found += [await call.read(), await call.read()]
            assert found == [part("a", word) for word in ("one", "two", "three")]
            assert (await status_of(call.read()))[0] == "UNAVAILABLE"
        await house.drained.wait()

    play_grpc(play, scene, Engine(slow))
