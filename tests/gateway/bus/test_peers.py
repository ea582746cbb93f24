"""Whatever a bus does to messages: nothing counts twice, and in the end the sums are exact."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gateway.bus import peers as peers_module
from gateway.bus.frame import (
    MAX_CELLS,
    MAX_INSERT_BLOCKS,
    Beat,
    Delta,
    Insert,
    Sender,
    Vector,
    cell_of,
    decode,
    encode,
)
from gateway.bus.ledger import Ledger
from gateway.bus.peers import ASK_S, EXPIRY_S, MAX_BLOCKS, MAX_PEERS, Peers
from gateway.bus.work import NOTHING

NAMES = ("a", "b", "c")
PLACES = {name: 1000**k for k, name in enumerate(NAMES)}
ENDPOINTS = (1, 2**64 - 1, 77)


def work(in_flight, prefilling=0, prefill_s=0.0, tokens=0, kv=0, anchor_s=0.0, until_s=0.0):
    return (in_flight, prefilling, prefill_s, anchor_s, until_s, tokens, kv)


def delta(sender, seq, works, inserts=(), now_s=0.0):
    cells = [cell_of(endpoint, value, now_s) for endpoint, value in works.items()]
    return Delta(sender, seq, cells, list(inserts))


def vector(sender, seq, works, now_s=0.0):
    cells = [cell_of(endpoint, value, now_s) for endpoint, value in works.items()]
    return Vector(sender, seq, cells)


_endpoint = st.sampled_from(ENDPOINTS)
_fate = st.sampled_from(("arrives", "late", "lost"))


class LossyBus(RuleBasedStateMachine):
    """Three gateways that come, go and change, a bus that loses, doubles and reorders, and one
    who listens. Each gateway counts in three decimal digits of its own, so that a sum shows what
    it was made of."""

    @initialize()
    def begin(self):
        self.now_s = 1000.0
        self.born_ms = 0
        self.ledgers = {}
        self.real = {}
        self.had = {(name, e): {0} for name in NAMES for e in ENDPOINTS}
        self.flying = []
        self.keys = {}
        self.peers = Peers("me")
        self.column = dict.fromkeys(ENDPOINTS, NOTHING)
        self.inserted = set()
        for name in NAMES:
            self.start(name, 7)

    @rule(name=st.sampled_from(NAMES), nonce=st.integers(0, 2**64 - 1))
    def start(self, name, nonce):
        """A start, or a restart without an end before."""
        self.born_ms += 1
        self.ledgers[name] = Ledger(Sender(name, self.born_ms, nonce))
        self.real[name] = {}

    @precondition(lambda self: len(self.ledgers) == len(NAMES))
    @rule(name=st.sampled_from(NAMES))
    def crash(self, name):
        del self.ledgers[name], self.real[name]

    @rule(
        data=st.data(),
        ticks=st.lists(
            st.tuples(st.dictionaries(_endpoint, st.integers(0, 9)), _fate, st.booleans()),
            min_size=1,
            max_size=5,
        ),
    )
    def run(self, data, ticks):
        """Some ticks of a gateway: what changed, or that nothing did; the key is as of before."""
        name = data.draw(st.sampled_from(sorted(self.ledgers)))
        for values, fate, writes in ticks:
            if writes:
                self.keys[name] = encode(self.ledgers[name].vector(self.now_s))
            self.change(name, values, fate)

    def change(self, name, values, fate):
        ledger = self.ledgers[name]
        changes = {e: work(n * PLACES[name], n % 5, n % 5 / 4, n % 7, n) for e, n in values.items()}
        ledger.put(changes, self.now_s)
        self.real[name].update(changes)
        for e, n in values.items():
            self.had[name, e].add(n)
        if changes:
            blocks = self.now_s.hex().encode()[:8]
            ledger.insert(ENDPOINTS[0], blocks)
            self.inserted.add(blocks)
        self.send(ledger.take(self.now_s) or ledger.beat(), fate)

    def send(self, message, fate):
        if fate == "arrives":
            self.hear(encode(message))
        elif fate == "late":
            self.flying.append(encode(message))

    @rule()
    def write(self):
        """The keys; they are read at once, late, or when they are older than other messages."""
        for name, ledger in self.ledgers.items():
            self.keys[name] = encode(ledger.vector(self.now_s))

    @rule(fate=_fate)
    def read(self, fate):
        """Wanted or not."""
        for name in sorted(self.keys):
            self.send(decode(self.keys[name]), fate)

    @precondition(lambda self: self.flying)
    @rule(data=st.data(), is_double=st.booleans())
    def arrive(self, data, is_double):
        k = data.draw(st.integers(0, len(self.flying) - 1))
        self.hear(self.flying[k])
        if not is_double:
            del self.flying[k]

    @rule(by_s=st.sampled_from((0.02, 0.02, 0.1, 0.5, 3.0)))
    def wait(self, by_s):
        self.now_s += by_s

    @rule()
    def tick(self):
        self.column.update(self.peers.take_sums(self.now_s))
        for insert in self.peers.take_inserts():
            assert insert.blocks in self.inserted

    @rule(fate=_fate, order=st.randoms(use_true_random=False))
    def settle(self, fate, order):
        """The living tell how far they are, and write a vector for those who have a gap; the dead
        are silent for 3 s: all is exact, and what comes late or twice changes nothing."""
        order.shuffle(self.flying)
        late, self.flying = self.flying, []
        if fate == "arrives":
            for frame in late:
                self.hear(frame)
        for _ in range(4):
            self.now_s += 0.75
            for ledger in self.ledgers.values():
                self.hear(encode(ledger.beat()))
        self.write()
        for name in self.peers.wanted(self.now_s):
            self.hear(self.keys[name])
        self.tick()
        self.check_exact()
        assert not self.peers.wanted(self.now_s + ASK_S)
        assert self.peers.age_s(self.now_s) == 0.0
        assert len(self.peers) == len(self.ledgers)
        for frames in (late, list(self.keys.values())):
            for frame in frames:
                if decode(frame).sender.name in self.ledgers:
                    self.hear(frame)
            self.tick()
            self.check_exact()

    def hear(self, frame):
        self.peers.apply(decode(frame), self.now_s)

    def check_exact(self):
        for e in ENDPOINTS:
            values = [works.get(e, NOTHING) for works in self.real.values()]
            wanted = tuple(sum(column) for column in zip(*values, strict=True)) or NOTHING
            for k in (0, 1, 2, 5, 6):
                assert self.column[e][k] == wanted[k], (e, k)

    @invariant()
    def nothing_counts_twice(self):
        for e in ENDPOINTS:
            in_flight = self.peers.sum(e, self.now_s)[0]
            for name in NAMES:
                assert in_flight // PLACES[name] % 1000 in self.had[name, e]
            assert in_flight < 1000**3


LossyBus.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestLossyBus = LossyBus.TestCase

ONE = Sender("one", 1, 11)
AGAIN = Sender("one", 2, 5)


def test_what_a_gap_leaves_out_is_asked_for_and_not_lost():
    peers = Peers()
    peers.apply(delta(ONE, 1, {7: work(1), 8: work(2)}), 0.0)
    peers.apply(delta(ONE, 3, {8: work(5)}), 0.1)
    assert (peers.sum(7, 0.1)[0], peers.sum(8, 0.1)[0], peers.gaps) == (1, 5, 1)
    assert peers.wanted(0.1) == ["one"]
    assert peers.wanted(0.15) == []
    assert peers.wanted(0.25) == ["one"]
    assert peers.age_s(0.3) == pytest.approx(0.3)
    # too old a vector does not help; a newer one leaves alone what came after it
    peers.apply(vector(ONE, 1, {7: work(1), 8: work(2)}), 0.3)
    assert peers.sum(8, 0.3)[0] == 5
    peers.apply(vector(ONE, 2, {7: work(9), 8: work(4)}), 0.3)
    assert (peers.sum(7, 0.3)[0], peers.sum(8, 0.3)[0]) == (9, 5)
    assert peers.wanted(0.9) == []


def test_the_missing_message_itself_closes_the_gap():
    peers = Peers()
    peers.apply(delta(ONE, 1, {7: work(1)}), 0.0)
    peers.apply(delta(ONE, 4, {7: work(0), 8: work(4)}), 0.0)
    peers.apply(delta(ONE, 3, {7: work(3)}), 0.0)
    assert peers.sum(7, 0.0) == NOTHING
    peers.apply(delta(ONE, 2, {7: work(2), 9: work(2)}), 0.0)
    assert [peers.sum(e, 0.0)[0] for e in (7, 8, 9)] == [0, 4, 2]
    assert peers.wanted(1.0) == []
    assert peers.describe(0.0)[0]["endpoints"] == 2


def test_a_beat_tells_of_a_lost_message():
    peers = Peers()
    peers.apply(delta(ONE, 1, {7: work(1)}), 0.0)
    peers.apply(Beat(ONE, 1), 0.1)
    assert peers.wanted(1.0) == []
    peers.apply(Beat(ONE, 2), 0.2)
    assert peers.wanted(1.0) == ["one"]


def test_a_restart_replaces_and_its_past_is_ignored():
    peers = Peers()
    peers.apply(delta(ONE, 1, {7: work(5), 8: work(5)}), 0.0)
    peers.take_sums(0.0)
    peers.apply(delta(AGAIN, 1, {7: work(1)}), 0.1)
    assert {e: w[0] for e, w in peers.take_sums(0.1).items()} == {7: 1, 8: 0}
    peers.apply(delta(ONE, 2, {7: work(6)}), 0.2)
    peers.apply(vector(ONE, 2, {7: work(6)}), 0.2)
    assert (peers.sum(7, 0.2)[0], len(peers), peers.stale) == (1, 1, 2)


def test_a_restart_under_a_clock_that_went_back_counts_after_the_expiry():
    peers = Peers()
    peers.apply(delta(AGAIN, 1, {7: work(5)}), 0.0)
    peers.apply(delta(ONE, 1, {7: work(1)}), 1.0)
    assert peers.sum(7, 1.0)[0] == 5
    assert peers.take_sums(3.0)[7] == NOTHING
    peers.apply(Beat(ONE, 1), 3.0)
    assert peers.wanted(3.0) == ["one"]
    peers.apply(vector(ONE, 1, {7: work(1)}), 3.0)
    assert peers.sum(7, 3.0)[0] == 1


def test_a_vector_alone_is_no_sign_of_life():
    peers = Peers()
    peers.apply(vector(ONE, 1, {7: work(5)}), 0.0)
    assert len(peers) == 0
    peers.apply(Beat(ONE, 1), 0.0)
    peers.apply(vector(ONE, 1, {7: work(5)}), 2.8)
    assert peers.take_sums(2.8)[7][0] == 5
    assert peers.take_sums(EXPIRY_S + 0.01)[7] == NOTHING


def test_times_arrive_as_ages():
    """Sender's and receiver's clocks have nothing to do with each other."""
    peers = Peers()
    there = work(2, 1, 0.5, anchor_s=89.0, until_s=93.0)
    peers.apply(delta(ONE, 1, {7: there}, now_s=90.0), 1000.0)
    assert peers.sum(7, 1000.0) == (2, 1, 0.5, 999.0, 1003.0, 0, 0)
    # two of them: the newest anchor, and what is left of both
    two = Sender("two", 1, 1)
    peers.apply(delta(two, 1, {7: work(1, 1, 0.25, anchor_s=-5.0, until_s=4.0)}), 1000.0)
    assert peers.sum(7, 1001.0) == (3, 2, 0.75, 999.0, 1006.0, 0, 0)


def test_a_message_twice_inserts_once():
    peers = Peers()
    message = delta(ONE, 1, {}, [Insert(7, bytes(16))])
    peers.apply(message, 0.0)
    peers.apply(message, 0.0)
    assert peers.take_inserts() == [Insert(7, bytes(16))]
    assert peers.take_inserts() == []


def test_inserts_that_nobody_takes_are_bounded():
    peers, blocks = Peers(), bytes(8 * MAX_INSERT_BLOCKS)
    for seq in range(1, 40):
        peers.apply(delta(ONE, seq, {}, [Insert(7, blocks)]), 0.0)
    assert sum(len(insert.blocks) // 8 for insert in peers.take_inserts()) == MAX_BLOCKS
    assert peers.dropped_blocks == 39 * MAX_INSERT_BLOCKS - MAX_BLOCKS


def test_peers_and_their_endpoints_are_bounded(monkeypatch):
    monkeypatch.setattr(peers_module, "MAX_ENDPOINTS", 10)
    peers = Peers()
    for n in range(MAX_PEERS + 5):
        peers.apply(Beat(Sender(f"g{n}", 1, n), 0), 0.0)
    assert (len(peers), peers.refused) == (MAX_PEERS, 5)
    for n in range(30):  # pods come and go: what is zero takes no place
        peers.apply(delta(Sender("g1", 1, 1), 2 * n + 1, {n: work(1)}), 0.0)
        peers.apply(delta(Sender("g1", 1, 1), 2 * n + 2, {n: work(0)}), 0.0)
    assert (peers.describe(0.0)[1]["endpoints"], peers.refused) == (0, 5)
    peers.apply(delta(Sender("g2", 1, 2), 1, {n: work(1) for n in range(12)}), 0.0)
    assert peers.refused == 7


def test_a_long_gap_forgets_and_still_ends_exact(monkeypatch):
    monkeypatch.setattr(peers_module, "MAX_EARLY", 5)
    peers = Peers()
    peers.apply(delta(ONE, 1, {7: work(1)}), 0.0)
    for seq in range(3, 20):
        peers.apply(delta(ONE, seq, {seq: work(seq), 7: work(seq)}), 0.0)
    peers.apply(vector(ONE, 10, {7: work(10), **{s: work(s) for s in range(3, 11)}}), 0.0)
    assert peers.sum(7, 0.0)[0] == 19
    assert peers.wanted(1.0) == ["one"]
    peers.apply(vector(ONE, 19, {7: work(19), 19: work(19)}), 0.0)
    assert [peers.sum(e, 0.0)[0] for e in (7, 12, 19)] == [19, 0, 19]
    assert peers.wanted(2.0) == []


def test_our_own_name_from_another_is_counted_only():
    peers = Peers("one")
    peers.apply(delta(ONE, 1, {7: work(1)}), 0.0)
    assert (len(peers), peers.namesakes, peers.sum(7, 0.0)) == (0, 1, NOTHING)


def test_a_ledger_tells_each_change_once():
    ledger = Ledger(ONE)
    assert ledger.take(0.0) is None
    ledger.put({7: work(1)}, 0.0)
    ledger.put({7: work(2), 8: work(3)}, 0.0)
    told = ledger.take(0.0)
    assert (told.seq, [(c.endpoint, c.in_flight) for c in told.cells]) == (1, [(7, 2), (8, 3)])
    assert ledger.take(0.0) is None
    assert ledger.beat() == Beat(ONE, 1)
    ledger.put({7: work(0)}, 0.0)
    assert [c.endpoint for c in ledger.vector(0.0).cells] == [8]
    assert [c.in_flight for c in ledger.take(0.0).cells] == [0]


def test_a_ledger_that_cannot_tell_stays_small_and_counts_it_as_a_gap():
    ledger, peers = Ledger(ONE), Peers()
    ledger.put({10**9: work(1)}, 0.0)
    peers.apply(ledger.take(0.0), 0.0)
    for n in range(100):  # endpoints come and go for days
        ledger.put({1000 * n + k: work(1) for k in range(500)}, 0.0)
        ledger.put({1000 * n + k: NOTHING for k in range(500)}, 0.0)
    assert len(ledger._untold) <= MAX_CELLS
    assert len(ledger._works) <= 2 * MAX_CELLS
    message = ledger.take(0.0)
    if message is not None:
        peers.apply(message, 0.0)
    peers.apply(ledger.beat(), 0.0)
    assert peers.wanted(1.0) == ["one"]
    peers.apply(ledger.vector(0.0), 0.0)
    assert peers.sum(10**9, 0.0)[0] == 1
    assert peers.wanted(2.0) == []


def test_a_ledger_keeps_the_first_blocks():
    ledger = Ledger(ONE)
    for n in range(3):
        ledger.insert(n, bytes(8 * (MAX_INSERT_BLOCKS - 100)))
    told = ledger.take(0.0)
    assert [len(i.blocks) // 8 for i in told.inserts] == [MAX_INSERT_BLOCKS - 100, 100]
    assert ledger.dropped_blocks == 2 * MAX_INSERT_BLOCKS - 300
    ledger.insert(1, bytes(8))
    assert ledger.take(0.0).inserts == [Insert(1, bytes(8))]
