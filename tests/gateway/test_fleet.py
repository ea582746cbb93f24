"""Slots, generations, model lists and aliases."""

import json

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.config import Config, Engine, Secret
from gateway.config.schema import Key, ModelRule
from gateway.fleet import MAX_MODELS, MAX_SLOTS, QUARANTINE_S, Fleet, FleetError
from gateway.messages import Choice, Endpoint, Model, Settings


def fleet_of(*urls, **lists):
    """A fleet with an address for everybody; `lists`: name -> model ids."""
    fleet = Fleet(busy=lambda slot: False)
    for index, url in enumerate(urls):
        member = fleet.add(Engine(url=url), "config", 0.0)
        fleet.move(member, f"10.0.0.{index + 1}")
    for member in fleet.members.values():
        if member.name in lists:
            fleet.set_models(member, [{"id": name} for name in lists[member.name]])
    return fleet


def listed(fleet, config=None):
    return {m["id"]: m for m in json.loads(fleet.build(config or Config()).models_json)["data"]}


def test_an_endpoint_as_the_workers_get_it():
    fleet = Fleet(busy=lambda slot: False)
    engine = Engine(url="https://pod.svc:8443/a/v1/", kind="sglang", api_key=Secret("k"))
    fleet.move(fleet.add(engine, "config", 0.0), "10.0.0.1")
    assert fleet.build(Config(), "127.0.0.1:9180").endpoints == [
        Endpoint(
            slot=0,
            generation=1,
            name="pod.svc:8443-a",
            kind="sglang",
            host="pod.svc:8443",
            address="10.0.0.1",
            port=8443,
            tls=True,
            server_name="pod.svc",
            api_key="k",
            path_prefix="/a",
        )
    ]
    assert fleet.build(Config(), "x:1").settings == Settings(admin_address="x:1")


@pytest.mark.parametrize(
    ("url", "name", "host"),
    [
        ("http://a", "a:80", "a"),
        ("http://a:8000", "a:8000", "a:8000"),
        ("https://a:443", "a:443", "a"),
        ("http://[::1]:8000", "[::1]:8000", "[::1]:8000"),
        ("http://a/x/y", "a:80-x-y", "a"),
    ],
)
def test_names_and_host_headers(url, name, host):
    fleet = fleet_of(url)
    assert [(e.name, e.host) for e in fleet.build(Config()).endpoints] == [(name, host)]


def test_nobody_is_dialled_before_its_name_is_resolved():
    fleet = Fleet(busy=lambda slot: False)
    fleet.add(Engine(url="http://a"), "config", 0.0)
    built = fleet.build(Config())
    assert (built.endpoints, built.complete) == ([], False)


def test_models_that_come_and_go():
    """What comes is known and waits; what goes is not, unless another has it."""
    fleet = fleet_of("http://a:1", "http://b:1", **{"a:1": ["m", "n"], "b:1": ["m"]})
    one = fleet.members["a:1"]
    one.coming, one.going = {"new", "m"}, {"n"}
    slots = {model.name: model.slots for model in fleet.build(Config()).models}
    assert slots == {"m": [1], "new": []}
    one.coming, one.going = set(), {"m"}
    slots = {model.name: model.slots for model in fleet.build(Config()).models}
    assert slots == {"m": [1], "n": [0]}
    one.going = {"m", "n"}
    fleet.move(one, "10.0.0.9")
    assert (one.coming, one.going) == (set(), set()), "another process has that address"


def test_models_and_their_slots():
    fleet = fleet_of("http://a", "http://b", **{"a:80": ["x", "y"], "b:80": ["y"]})
    built = fleet.build(Config())
    assert built.models == [Model("x", 0, [0]), Model("y", 1, [0, 1])]
    assert built.complete


def test_complete_means_that_every_list_was_read():
    assert not Fleet(busy=lambda slot: False).build(Config()).complete, "no engine seen yet"
    fleet = fleet_of("http://a", "http://b", **{"a:80": ["x"]})
    assert not fleet.build(Config()).complete
    fleet.members["b:80"].leaving = True
    assert fleet.build(Config()).complete


def test_the_list_is_the_union_and_promises_what_all_keep():
    fleet = fleet_of("http://a", "http://b")
    a, b = fleet.members.values()
    fleet.set_models(a, [{"id": "m", "owned_by": "vllm", "max_model_len": 9, "permission": [1]}])
    fleet.set_models(b, [{"id": "m", "owned_by": "x", "max_model_len": 5}, {"id": "n"}, {"no": 1}])
    assert listed(fleet) == {
        "m": {
            "id": "m",
            "object": "model",
            "created": 0,
            "owned_by": "vllm",
            "max_model_len": 5,
        },
        "n": {"id": "n", "object": "model", "created": 0, "owned_by": "unknown"},
    }


def test_aliases_are_listed_where_they_lead_somewhere():
    fleet = fleet_of("http://a", **{"a:80": ["m"]})
    config = Config(
        models={
            "fast": ModelRule(split={"gone": 1, "m": 3}),
            "lost": ModelRule(alias_of="gone"),
            "m2": ModelRule(usage="exact"),
        }
    )
    found = listed(fleet, config)
    assert sorted(found) == ["fast", "m"]
    assert (found["fast"]["root"], found["fast"]["owned_by"]) == ("m", "headgate")
    built = fleet.build(config)
    assert built.aliases == {
        "fast": [Choice("gone", 1.0), Choice("m", 3.0)],
        "lost": [Choice("gone", 1.0)],
    }


def test_what_an_engine_makes_up_anew_is_no_change():
    fleet = fleet_of("http://a")
    (member,) = fleet.members.values()
    assert fleet.set_models(member, [{"id": "m", "created": 1, "permission": ["a"]}])
    before = fleet.build(Config())
    assert not fleet.set_models(member, [{"id": "m", "created": 2, "permission": ["b"]}])
    assert fleet.build(Config()) == before
    assert fleet.set_models(member, [])


def test_an_empty_first_list_is_a_change():
    fleet = fleet_of("http://a")
    (member,) = fleet.members.values()
    assert fleet.set_models(member, [])
    assert fleet.is_complete()


def test_model_rows_stay_and_the_last_is_shared():
    fleet = fleet_of("http://a", "http://b")
    a, b = fleet.members.values()
    fleet.set_models(a, [{"id": f"m{i:03}"} for i in range(MAX_MODELS + 5)])
    rows = {model.name: model.index for model in fleet.build(Config()).models}
    assert sorted(set(rows.values())) == list(range(MAX_MODELS))
    fleet.set_models(a, [])
    fleet.set_models(b, [{"id": "m003"}, {"id": "new"}])
    again = {model.name: model.index for model in fleet.build(Config()).models}
    assert again == {"m003": rows["m003"], "new": MAX_MODELS - 1}


def test_a_name_is_had_once():
    fleet = fleet_of("http://a")
    with pytest.raises(FleetError, match="'a:80' is there already"):
        fleet.add(Engine(url="http://a"), "admin", 0.0)
    fleet.rename(fleet.members["a:80"], "old")
    fleet.add(Engine(url="http://a"), "admin", 0.0)
    with pytest.raises(FleetError):
        fleet.rename(fleet.members["a:80"], "old")


def test_a_full_house():
    fleet = fleet_of(*(f"http://a:{port}" for port in range(1, MAX_SLOTS + 1)))
    with pytest.raises(FleetError, match="all 1024 slots"):
        fleet.add(Engine(url="http://b"), "admin", 0.0)


def test_another_address_is_another_generation():
    fleet = fleet_of("http://a", **{"a:80": ["m"]})
    (member,) = fleet.members.values()
    assert (member.generation, member.slot) == (1, 0)
    fleet.move(member, "10.9.9.9")
    assert (member.generation, member.slot, member.models) == (2, 0, None)


class Slots(RuleBasedStateMachine):
    """A slot and its generation never mean two endpoints, nor does a slot change hands too soon."""

    def __init__(self):
        super().__init__()
        self.load = set()
        self.fleet = Fleet(busy=self.load.__contains__)
        self.now_s = 0.0
        self.left_s = {}
        self.owners = {}
        self.count = 0

    @rule(wait_s=st.floats(0, 10))
    def wait(self, wait_s):
        self.now_s += wait_s

    @rule()
    def add(self):
        self.count += 1
        member = self.fleet.add(Engine(url=f"http://a:{self.count}"), "config", self.now_s)
        assert member.slot not in self.load
        assert self.now_s - self.left_s.get(member.slot, -99.0) >= QUARANTINE_S
        self._own(member)

    @precondition(lambda self: self.fleet.members)
    @rule(data=st.data(), busy=st.booleans())
    def remove(self, data, busy):
        name = data.draw(st.sampled_from(sorted(self.fleet.members)))
        member = self.fleet.remove(name, self.now_s)
        self.left_s[member.slot] = self.now_s
        if busy:
            self.load.add(member.slot)

    @precondition(lambda self: self.load)
    @rule()
    def finish(self):
        self.load.pop()

    @precondition(lambda self: self.fleet.members)
    @rule(data=st.data(), address=st.sampled_from("xyz"))
    def move(self, data, address):
        member = self.fleet.members[data.draw(st.sampled_from(sorted(self.fleet.members)))]
        if address != member.address:
            self.fleet.move(member, address)
            if (member.slot, member.generation) not in self.owners:
                self._own(member)

    def _own(self, member):
        assert (member.slot, member.generation) not in self.owners
        self.owners[member.slot, member.generation] = member

    @invariant()
    def slots_are_had_once(self):
        members = self.fleet.members.values()
        assert len({member.slot for member in members}) == len(members)


TestSlots = Slots.TestCase


def test_labels_are_bits():
    fleet = Fleet(busy=lambda slot: False)
    plain = fleet.add(Engine(url="http://a"), "config", 0.0)
    first = fleet.add(Engine(url="http://b", labels={"gpu": "h100"}), "config", 0.0)
    other = fleet.add(Engine(url="http://c", labels={"gpu": "l4", "zone": "a"}), "config", 0.0)
    half = fleet.add(Engine(url="http://d", role="prefill"), "config", 0.0)
    rest = fleet.add(Engine(url="http://e", role="decode", labels={"gpu": "h100"}), "config", 0.0)
    bits = fleet.build(Config()).labels

    def has(member):
        return {text for text, bit in bits.items() if member.labels >> bit & 1}

    both = {"role=prefill", "role=decode"}
    assert has(plain) == both
    assert has(first) == both | {"gpu=h100"}
    assert has(other) == both | {"gpu=l4", "zone=a"}
    assert has(half) == {"role=prefill"}
    assert has(rest) == {"role=decode", "gpu=h100"}
    assert len(set(bits.values())) == len(bits)


def test_more_labels_than_bits():
    fleet = Fleet(busy=lambda slot: False)
    for n in range(61):
        fleet.add(Engine(url=f"http://e{n}", labels={"n": str(n)}), "config", 0.0)
    with pytest.raises(FleetError, match="more than 63 different"):
        fleet.add(Engine(url="http://x", labels={"n": "x"}), "config", 0.0)
    assert "x:80" not in fleet.members
    known = fleet.add(Engine(url="http://x", labels={"n": "7"}), "config", 0.0)
    assert known.labels == fleet.members["e7:80"].labels
    assert max(fleet.build(Config()).labels.values()) == 62


def test_what_models_and_keys_ask_for():
    rules = {
        "x": ModelRule(labels={"zone": "a", "gpu": "h100"}),
        "y": ModelRule(alias_of="x", labels={"role": "prefill"}),
        "z": ModelRule(usage="exact"),
    }
    key = Key(name="k", digest="ab" * 32, labels={"tier": "gold"})
    built = fleet_of("http://a").build(Config(models=rules, keys=[key]))
    assert built.settings.labels_by_model == {
        "x": ["gpu=h100", "zone=a"],
        "y": ["role=prefill"],
    }
    assert built.keys[0].labels == ["tier=gold"]


def test_adapters_name_their_base():
    fleet = fleet_of("http://a", "http://b")
    entries = [{"id": "base", "parent": None}, {"id": "lora", "parent": "base"}]
    for member, listed_there in zip(fleet.members.values(), (entries, entries[:1]), strict=True):
        fleet.set_models(member, listed_there)
    built = fleet.build(Config())
    assert built.models == [Model("base", 0, [0, 1]), Model("lora", 1, [0], "base")]
