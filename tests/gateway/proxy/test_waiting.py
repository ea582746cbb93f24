"""The queue of held requests, against a sorted list."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)

from gateway.proxy._window import Queue

MOST, MOST_BYTES = 8, 100
WANTS = ("a", "b", "c", "d", "e", "f")
PRIORITIES = st.integers(-2, 2)


class Queues(RuleBasedStateMachine):
    """The model: one list of (priority, since, number, name, wants, bytes), sorted."""

    guests = Bundle("guests")

    def __init__(self):
        super().__init__()
        self.rooms = dict.fromkeys(WANTS, 0)
        self.queue = Queue(MOST, MOST_BYTES, self._take)
        self.model = []
        self.now_s = 100.0
        self.n = 0

    def _take(self, wants):
        self.rooms[wants] -= 1
        if self.rooms[wants] < 0:
            self.rooms[wants] = 0
            return False
        return True

    @rule(
        target=guests,
        wants=st.sampled_from(WANTS),
        priority=PRIORITIES,
        ago_s=st.sampled_from([0.0, 0.0, 1.0, 5.0]),
        size=st.integers(0, 40),
    )
    def join(self, wants, priority, ago_s, size):
        self.n += 1
        name = self.n
        since_s = self.now_s - ago_s
        fits = len(self.model) < MOST and self._bytes() + size <= MOST_BYTES
        last = self.model[-1] if self.model else None
        gives_way = (
            not fits
            and last is not None
            and last[0] > priority
            and self._bytes() - last[5] + size <= MOST_BYTES
        )
        taken = self.queue.join(name, wants, priority, since_s, size, self.now_s)
        assert taken == (fits or gives_way)
        if gives_way:
            self.model.pop()
            assert self.queue.expelled[-1] == last[3]
        if not taken:
            return multiple()
        self.model.append((priority, since_s, name, name, wants, size))
        self.model.sort()
        return name

    @rule(name=consumes(guests))
    def leave(self, name):
        """Who has gone already may leave: nothing changes."""
        self.queue.leave(name, self.now_s)
        self.model = [one for one in self.model if one[3] != name]

    @rule(wants=st.sampled_from(WANTS), n=st.integers(0, 3))
    def free(self, wants, n):
        self.rooms[wants] += n

    @rule()
    def turn(self):
        before, asked = len(self.queue.went), len(self.queue.asked)
        rooms, wanted, stuck, n_asked = dict(self.rooms), [], set(), 0
        for one in list(self.model):
            _, _, _, name, wants, _ = one
            if wants in stuck:
                continue
            n_asked += 1
            if rooms[wants]:
                rooms[wants] -= 1
                wanted.append(name)
                self.model.remove(one)
            else:
                stuck.add(wants)
        self.queue.turn(self.now_s)
        assert self.queue.went[before:] == wanted
        # Nobody behind one that cannot go is asked.
        assert len(self.queue.asked) - asked == n_asked

    @rule()
    def tell(self):
        self.queue.told.clear()
        self.queue.tell(self.now_s)
        first = {}
        for one in self.model:
            first.setdefault(one[4], one[3])
        assert sorted(self.queue.told) == sorted(first.values())

    @rule(passed_s=st.floats(0.0, 20.0))
    def wait(self, passed_s):
        self.now_s += passed_s

    @rule(wants=st.sampled_from(WANTS), priority=PRIORITIES, ago_s=st.floats(0, 6))
    def ask_who_is_ahead(self, wants, priority, ago_s):
        since_s = self.now_s - ago_s
        ahead = any(one[4] == wants and one[:2] <= (priority, since_s) for one in self.model)
        assert self.queue.is_ahead(wants, priority, since_s) == ahead

    @invariant()
    def its_sums_are_those_of_its_guests(self):
        assert self.queue.n == len(self.model)
        assert self.queue.n_bytes == self._bytes()
        assert 1 <= self.queue.turn_in_s(self.now_s) <= 60

    def _bytes(self):
        return sum(one[5] for one in self.model)


Queues.TestCase.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
test_queues = Queues.TestCase


def test_only_those_are_asked_for_whom_something_became_free():
    queue = Queue(10, 10, lambda wants: False)
    for name, only in (("a", 3), ("b", 4), ("c", -1), ("d", 3)):
        queue.join(name, name, 0, 1.0, 1, 1.0, only)
    queue.free(3)
    assert [queue.is_due(slot) for slot in (3, 4)] == [True, False]
    queue.turn(2.0)
    assert queue.asked == ["a", "c", "d"]
    queue.turn(3.0)
    assert queue.asked[3:] == ["c"]
    queue.free(-1)
    assert queue.is_due(4)
    queue.turn(4.0)
    assert queue.asked[4:] == ["a", "b", "c", "d"]
    assert not queue.is_due(3)


def test_how_many_go_before():
    queue = Queue(10, 10, lambda wants: False)
    for name, wants, priority in ((1, "x", 0), (2, "x", 5), (3, "y", 0), (4, "x", -5)):
        queue.join(name, wants, priority, float(name), 1, 9.0)
    assert [queue.n_ahead("x", priority, 9.0) for priority in (-9, -5, 0, 9)] == [0, 1, 2, 3]
    assert [queue.n_ahead("x", 0, 0.5), queue.n_ahead("z", 9, 9.0)] == [1, 0]


def moved(n, every_s, waiting):
    """A queue of which one goes every so often, n times, and `waiting` still stand there."""
    queue = Queue(1000, 1000, lambda wants: wants == "open")
    now_s = 50.0
    for number in range(waiting):
        queue.join(("stands", number), "closed", 0, now_s, 1, now_s)
    for number in range(n):
        now_s += every_s
        queue.join(("goes", number), "open", 0, now_s, 1, now_s)
        queue.turn(now_s)
    return queue, now_s


def test_when_to_come_back_follows_from_how_fast_the_queue_moves():
    queue, now_s = moved(100, 0.5, 19)
    assert 9 <= queue.turn_in_s(now_s) <= 11  # 20 at two a second
    queue, now_s = moved(3, 1.0, 5)
    assert 5 <= queue.turn_in_s(now_s) <= 8  # it has not stood for long
    queue, now_s = moved(0, 1.0, 5)
    assert queue.turn_in_s(now_s) == 5
    assert queue.turn_in_s(now_s + 7) == 7  # nobody went: as long again
    assert queue.turn_in_s(now_s + 1000) == 60
    assert moved(0, 1.0, 0)[0].turn_in_s(now_s) == 1
