"""Requests that find no room wait in the gateway: in order, within bounds, and never lost."""

import asyncio
import contextlib
import json
import time
from array import array

import pytest

from gateway._shared import Count, ModelWord
from gateway.messages import Drain, Model
from gateway.proxy._explain import explain
from router import State, make_policy
from router._demand import Demand
from router._router import Router
from tests.e2e.conftest import CLOSE, Script, chat, request

PLAIN = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
BUSY = b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\n{}"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[{"text":"a"}]}\n\n'
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n\r\n"


class Gated(Script):
    """An engine that answers when it is let: each request as told by `steps`."""

    def __init__(self, steps=(PLAIN,)):
        super().__init__(self._steps)
        self._rest = tuple(steps)
        self.gates = []

    def _steps(self, asked):
        gate = asyncio.Event()
        self.gates.append(gate)
        yield gate.wait()
        yield from self._rest

    def let(self):
        """The first one that waits gets its answer."""
        next(gate for gate in self.gates if not gate.is_set()).set()

    @property
    def seeds(self):
        """Who came here, in order."""
        return [asked.json["seed"] for asked in self.asked]


class Line:
    """Clients of one house, told apart by a number in their bodies."""

    def __init__(self, house, engine):
        self.house, self.engine = house, engine
        self.wires = {}

    async def come(self, seed, headers=(), **fields):
        """One more client, whose request is at the engine or in the queue when this returns."""
        house = self.house
        known = house.count(Count.HELD_REQUESTS) + len(self.engine.asked)
        ended = sum(house.count(end) for end in (Count.REFUSED, Count.FAILED))
        wire = await house.dial(
            request("POST", "/v1/chat/completions", chat(seed=seed, **fields), headers)
        )
        self.wires[seed] = wire
        await house.until(
            lambda: (
                house.count(Count.HELD_REQUESTS) + len(self.engine.asked) != known
                or sum(house.count(end) for end in (Count.REFUSED, Count.FAILED)) != ended
            )
        )

    async def answer(self, seed):
        return await self.wires[seed].answer()

    async def finish(self, *seeds):
        """Let all of these go, one after the other, as they come to the engine."""
        for _ in seeds:
            await self.house.until(lambda: not all(g.is_set() for g in self.engine.gates))
            self.engine.let()
        for seed in seeds:
            assert (await self.answer(seed)).status == 200


def full_at_one(house, *slots):
    for slot in slots or (0,):
        house.shared.table.set_row(slot, max_in_flight=1)


def held(house):
    return house.count(Count.HELD_REQUESTS)


def test_those_that_wait_are_served_in_order(play):
    engine = Gated()

    async def scene(house):
        full_at_one(house)
        line = Line(house, engine)
        for seed in range(4):
            await line.come(seed)
        assert (held(house), engine.seeds) == (3, [0])
        assert house.count(Count.HELD_BYTES) == sum(
            len(request("POST", "/", chat(seed=n)).partition(b"\r\n\r\n")[2]) for n in (1, 2, 3)
        )
        await line.finish(0, 1, 2, 3)
        assert engine.seeds == [0, 1, 2, 3]
        assert (held(house), house.count(Count.HELD_BYTES)) == (0, 0)
        histogram = [house.model_word(ModelWord.M_HELD + bucket) for bucket in range(21)]
        assert sum(histogram) == 3
        await house.until(lambda: len(house.access) == 4)
        waits = [record["held_s"] for record in house.access]
        assert waits[0] is None
        assert all(waits[1:])

    play(scene, engine)


@pytest.mark.parametrize(
    ("asks", "order"),
    [
        ([{"priority": 5}, {}, {"priority": -1}], [3, 2, 1]),
        ([{"header": "5"}, {"header": "-2"}, {"priority": -3}], [3, 2, 1]),
        ([{"header": "1", "priority": -9}, {"priority": "high"}, {"priority": -1}], [3, 2, 1]),
        ([{"priority": 10**30}, {"priority": 5000}, {"priority": 999}], [1, 3, 2]),
        ([{"priority": "9"}, {"priority": -9.5}, {"priority": -(10**30)}], [1, 2, 3]),
        ([{"priority": False}, {"priority": None}, {"priority": [-9]}], [1, 2, 3]),
    ],
    ids=["body", "header", "the header counts", "what is no number does not", "nor these", "nor"],
)
def test_a_lower_priority_number_goes_first(play, asks, order):
    engine = Gated()

    async def scene(house):
        full_at_one(house)
        line = Line(house, engine)
        await line.come(0)
        for seed, ask in enumerate(asks, 1):
            headers = [("x-headgate-priority", ask.pop("header"))] if "header" in ask else []
            await line.come(seed, headers, **ask)
        await line.finish(0, 1, 2, 3)
        assert engine.seeds == [0, *order]
        # A field of the body is the engine's as well, to judge too; the header is ours alone.
        sent = {asked.json["seed"]: asked.json.get("priority") for asked in engine.asked}
        assert all(sent[seed] == ask.get("priority") for seed, ask in enumerate(asks, 1))
        assert not any(asked.all("x-headgate-priority") for asked in engine.asked)

    play(scene, engine)


def test_a_key_says_how_far_ahead_one_may_get(play):
    engine = Gated()
    keys = {"plain": {}, "batch": {"priority": 5}, "chief": {"priority": -5}}

    async def scene(house):
        full_at_one(house)
        line = Line(house, engine)
        asks = [("plain", 0), ("batch", -9), ("plain", -9), ("chief", 7), ("chief", None)]
        for seed, (key, priority) in enumerate(asks):
            fields = {} if priority is None else {"priority": priority}
            await line.come(seed, [("Authorization", f"Bearer {key}")], **fields)
        await line.finish(*range(5))
        assert engine.seeds == [0, 4, 2, 1, 3]

    play(scene, engine, keys=keys)


@pytest.mark.parametrize("value", ["", "high", "1.5", "1001", "-1001", "9" * 300])
def test_a_priority_that_is_none_is_refused(play, new_sim, value):
    async def scene(house):
        answer = await house.ask(body=chat(), headers=[("x-headgate-priority", value)])
        assert (answer.status, answer.reason) == (400, "bad_priority")
        assert "whole number from -1000" in answer.json["error"]["message"]

    play(scene, new_sim())


def test_who_waits_too_long_is_told_when_to_come_back(play):
    engine = Gated()

    async def scene(house):
        full_at_one(house)
        line = Line(house, engine)
        await line.come(0)
        await line.come(1)
        answer = await line.answer(1)
        assert (answer.status, answer.reason) == (429, "hold_timeout")
        assert 1 <= int(answer["retry-after"]) <= 60
        assert answer.json["error"]["code"] == "engines_busy"
        assert held(house) == 0
        assert house.reasons() == {"hold_timeout": 1}
        assert house.count(Count.REFUSED) == 1
        # The connection is as good as ever.
        line.wires[1].write(request("POST", "/v1/chat/completions", chat(seed=2)))
        await house.until(lambda: held(house) == 1)
        await line.finish(0)
        await house.until(lambda: len(engine.asked) == 2)
        engine.let()
        assert (await line.answer(1)).status == 200

    play(scene, engine, hold_s=0.3)


@pytest.mark.parametrize(
    "bounds", [{"hold_requests": 2}, {"hold_bytes": 200}, {"hold_requests": 0}], ids=str
)
def test_a_full_queue_refuses_at_once(play, bounds):
    engine = Gated()

    async def scene(house):
        full_at_one(house)
        line = Line(house, engine)
        await line.come(0)
        fit = 0 if bounds.get("hold_requests") == 0 else 2
        for seed in range(1, 2 + fit):
            await line.come(seed)
        answer = await line.answer(1 + fit)
        assert (answer.status, answer.reason) == (429, "hold_full")
        assert 1 <= int(answer["retry-after"]) <= 60
        assert f"{fit} requests" in answer.json["error"]["message"]
        await line.finish(0, *range(1, 1 + fit))

    play(scene, engine, **bounds)


def test_in_a_full_queue_the_last_gives_way_to_a_lower_priority_number(play):
    engine = Gated()

    async def scene(house):
        full_at_one(house)
        line = Line(house, engine)
        await line.come(0)
        await line.come(1, priority=3)
        await line.come(2, priority=3)
        line.wires[3] = await house.dial(
            request("POST", "/v1/chat/completions", chat(seed=3, priority=0))
        )
        answer = await line.answer(2)
        assert (answer.status, answer.reason) == (429, "hold_full")
        await line.finish(0, 1, 3)
        assert engine.seeds == [0, 3, 1]

    play(scene, engine, hold_requests=2)


@pytest.mark.parametrize("how", ["close", "reset", "flood"])
def test_a_client_that_leaves_the_queue_is_forgotten(play, how):
    engine = Gated()

    async def scene(house):
        full_at_one(house)
        line = Line(house, engine)
        for seed in range(3):
            await line.come(seed)
        if how == "flood":
            line.wires[1].write(b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + 40_000 * b"a")
        else:
            getattr(line.wires[1], how)()
        await house.until(lambda: held(house) == 1)
        cause = Count.CANCEL_PIPELINE if how == "flood" else Count.CANCEL_CLIENT_GONE
        assert (house.count(cause), house.count(Count.CANCELLED)) == (1, 1)
        await line.finish(0, 2)
        assert engine.seeds == [0, 2]

    play(scene, engine)


def test_a_drain_serves_those_that_wait_until_its_grace_is_over(play):
    engine = Gated()

    async def scene(house):
        full_at_one(house)
        line = Line(house, engine)
        for seed in range(3):
            await line.come(seed)
        house.send(Drain(0, 30.0))
        await house.until(lambda: house.worker._server is not None)
        engine.let()
        assert (await line.answer(0)).status == 200
        await house.until(lambda: len(engine.asked) == 2)
        house.send(Drain(0, 0))
        answers = [await line.answer(1), await line.answer(2)]
        assert [answer.reason for answer in answers] == ["drain_grace_over", "draining"]
        assert [answer.status for answer in answers] == [503, 503]
        await house.drained.wait()
        assert (held(house), house.count(Count.REFUSED), house.count(Count.FAILED)) == (0, 1, 1)

    play(scene, engine)


def failing(*steps):
    return Script(steps)


@pytest.mark.parametrize(
    ("bad", "retry", "status", "reason"),
    [
        (failing(CLOSE), Count.RETRY_LOST, 502, "upstream_lost"),
        (failing(BUSY), Count.RETRY_STATUS, 503, "turned_away"),
    ],
    ids=["lost", "turned away"],
)
@pytest.mark.parametrize("patient", [True, False])
def test_a_request_that_failed_waits_for_another_engine(play, bad, retry, status, reason, patient):
    engine = Gated()
    bad = Script(bad._answers)

    async def scene(house):
        full_at_one(house)
        house.state(1, State.OPEN)
        line = Line(house, engine)
        await line.come(0)
        await line.come(1)
        house.state(1, State.READY)
        full_at_one(house, 1)
        # By the tick, the one that waits goes to the bad engine, and comes back.
        await house.until(lambda: len(bad.asked) == 1 and held(house) == 1)
        house.state(1, State.OPEN)
        await line.come(2)
        assert house.count(retry) == 0  # it is none before it is sent
        if not patient:
            answer = await line.answer(1)
            assert (answer.status, answer.reason) == (status, reason)
            assert house.count(Count.FAILED) == 1
            engine.let()
            return
        await line.finish(0, 1, 2)
        assert engine.seeds == [0, 1, 2]
        assert house.count(retry) == 1
        await house.until(lambda: len(house.access) == 3)
        (record,) = [record for record in house.access if record["dispatches"] == 2]
        assert record["held_s"] > 0

    play(scene, engine, bad, hold_s=60.0 if patient else 0.8)


def test_what_another_worker_frees_is_found_by_the_tick(play):
    engine = Gated()

    async def scene(house):
        full_at_one(house)
        house.shared.table.set_work(1, 0, (1, 0, 0.0, 0.0, 0.0, 0, 0))
        line = Line(house, engine)
        await line.come(0)
        assert (held(house), engine.asked) == (1, [])
        house.shared.table.set_work(1, 0, (0, 0, 0.0, 0.0, 0.0, 0, 0))
        await line.finish(0)

    play(scene, engine)


def test_who_waits_for_its_session_keeps_no_other_endpoint_free(play):
    engines = Gated(), Gated()

    async def scene(house):
        table = house.shared.table
        session = (("X-Session-ID", "s"),)
        wire = await house.dial(request("POST", "/v1/chat/completions", chat(), session))
        await house.until(lambda: engines[0].asked or engines[1].asked)
        home = 0 if engines[0].asked else 1
        engines[home].let()
        assert (await wire.answer()).status == 200
        full_at_one(house, home)
        table.set_work(1, home, (1, 0, 0.0, 0.0, 0.0, 0, 0))
        line = Line(house, engines[home])
        await line.come(0, session)
        assert held(house) == 1
        ticks = house.count(Count.TICKS)
        await house.until(lambda: house.count(Count.TICKS) >= ticks + 2)
        router = Router(table, 1, make_policy("round-robin", 1), None)
        now_s = time.monotonic()
        later = {"minds_others": True, "since_s": now_s + 1.0}
        sent = router.send(Demand(), range(2), array("Q"), 9.0, 0.0, now_s, **later)
        assert sent is not None
        assert sent.slot == 1 - home
        sent.release(now_s)
        table.set_work(1, home, (0, 0, 0.0, 0.0, 0.0, 0, 0))
        await line.finish(0)

    play(scene, *engines, affinity_mode="hard", workers=2)


def test_a_full_queue_for_one_endpoint_refuses_nobody_at_another(play):
    engine, second = Gated(), Gated()

    async def scene(house):
        table = house.shared.table
        full_at_one(house, 0, 1)
        table.set_row(0, labels=1)
        table.set_work(1, 0, (1, 0, 0.0, 0.0, 0.0, 0, 0))
        line = Line(house, engine)
        await line.come(0, [("x-headgate-labels", "gpu=a")])
        # The second one comes in the very moment in which the first one's place is free.
        ask = request("POST", "/v1/chat/completions", chat())
        wire = await house.dial(ask + ask)
        for n in (1, 2):
            await house.until(lambda n=n: len(second.asked) == n)
            second.let()
            assert (await wire.answer()).status == 200
        table.set_work(1, 0, (0, 0, 0.0, 0.0, 0.0, 0, 0))
        await line.finish(0)

    labels = {"gpu=a": 0}
    play(scene, engine, second, workers=2, client_labels=True, labels=labels, hold_requests=1)


@pytest.mark.parametrize("frees", ["another worker", "this worker"])
def test_who_waits_for_one_endpoint_goes_before_who_comes_for_any(play, frees):
    engine, second = Gated(), Gated()

    async def scene(house):
        table = house.shared.table
        full_at_one(house, 0, 1)
        table.set_row(0, labels=1)
        table.set_work(1, 1, (1, 0, 0.0, 0.0, 0.0, 0, 0))
        line = Line(house, engine)
        if frees == "this worker":
            await line.come(0)
        else:
            table.set_work(1, 0, (1, 0, 0.0, 0.0, 0.0, 0, 0))
        await line.come(1, [("x-headgate-labels", "gpu=a")])
        ticks = house.count(Count.TICKS)
        await house.until(lambda: held(house) == 1 and house.count(Count.TICKS) >= ticks + 2)
        if frees == "this worker":
            engine.let()
        else:
            table.set_work(1, 0, (0, 0, 0.0, 0.0, 0.0, 0, 0))
        # It might go to the same endpoint at once.
        await house.loop.create_task(line.come(2))
        await house.until(lambda: engine.seeds[-1:] == [1])
        assert held(house) == 1
        engine.let()
        await house.until(lambda: engine.seeds[-1:] == [2])
        engine.let()
        for seed in line.wires:
            assert (await line.answer(seed)).status == 200
        table.set_work(1, 1, (0, 0, 0.0, 0.0, 0.0, 0, 0))
        assert second.asked == []

    play(scene, engine, second, workers=2, client_labels=True, labels={"gpu=a": 0})


def test_costs_are_told_while_none_has_room(play):
    async def scene(house):
        full_at_one(house)
        house.shared.table.set_work(1, 0, (1, 0, 0.0, 0.0, 0.0, 0, 0))
        found = []
        explain(house.worker.plane, HEAD, json.dumps(chat()).encode(), "", found.append)
        (candidate,) = found[0]["candidates"]
        assert candidate["why_not"] == "full"
        # The least that the others' waiting costs, and not what the last request's was.
        assert candidate["price"] > 1

    play(scene, Gated(), hold_wait_s=2.0)


def test_who_asks_where_a_request_would_go_hears_of_those_that_wait(play):
    engine = Gated()

    async def scene(house):
        def explained(**fields):
            found = []
            explain(house.worker.plane, HEAD, json.dumps(chat(**fields)).encode(), "", found.append)
            return [found[0][name] for name in ("waiting", "ahead", "endpoint", "waits_s")]

        full_at_one(house)
        line = Line(house, engine)
        await line.come(0)
        assert explained() == [0, 0, None, 60.0]
        await line.come(1)
        await line.come(2, priority=3)
        assert explained() == [2, 1, None, 60.0]
        assert explained(priority=4) == [2, 2, None, 60.0]
        # There is room, but for the one that waits.
        house.shared.table.set_row(0, max_in_flight=2)
        assert explained() == [2, 1, None, 60.0]
        await line.finish(0, 1, 2)

    play(scene, engine)


HERE = {"gpu=h100": 2, "gpu=l4": 3, "zone=b": 4}


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("gpu=b200", "no engine for the model 'sim' has gpu=b200"),
        ("gpu=l4, color=red", "no engine for the model 'sim' has color=red"),
        ("gpu=l4, zone=b", "no engine for the model 'sim' has gpu=l4 and zone=b"),
    ],
)
def test_labels_that_no_engine_has_are_not_waited_for(play, header, told):
    async def scene(house):
        for slot, labels in ((0, 0b10100), (1, 0b01000)):
            house.shared.table.set_row(slot, labels=labels, state=State.OPEN)
        answer = await house.ask(body=chat(), headers=[("x-headgate-labels", header)])
        assert (answer.status, answer.reason) == (503, "unmatched_labels")
        assert answer.get("retry-after") is None
        assert answer.json["error"]["message"] == (
            f"Labels that are asked for are nowhere: {told}; there are gpu=h100, gpu=l4, zone=b."
        )
        # While an engine is not known yet, it may have them.
        house.tell(complete=False, hold_no_engine_s=0.3)
        answer = await house.ask(body=chat(), headers=[("x-headgate-labels", header)])
        assert (answer.status, answer.reason) == (503, "no_endpoint")
        assert answer["retry-after"] == "2"
        assert answer.json["error"]["message"].startswith(
            "No engine can take the request now: none of those for the model 'sim' that have "
        )
        assert answer.json["error"]["message"].endswith(" is ready.")

    engines = Gated(), Gated()
    play(scene, *engines, client_labels=True, labels=HERE, hold_no_engine_s=60.0)


@pytest.mark.parametrize("by", ["key", "model"])
def test_clients_hear_of_a_missing_label_but_not_of_all_there_are(play, by):
    async def scene(house):
        house.shared.table.set_row(0, labels=0b100)
        answer = await house.ask(body=chat(), headers=[("Authorization", "Bearer team")])
        assert answer.json["error"]["message"] == (
            "Labels that are asked for are nowhere: no engine for the model 'sim' has gpu=b200."
        )

    asks = ["gpu=b200"]
    keys = {"team": {"labels": asks} if by == "key" else {}}
    models = {"sim": asks} if by == "model" else {}
    play(scene, Gated(), labels=HERE, keys=keys, labels_by_model=models)


def test_a_new_fleet_is_where_those_that_wait_may_go(play):
    engine, second = Gated(), Gated()

    async def scene(house):
        full_at_one(house)
        line = Line(house, engine)
        await line.come(0)
        await line.come(1)
        await second.start()
        house.engines.append(second)
        house.state(1, State.READY)
        house.tell(endpoints=house.endpoints(), models=[Model("sim", 0, [0, 1])])
        await house.until(lambda: second.seeds == [1])
        # Nobody has the model any more; then one has it again.
        full_at_one(house, 1)
        await line.come(2)
        house.tell(models=[])
        engine.let()
        assert (await line.answer(0)).status == 200
        await asyncio.sleep(0.25)
        assert held(house) == 1
        house.tell(models=[Model("sim", 0, [0, 1])])
        await house.until(lambda: engine.seeds == [0, 2])
        second.let()
        engine.let()
        assert [(await line.answer(n)).status for n in (1, 2)] == [200, 200]

    play(scene, engine)


def test_without_a_ready_engine_the_answer_comes_at_once(play, new_sim):
    async def scene(house):
        house.state(0, State.OPEN)
        answer = await house.chat()
        assert (answer.status, answer.reason, held(house)) == (503, "no_endpoint", 0)

    play(scene, new_sim())


@pytest.mark.parametrize("comes", [True, False])
def test_a_request_waits_for_the_first_engine_if_it_is_told_to(play, new_sim, comes):
    async def scene(house):
        house.state(0, State.OPEN)
        wire = await house.dial(request("POST", "/v1/chat/completions", chat()))
        await house.until(lambda: held(house) == 1)
        if comes:
            house.state(0, State.READY)
        answer = await wire.answer()
        assert answer.status == (200 if comes else 503)
        assert answer.reason == (None if comes else "no_endpoint")

    play(scene, new_sim(), hold_no_engine_s=20.0 if comes else 0.3)


def test_a_first_token_makes_room_for_the_next_prompt(play):
    engine = Gated((STREAM, CHUNK))

    async def scene(house):
        # A second of work for each token of a prompt.
        house.shared.table.set_row(0, profile=(0.0, 1.0, 0.0, 0.0, 0.0, 0.0))
        line = Line(house, engine)
        for seed in range(3):
            await line.come(seed, stream=True)
        assert (held(house), engine.seeds) == (2, [0])
        engine.let()
        await house.until(lambda: engine.seeds == [0, 1])
        assert held(house) == 1
        engine.let()
        await house.until(lambda: engine.seeds == [0, 1, 2])
        assert house.count(Count.COMPLETED) == 0

    play(scene, engine, hold_wait_s=2.0)


@pytest.mark.parametrize("policy", ["marginal-cost", "round-robin", "power-of-two"])
def test_a_wait_at_one_engine_holds_nothing_back_while_another_has_room(play, policy):
    engine, second = Gated((STREAM, CHUNK)), Gated((STREAM, CHUNK))

    async def scene(house):
        for slot in range(2):
            house.shared.table.set_row(slot, profile=(0.0, 1.0, 0.0, 0.0, 0.0, 0.0))
        ask = request("POST", "/v1/chat/completions", chat(stream=True))
        wires = [await house.dial(ask) for _ in range(12)]
        await house.until(lambda: held(house) and len(engine.asked) and len(second.asked))
        await house.until(lambda: held(house) + house.count(Count.DISPATCHED) == 12)
        for one in (engine, second):
            one.let()
        for wire in wires:
            wire.close()

    play(scene, engine, second, hold_wait_s=2.0, policy=policy)


def test_a_line_for_one_model_holds_no_other_back(play):
    engine, second = Gated(), Gated()

    async def scene(house):
        full_at_one(house)
        line = Line(house, engine)
        await line.come(0)
        await line.come(1)
        assert held(house) == 1
        wire = await house.dial(request("POST", "/v1/chat/completions", chat(model="b", seed=9)))
        await house.until(lambda: second.seeds == [9])
        second.let()
        assert (await wire.answer()).status == 200
        await line.finish(0, 1)

    play(scene, engine, second, models={"sim": [0], "b": [1]}, hold_requests=1)


def test_who_comes_later_does_not_overtake(play):
    """Not even where room was made by others and nobody has been told yet."""
    engine = Gated()

    async def scene(house):
        full_at_one(house)
        house.shared.table.set_work(1, 0, (1, 0, 0.0, 0.0, 0.0, 0, 0))
        line = Line(house, engine)
        await line.come(0)
        # Both in one turn of the loop: no tick between.
        house.shared.table.set_work(1, 0, (0, 0, 0.0, 0.0, 0.0, 0, 0))
        await line.come(1)
        await house.until(lambda: len(engine.asked) == 1)
        await line.finish(0, 1)
        assert engine.seeds == [0, 1]

    play(scene, engine)


def test_everyone_is_counted_once_when_clients_and_engines_come_and_go(play):
    engines = [Script([0.002, PLAIN]), Script([0.001, STREAM, CHUNK, END]), Script([CLOSE])]

    async def scene(house):
        full_at_one(house, 0, 1, 2)

        async def client(number):
            wire = await house.dial(
                request("POST", "/v1/chat/completions", chat(priority=number % 3))
            )
            if number % 5 == 0:
                await asyncio.sleep(0.001 * (number % 7))
                wire.close()
                return
            with contextlib.suppress(TimeoutError):
                answer = await wire.answer()
                assert answer.status in (200, 429, 502, 503)

        await asyncio.gather(*(client(number) for number in range(120)))
        await house.until(lambda: held(house) == 0)

    play(scene, *engines, hold_requests=40, hold_s=2.0)
