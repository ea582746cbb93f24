"""The order of batches against a model: whatever is lost, late or repeated, never a wrong index."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

import gateway.kv_sequence
from gateway.kv_sequence import Advice, Phase, Sequence


def run(advice, applied):
    if advice.clear:
        applied.clear()
    applied.extend(advice.ready)


def test_in_order_from_the_first():
    sequence = Sequence(can_replay=False)
    assert not sequence.exact
    for seq in range(3):
        assert sequence.live(seq, seq, b"%d" % seq) == Advice(ready=(b"%d" % seq,))
        assert sequence.exact


def test_what_came_before_is_not_known():
    sequence = Sequence(can_replay=False)
    assert sequence.live(7, 7, b"7").ready == (b"7",)
    assert not sequence.exact
    assert "before batch 7" in sequence.why
    sequence.cleared()
    assert sequence.exact


def test_a_beginning_is_replayed():
    sequence = Sequence(can_replay=True)
    assert sequence.begin("new") == Advice("new", (), 0)
    assert sequence.live(2, 2, b"2") == Advice()
    assert sequence.replayed(0, b"0").ready == (b"0",)
    assert sequence.replayed(1, b"1").ready == (b"1",)
    assert not sequence.exact
    assert sequence.replay_over().ready == (b"2",)
    assert sequence.exact
    assert sequence.live(2, 2, b"2") == Advice()
    assert sequence.live(3, 3, b"3").ready == (b"3",)


def test_an_idle_engine_is_known_at_once():
    sequence = Sequence(can_replay=True)
    sequence.begin("new")
    assert sequence.replay_over() == Advice()
    assert sequence.exact


def test_a_gap_is_replayed_while_live_batches_wait():
    sequence = Sequence(can_replay=True)
    sequence.live(0, 0, b"0")
    assert sequence.live(3, 3, b"3").replay_from == 1
    assert sequence.live(4, 4, b"4") == Advice()
    assert sequence.replayed(1, b"1").ready == (b"1",)
    assert sequence.replayed(2, b"2").ready == (b"2",)
    assert sequence.replayed(3, b"3").ready == (b"3",)
    assert sequence.replay_over().ready == (b"4",)
    assert sequence.exact
    assert sequence.n_gaps == 1


def test_a_gap_without_replay_costs_what_was_known():
    sequence = Sequence(can_replay=False)
    sequence.live(0, 0, b"0")
    advice = sequence.live(3, 3, b"3")
    assert "2 batches were lost" in advice.clear
    assert advice.ready == (b"3",)
    assert sequence.phase is Phase.IN_ORDER
    assert not sequence.exact


def test_a_gap_that_the_engine_no_longer_keeps():
    sequence = Sequence(can_replay=True)
    sequence.live(0, 0, b"0")
    sequence.live(9, 9, b"9")
    advice = sequence.replayed(5, b"5")
    assert "4 batches are gone" in advice.clear
    assert advice.ready == (b"5",)
    for seq in (6, 7, 8):
        sequence.replayed(seq, b"")
    assert sequence.replay_over().ready == (b"9",)
    assert not sequence.exact


def test_a_replay_with_a_hole_is_asked_again():
    sequence = Sequence(can_replay=True)
    sequence.begin("new")
    sequence.replayed(0, b"0")
    assert sequence.replayed(5, b"5") == Advice(replay_from=1)
    assert sequence.replayed(1, b"1").ready == (b"1",)
    assert sequence.replay_failed("silent") == Advice(replay_from=2)
    advice = sequence.replay_failed("silent")
    assert (advice.clear, advice.replay_from) == ("silent", None)
    assert not sequence.exact


def test_after_a_failed_replay_it_goes_on_with_what_was_held():
    sequence = Sequence(can_replay=True)
    sequence.live(0, 0, b"0")
    for seq in (2, 5, 6):
        sequence.live(seq, seq, b"%d" % seq)
    assert sequence.replay_failed("no answer") == Advice("no answer", (b"5", b"6"))
    assert sequence.live(7, 7, b"7").ready == (b"7",)
    assert not sequence.exact


def test_an_engine_that_starts_anew():
    sequence = Sequence(can_replay=False)
    sequence.live(0, 10, b"a")
    sequence.live(1, 11, b"b")
    advice = sequence.live(0, 12, b"c")
    assert "restarted" in advice.clear
    assert advice.ready == (b"c",)
    assert sequence.exact
    assert sequence.n_restarts == 1
    replaying = Sequence(can_replay=True)
    replaying.live(5, 10, b"a")
    assert replaying.live(3, 12, b"c").replay_from == 0


def test_held_batches_are_bounded(monkeypatch):
    monkeypatch.setattr(gateway.kv_sequence, "MAX_HELD", 2)
    sequence = Sequence(can_replay=True)
    sequence.begin("new")
    for seq in range(5):
        sequence.live(seq, seq, b"%d" % seq)
    assert sequence.replay_over() == Advice("", (b"0", b"1"), 2)
    for seq in (2, 3, 4):
        assert sequence.replayed(seq, b"").ready == (b"",)
    assert sequence.replay_over() == Advice()
    assert sequence.exact


# An engine, a publisher that loses and repeats, a replay that keeps little and may fail.

MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("store"), st.integers(0, 5)),
        st.tuples(st.just("remove"), st.integers(0, 5)),
        st.tuples(st.just("clear")),
        st.tuples(st.just("deliver"), st.integers(0, 6)),
        st.tuples(st.just("deliver"), st.just(0)),
        st.tuples(st.just("lose"), st.integers(0, 3)),
        st.tuples(st.just("repeat"), st.integers(0, 30)),
        st.tuples(st.just("reply"), st.integers(1, 4)),
        st.tuples(st.just("fail")),
        st.tuples(st.just("verify")),
        st.tuples(st.just("restart")),
    ),
    max_size=120,
)


class World:
    def __init__(self, can_replay, keeps):
        self.sequence = Sequence(can_replay)
        self.keeps = keeps
        self.clock = 0
        self.index = Counter()
        self.restart()

    def restart(self):
        self.published = []  # (seq, stamp, payload)
        self.states = [Counter()]  # after so many batches
        self.under_way = []
        self.replies = None
        self.obey(self.sequence.begin("connected"))

    def publish(self, event):
        state = self.states[-1].copy()
        if event[0] == "remove" and not state[event[1]]:
            return
        apply(state, event)
        self.clock += 1
        self.states.append(state)
        self.published.append((len(self.published), self.clock, repr(event).encode()))
        self.under_way.append(self.published[-1])

    def obey(self, advice):
        if advice.clear:
            self.index.clear()
        for payload in advice.ready:
            event = eval(payload)
            apply(self.index, event)
            if event[0] == "clear":
                self.sequence.cleared()
        if advice.replay_from is not None:
            assert self.sequence.phase is Phase.REPLAYING
            kept = self.published[-self.keeps :]
            self.replies = [one for one in kept if one[0] >= advice.replay_from]
        elif self.sequence.phase is not Phase.REPLAYING:
            self.replies = None

    def reply(self, n):
        for _ in range(n):
            if self.replies is None:
                return
            if not self.replies:
                self.replies = None
                self.obey(self.sequence.replay_over())
                return
            seq, _, payload = self.replies.pop(0)
            self.obey(self.sequence.replayed(seq, payload))

    def check(self):
        sequence = self.sequence
        truth = self.states[min(sequence.next, len(self.states) - 1)]
        if sequence.whole and sequence.phase is not Phase.NEW:
            assert +self.index == +truth
        else:
            assert self.index <= truth
        assert not sequence.exact or sequence.whole


def apply(index, event):
    match event:
        case "store", block:
            index[block] += 1
        case "remove", block:
            if index[block]:
                index[block] -= 1
        case _:
            index.clear()


@settings(max_examples=600, deadline=None)
@given(MOVES, st.booleans(), st.sampled_from([2, 5, 1000]))
def test_the_index_is_the_engines_or_a_part_of_it_and_says_so(moves, can_replay, keeps):
    world = World(can_replay, keeps)
    for move in moves:
        match move:
            case "deliver", at if at < len(world.under_way):
                world.obey(world.sequence.live(*world.under_way.pop(at)))
            case "lose", at if at < len(world.under_way):
                world.under_way.pop(at)
            case "repeat", at if at < len(world.published):
                if world.sequence._last is not None and world.sequence._last.seq >= at:
                    world.obey(world.sequence.live(*world.published[at]))
            case "reply", n:
                world.reply(n)
            case ("fail",) if world.replies is not None:
                world.replies = None
                world.obey(world.sequence.replay_failed("no answer"))
            case ("verify",) if world.sequence.phase is Phase.IN_ORDER:
                world.obey(world.sequence.verify())
            case ("restart",):
                world.restart()
            case (("store" | "remove" | "clear"), *_):
                world.publish(move)
        world.check()
    # In peace, everything arrives, and then nothing is missing that a replay could bring.
    for _ in range(200):
        world.reply(1)
        if world.under_way:
            world.obey(world.sequence.live(*world.under_way.pop(0)))
        world.check()
    assert world.sequence.phase is not Phase.REPLAYING
    if can_replay and keeps == 1000 and world.sequence.exact and world.published:
        last = world.sequence._last
        assert last is None or world.sequence.next > last.seq
