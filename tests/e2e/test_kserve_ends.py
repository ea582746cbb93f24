"""How requests over gRPC end early: by whom, what the client is told, how it is counted."""

import asyncio

import grpc
import pytest

from gateway._shared import STATUSES, Count, EndpointWord
from gateway.messages import Condemn, Drain
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
    never,
    part,
    play_grpc,
    status_of,
    words,
)

STREAM = SERVICE + "ModelStreamInfer"


def one_at_a_time(house):
    house.shared.table.set_row(0, state=State.READY, share=1, generation=1, max_in_flight=1)


def dispatches(house):
    """How they ended."""
    ends = range(Count.ANSWERED, Count.CUT + 1)
    return {Count(end).name: house.count(end) for end in ends if house.count(end)}


def cancels(house):
    causes = range(Count.CANCEL_CLIENT_GONE, Count.CANCEL_PIPELINE + 1)
    return {Count(cause).name: house.count(cause) for cause in causes if house.count(cause)}


def statuses(house, slot=0):
    """Of an endpoint's answers."""
    found = {
        status: house.endpoint_word(EndpointWord.E_STATUS + index, slot)
        for index, status in enumerate(STATUSES)
    }
    return {status: n for status, n in found.items() if n}


# -- an endpoint is given up


@pytest.fixture
def mute(script):
    """An engine that takes connections, and says nothing there."""

    class Mute(script):
        kind = "triton"
        grpc_port = property(lambda self: self.port)
        is_asked = property(lambda self: self.asked)

    return Mute(["hang"])


class Hung(Engine):
    @property
    def is_asked(self):
        return self.under_way or (self.is_silent and self.configs)


async def hangs(call):
    await asyncio.sleep(60)
    yield b""


def silent():
    engine = Hung(hangs)
    engine.is_silent = True
    return engine


@pytest.mark.parametrize("at", ["connecting", "its config", "its answer"])
def test_hung_engine_is_left(play, mute, at):
    hung = {"connecting": mute, "its config": silent(), "its answer": Hung(hangs)}[at]

    async def scene(house):
        house.state(1, State.OPEN)
        answer = asyncio.create_task(converse(house, infer(id="a")))
        await house.until(lambda: hung.is_asked)
        house.state(0, State.OPEN)
        house.state(1, State.READY)
        house.send(Condemn(0, 1, "it hangs", True))
        assert len(await answer) == 3
        assert dispatches(house) == {"CONDEMNED": 1, "ANSWERED": 1}
        if at == "its config":
            assert not hung.calls

    play_grpc(play, scene, hung, Engine(words), connect_s=30.0)


async def much(call):
    while True:
        yield part("a", "x" * (1 << 20))


def test_engine_that_hangs_while_the_client_does_is_left(play):
    async def scene(house):
        async with client(house) as channel:
            call = channel.stream_stream(STREAM)()
            await call.write(infer(id="a"))
            n_bytes = -1
            while n_bytes < house.count(Count.CLIENT_BYTES_OUT):
                n_bytes = house.count(Count.CLIENT_BYTES_OUT)
                await asyncio.sleep(0.2)
            house.send(Condemn(0, 1, "it hangs", True))
            while b"declared dead" not in await call.read():
                pass
        assert dispatches(house) == {"CONDEMNED": 1}

    play_grpc(play, scene, Engine(much))


# -- the client's doing


def test_client_that_leaves_frees_the_engine(play):
    engine = Engine(never)

    async def scene(house):
        async with client(house) as channel:
            call = channel.stream_stream(STREAM)()
            await call.write(infer(id="a"))
            await call.write(infer(id="b"))
            assert {await call.read(), await call.read()} == {
                part("a", "first"),
                part("b", "first"),
            }
            call.cancel()
            await house.until(lambda: engine.cancelled == 2)
        await house.until(lambda: house.count(Count.CANCELLED) == 2)
        assert house.count(Count.ABANDONED) == 2
        assert house.count(Count.CANCEL_CLIENT_GONE) == 2

    play_grpc(play, scene, engine)


def test_client_that_reads_nothing_is_left(play):
    async def scene(house):
        async with client(house) as channel:
            call = channel.stream_stream(STREAM)()
            await call.write(infer(id="a"))
            await call.write(infer(id="b"))
            await house.until(lambda: house.count(Count.CANCELLED) == 2)
            assert cancels(house) == {"CANCEL_CLIENT_SLOW": 2}
            assert dispatches(house) == {"ABANDONED": 2}

    play_grpc(play, scene, Engine(much), client_stall_s=0.3)


def test_clients_deadline_ends_its_request(play):
    async def scene(house):
        answer = ask(house, "ModelInfer", infer(), timeout=0.2)
        assert (await status_of(answer))[0] == "DEADLINE_EXCEEDED"
        await house.until(lambda: house.count(Count.CANCELLED))
        assert cancels(house) == {"CANCEL_CLIENT_GONE": 1}
        assert dispatches(house) == {"ABANDONED": 1}

    play_grpc(play, scene, Engine(lambda call: asyncio.sleep(60)))


def test_error_that_ends_a_stream_ends_what_runs_on_it(play):
    async def scene(house):
        async with client(house) as channel:
            call = channel.stream_stream(STREAM)(metadata=(("triton_grpc_error", "true"),))
            await call.write(infer(id="a"))
            assert await call.read() == part("a", "first")
            await call.write(infer("nope", id="b"))
            assert (await status_of(call.read()))[0] == "NOT_FOUND"
        await house.until(lambda: house.count(Count.CANCELLED))
        assert cancels(house) == {}
        assert dispatches(house) == {"CUT": 1}

    play_grpc(play, scene, Engine(never))


# -- the gateway's


@pytest.mark.parametrize("sequence", [0, 7], ids=["for room", "for its sequence"])
def test_grace_over_ends_what_runs_and_who_waits(play, sequence):
    async def scene(house):
        one_at_a_time(house)
        async with client(house) as channel:
            call = channel.stream_stream(STREAM)()
            await call.write(infer(id="a", sequence=sequence))
            assert await call.read() == part("a", "first")
            await call.write(infer(id="b", sequence=sequence))
            await house.until(lambda: house.count(Count.HELD_REQUESTS) or sequence)
            await house.until(lambda: house.count(Count.ACCEPTED) == 2)
            house.send(Drain(0, 0.1))
            errors = b"".join([await call.read(), await call.read()])
            assert b"shut down before the response ended" in errors
            assert b"shutting down; connect again" in errors
        await house.drained.wait()
        assert house.reasons() == {"drain_grace_over": 1, "draining": 1}
        assert dispatches(house) == {"CUT": 1}
        assert cancels(house) == {}

    play_grpc(play, scene, Engine(never))


@pytest.mark.parametrize("where", ["at its engine", "connecting", "in the repository"])
def test_grace_over_ends_unary_calls(play, mute, where):
    engine = mute if where == "connecting" else Hung(lambda call: asyncio.sleep(60))
    changing = asyncio.Event()

    async def change(target, lines, body):
        changing.set()
        await asyncio.sleep(60)

    async def scene(house):
        house.worker.plane.change_repository = change
        if where == "in the repository":
            answer = ask(house, "RepositoryModelLoad", message((2, "m")))
        else:
            answer = ask(house, "ModelInfer", infer())
        found = asyncio.create_task(status_of(answer))
        await house.until(lambda: engine.is_asked or changing.is_set())
        house.send(Drain(0, 0.1))
        code, text = await found
        assert code == "UNAVAILABLE"
        assert "shut down before the response ended" in text
        await house.drained.wait()
        assert house.reasons() == {"drain_grace_over": 1}
        assert cancels(house) == {}

    play_grpc(play, scene, engine, connect_s=30.0)


def test_who_waited_in_vain_is_told_otherwise_than_who_could_not_wait(play):
    async def scene(house):
        one_at_a_time(house)
        async with client(house) as channel:
            call = channel.stream_stream(STREAM)()
            await call.write(infer(id="a"))
            assert await call.read() == part("a", "first")
            await call.write(infer(id="b"))
            await house.until(lambda: house.count(Count.HELD_REQUESTS))
            await call.write(infer(id="c"))
            errors = b"".join([await call.read(), await call.read()])
            assert b"stayed busy for the 1 s" in errors
            assert b"the gateway's queue is full" in errors
        assert house.reasons() == {"hold_timeout": 1, "hold_full": 1}

    play_grpc(play, scene, Engine(never), hold_s=1.0, hold_requests=1)


def test_bug_of_ours_costs_one_request(play):
    async def scene(house):
        relay = house.worker._grpc._relay
        named = relay.named

        def bug(errand, model, message):
            if id_of(message) == "b":
                raise ValueError("a bug")
            return named(errand, model, message)

        relay.named = bug
        found = await converse(house, *(infer(id=k) for k in "abc"))
        assert len(found) == 7
        assert failure("The gateway failed: ValueError", "b") in found
        assert house.reasons() == {"internal": 1}
        assert cancels(house) == {}

    play_grpc(play, scene, Engine(words), log_errors=1)


# -- a sequence's requests wait for one another


def test_what_waits_for_its_sequence_is_in_the_account(play):
    go = asyncio.Event()

    async def answer(call):
        await go.wait()
        yield part(id_of(call.request))

    requests = [infer(id=k, sequence=7, text=k * 1000) for k in "abc"]

    async def scene(house):
        answer = asyncio.create_task(converse(house, *requests))
        size = sum(len(request) for request in requests)
        await house.until(lambda: house.count(Count.BUFFERED_BYTES) == size)
        go.set()
        assert await answer == [part(k) for k in "abc"]

    play_grpc(play, scene, Engine(answer))


def test_request_that_is_refused_keeps_its_sequence_in_order(play):
    go = asyncio.Event()

    async def answer(call):
        await go.wait()
        yield part(id_of(call.request))

    engine = Engine(answer)

    async def scene(house):
        house.tell(body_bytes=4096)
        await house.until(lambda: house.worker.plane.settings.body_bytes == 4096)
        async with client(house) as channel:
            call = channel.stream_stream(STREAM)()
            await call.write(infer(id="a", sequence=7))
            await house.until(lambda: engine.under_way)
            await call.write(infer(id="b", sequence=7, text="x" * 5000))
            assert b"4096 bytes allowed" in await call.read()
            await call.write(infer(id="c", sequence=7))
            await house.until(lambda: house.count(Count.ACCEPTED) == 3)
            go.set()
            assert [await call.read(), await call.read()] == [part("a"), part("c")]
        assert engine.most == 1

    play_grpc(play, scene, engine)


# -- each of an engine's answers is counted once


def test_stream_that_fails_late_was_answered_once(play):
    async def fails(call):
        yield part("a", "first")
        await call.context.abort(grpc.StatusCode.INVALID_ARGUMENT, "its own words")

    async def scene(house):
        found = await converse(house, infer(id="a"))
        assert found == [part("a", "first"), failure("its own words", "a")]
        assert statuses(house) == {200: 1}
        assert house.shared.table.load(0)["begun"] == 1

    play_grpc(play, scene, Engine(fails))


async def refuses(call):
    await call.context.abort(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")


async def refuses_in_stream(call):
    yield failure("Exceeds maximum queue size")


@pytest.mark.parametrize("way", ["unary", "stream"])
def test_engine_that_turns_away_has_answered(play, way):
    async def scene(house):
        house.state(1, State.OPEN)
        if way == "unary":
            await status_of(ask(house, "ModelInfer", infer()))
        else:
            (found,) = await converse(house, infer(id="a"))
            assert b"Exceeds maximum queue size" in found
        assert dispatches(house) == {"TURNED_AWAY": 1}
        assert statuses(house) == {503: 1}
        assert house.shared.table.load(0)["begun"] == 0

    play_grpc(play, scene, Engine(refuses if way == "unary" else refuses_in_stream))
