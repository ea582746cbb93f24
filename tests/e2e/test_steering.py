"""What a request says of where it shall go: sessions, labels; and what is told of the decision."""

import pytest

from router import State

DECISION = "x-headgate-decision"
# As the control process numbers them.
LABELS = {"role=decode": 0, "role=prefill": 1, "gpu=h100": 2, "gpu=l4": 3, "zone=a": 4}
ROWS = [0b00111, 0b01011, 0b10111]  # e0: h100; e1: l4; e2: h100 in zone a


def went(answer):
    """The endpoint that answered."""
    assert answer.status == 200, answer.body
    return answer[DECISION].split()[0].removeprefix("endpoint=")


async def asked(house, chat, *headers, key=None, **fields):
    credentials = [("Authorization", f"Bearer {key}")] if key else []
    return await house.ask(body=chat(**fields), headers=[*headers, *credentials])


@pytest.fixture
def steer(play, new_sim):
    """Three engines; the decision header is on."""

    def run(scene, **settings):
        engines = [new_sim(f"sim-{i}") for i in range(3)]
        play(scene, *engines, decision_header=True, **settings)

    return run


# settings, the request's headers; whether it names a session
SESSIONS = {
    "affinity": ({}, [("X-Session-Affinity", "s")], True),
    "session id": ({}, [("x-session-id", "s")], True),
    "any case": ({}, [("X-SESSION-ID", "s")], True),
    "empty": ({}, [("x-session-id", "")], False),
    "none": ({}, [], False),
    "of another kind": ({}, [("x-user-id", "s")], False),
    "configured": ({"affinity_headers": ("x-user-id",)}, [("X-User-Id", "s")], True),
    "no more by default": ({"affinity_headers": ("x-user-id",)}, [("x-session-id", "s")], False),
    "off": ({"affinity_mode": "off"}, [("x-session-id", "s")], False),
    "cookie": ({"affinity_cookie": "sid"}, [("Cookie", "a=b; sid=s; c=d")], True),
    "first cookie": ({"affinity_cookie": "sid"}, [("Cookie", "sid=s")], True),
    "second line": ({"affinity_cookie": "sid"}, [("Cookie", "a=b"), ("Cookie", "sid=s")], True),
    "cookie not there": ({"affinity_cookie": "sid"}, [("Cookie", "xsid=s; sid2=s")], False),
    "empty cookie": ({"affinity_cookie": "sid"}, [("Cookie", "sid=; a=b")], False),
    "cookie not wanted": ({}, [("Cookie", "sid=s")], False),
}


@pytest.mark.parametrize("mode", ["soft", "hard"])
@pytest.mark.parametrize("case", SESSIONS)
def test_what_names_a_session(steer, chat, case, mode):
    settings, headers, names_one = SESSIONS[case]

    async def scene(house):
        used = {went(await asked(house, chat, *headers)) for _ in range(6)}
        assert len(used) == (1 if names_one else 3)

    steer(scene, **{"affinity_mode": mode, **settings})


def test_the_first_header_of_the_list_counts(steer, chat):
    async def scene(house):
        for n in range(12):
            both = [("x-session-id", f"id-{n}"), ("x-session-affinity", f"affinity-{n}")]
            home = went(await asked(house, chat, *both))
            assert went(await asked(house, chat, both[1])) == home
            assert went(await asked(house, chat, *reversed(both))) == home
            assert went(await asked(house, chat, both[1], ("Cookie", "sid=other"))) == home

    steer(scene, affinity_cookie="sid")


def test_engines_see_the_session_too(play, script, chat):
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    engine = script([answer])

    async def scene(house):
        headers = [("x-session-id", "s"), ("x-headgate-labels", "gpu=h100")]
        await house.ask(body=chat(), headers=headers)
        assert engine.asked[0].all("x-session-id") == ["s"]
        assert engine.asked[0].all("x-headgate-labels") == []

    play(scene, engine)


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_a_session_moves_once(steer, chat, mode):
    async def scene(house):
        session = ("x-session-id", "s")
        home = went(await asked(house, chat, session))
        slot = int(home[1:])
        house.state(slot, State.OPEN)
        other = went(await asked(house, chat, session))
        assert other != home
        house.state(slot, State.READY)
        assert {went(await asked(house, chat, session)) for _ in range(6)} == {other}

    steer(scene, affinity_mode=mode)


def test_a_session_moves_by_a_retry_and_stays(play, new_sim, chat):
    """Its engine answers 503: the request is asked elsewhere, and so are those that follow."""
    engines = [new_sim(f"sim-{i}") for i in range(3)]

    async def scene(house):
        session = ("x-session-id", "s")
        home = went(await asked(house, chat, session))
        engines[int(home[1:])].fault("503", count=1)
        other = went(await asked(house, chat, session))
        assert other != home
        assert {went(await asked(house, chat, session)) for _ in range(6)} == {other}

    play(scene, *engines, decision_header=True, affinity_mode="hard")


# what is asked by (model, key, header) -> endpoints that may answer; None: nobody
LABELLED = {
    "nothing": ((), "any", "", {"e0", "e1", "e2"}),
    "model": (("gpu=l4",), "any", "", {"e1"}),
    "key": ((), "h100", "", {"e0", "e2"}),
    "header": ((), "any", "zone=a", {"e2"}),
    "header of two": ((), "any", "gpu=h100, zone=a", {"e2"}),
    "all three": (("gpu=h100",), "h100", "zone=a", {"e2"}),
    "no way past the key": ((), "h100", "gpu=l4", None),
    "not known": ((), "any", "gpu=b200", None),
    "a role": (("role=decode",), "any", "", {"e0", "e1", "e2"}),
    "white space and commas": ((), "any", " ,gpu=l4 , ", {"e1"}),
}


@pytest.mark.parametrize("case", LABELLED)
def test_labels(steer, chat, case):
    model, key, header, allowed = LABELLED[case]

    async def scene(house):
        for slot, bits in enumerate(ROWS):
            house.shared.table.set_row(slot, labels=bits)
        headers = [("x-headgate-labels", header)] if header else []
        if allowed is None:
            answer = await asked(house, chat, *headers, key=key)
            assert (answer.status, answer.reason) == (503, "unmatched_labels")
            return
        used = {went(await asked(house, chat, *headers, key=key)) for _ in range(9)}
        assert used == allowed

    steer(
        scene,
        labels=LABELS,
        labels_by_model={"sim": list(model)} if model else {},
        client_labels=True,
        keys={"any": {}, "h100": {"labels": ["gpu=h100"]}},
    )


def test_an_alias_has_labels_of_its_own(steer, chat):
    async def scene(house):
        for slot, bits in enumerate(ROWS):
            house.shared.table.set_row(slot, labels=bits)
        assert {went(await asked(house, chat, model="cheap")) for _ in range(6)} == {"e1"}
        assert len({went(await asked(house, chat)) for _ in range(6)}) == 3

    steer(
        scene,
        labels=LABELS,
        aliases={"cheap": {"sim": 1.0}},
        labels_by_model={"cheap": ["gpu=l4"]},
    )


def test_clients_choose_no_labels_unless_they_may(steer, chat):
    async def scene(house):
        for slot, bits in enumerate(ROWS):
            house.shared.table.set_row(slot, labels=bits)
        for header in ("gpu=l4", "nonsense"):
            headers = ("x-headgate-labels", header)
            used = {went(await asked(house, chat, headers)) for _ in range(9)}
            assert used == {"e0", "e1", "e2"}

    steer(scene, labels=LABELS)


@pytest.mark.parametrize("header", ["h100", "gpu=", "=h100", "gpu=h100,zone"])
def test_malformed_labels(steer, chat, header):
    async def scene(house):
        answer = await asked(house, chat, ("x-headgate-labels", header))
        assert (answer.status, answer.reason) == (400, "bad_labels")
        assert "name=value" in answer.json["error"]["message"]

    steer(scene, client_labels=True)


def test_only_what_asks_for_it_goes_to_a_prefill_engine(steer, chat):
    async def scene(house):
        for slot, bits in enumerate((0b01, 0b10, 0b11)):  # decode, prefill, both
            house.shared.table.set_row(slot, labels=bits)
        assert {went(await asked(house, chat)) for _ in range(9)} == {"e0", "e2"}
        headers = ("x-headgate-labels", "role=prefill")
        assert {went(await asked(house, chat, headers)) for _ in range(9)} == {"e1", "e2"}

    steer(scene, labels=LABELS, client_labels=True)


def test_the_decision_header_has_the_terms(steer, chat):
    async def scene(house):
        house.state(1, State.OPEN)
        for slot in range(3):
            profile = (8e-3, 33e-6, 1.3e-9, 20e-6, 55e-9, 390_000)
            house.shared.table.set_row(slot, profile=profile)
        body = {"messages": [{"role": "user", "content": "word " * 2000}]}
        first = (await asked(house, chat, ("x-session-id", "s"), **body))[DECISION]
        again = (await asked(house, chat, ("x-session-id", "s"), **body))[DECISION]
        assert "session=new" in first
        assert "session=home" in again
        summary, *candidates = again.split("; ")
        assert summary.startswith("endpoint=e")
        assert "policy=marginal-cost candidates=3" in summary
        home = summary.split()[0].removeprefix("endpoint=")
        assert candidates[0].split()[0] == home
        assert candidates[-1] == "e1 (not ready)"
        terms = [dict(word.split("=") for word in one.split()[1:]) for one in candidates[:2]]
        assert terms[1]["home"] == "500ms"
        assert "home" not in terms[0]
        own_ms = [float(one["own"].removesuffix("ms")) for one in terms]
        assert own_ms[0] < own_ms[1] / 5, "the prompt is cached at home"

    steer(scene)


def test_a_header_stays_short(play, new_sim, chat):
    engines = [new_sim(f"sim-{i}") for i in range(12)]

    async def scene(house):
        answer = await asked(house, chat)
        assert len(answer[DECISION].split("; ")) == 9

    play(scene, *engines, decision_header=True)


def test_adapters_share_nothing_with_their_base(play, new_sim, chat):
    """The same prompt for base and adapter: no hit is expected of the other's blocks."""
    engines = [new_sim(f"sim-{i}", adapters=("lora",)) for i in range(2)]

    async def scene(house):
        body = {"messages": [{"role": "user", "content": "word " * 2000}]}
        first = (await asked(house, chat, **body))[DECISION]
        other = (await asked(house, chat, model="lora", **body))[DECISION]
        again = (await asked(house, chat, model="lora", **body))[DECISION]
        assert "cached-tokens=0/" in first
        assert "cached-tokens=0/" in other
        assert "cached-tokens=0/" not in again
        assert went_by(again) == went_by(other), "its adapter is there"
        assert "adapter=500ms" in other
        assert "adapter=500ms" in again.split("; ")[2]
        assert "adapter" not in again.split("; ")[1]

    models = {"sim": [0, 1], "lora": [0, 1]}
    play(scene, *engines, decision_header=True, models=models, parents={"lora": "sim"})


def went_by(decision):
    return decision.split()[0]
