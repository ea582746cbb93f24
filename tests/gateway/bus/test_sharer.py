"""Between a table and a bus, without any Redis: a bus that is a list."""

import asyncio

import pytest

from gateway.bus import NoBus, Sharer
from gateway.bus._columns import OwnColumns
from gateway.bus.bus import Bus
from gateway.bus.frame import Beat, Delta, Insert, Sender, cell_of
from gateway.bus.peers import EXPIRY_S, Peers
from gateway.bus.state import State
from gateway.bus.work import NOTHING, total
from router import Table

OTHER = Sender("other", 1, 1)
THIRD = Sender("third", 1, 2)


class Tape:
    """A bus that notes what it is told."""

    alone = False

    def __init__(self):
        self.peers = Peers("us")
        self.state = State("tape", since_s=0.0)
        self.told = []
        self.inserts = []

    def share(self, changes, now_s):
        self.told.append(dict(changes))

    def insert(self, endpoint, blocks):
        self.inserts.append((endpoint, blocks))

    async def close(self):
        pass


def table_of(n_workers):
    return Table(bytearray(Table.size(n_workers + 1)), n_workers + 1)


@pytest.fixture
def bench():
    """(table of two workers and the peers, tape, sharer); endpoint 100 + n stands in slot n."""
    table, tape = table_of(2), Tape()
    places = {100 + n: n for n in range(4)}
    inserts = []
    sharer = Sharer(table, tape, lambda: places, lambda *insert: inserts.append(insert), 5)
    sharer.heard = inserts
    return table, tape, sharer


def say(tape, sender, seq, works, now_s, inserts=()):
    cells = [cell_of(e, work, now_s) for e, work in works.items()]
    tape.peers.apply(Delta(sender, seq, cells, list(inserts)), now_s)


def one(in_flight):
    return (in_flight, 0, 0.0, 0.0, 0.0, 0, 0)


def test_a_change_is_told_once_as_the_sum_of_the_workers(bench):
    table, tape, sharer = bench
    table.set_work(0, 1, (2, 1, 0.5, 7.0, 0.0, 100, 1000))
    table.set_work(1, 1, (1, 1, 0.25, 9.0, 12.0, 10, 2000))
    sharer.tick(10.0)
    sharer.tick(10.02)
    assert tape.told == [{101: (3, 2, 0.75, 9.0, 12.0, 110, 3000)}, {}]
    table.set_work(0, 1, NOTHING)
    table.set_work(1, 1, NOTHING)
    sharer.tick(10.04)
    assert tape.told[2] == {101: NOTHING}


def test_the_peers_column_is_never_told_on(bench):
    table, tape, sharer = bench
    say(tape, OTHER, 1, {101: one(5)}, 10.0)
    sharer.tick(10.0)
    assert table.work(2, 1)[0] == 5
    sharer.tick(10.02)
    assert tape.told == [{}, {}]


def test_peers_add_up_and_vanish(bench):
    table, tape, sharer = bench
    say(tape, OTHER, 1, {101: one(5), 999: one(1)}, 10.0)
    say(tape, THIRD, 1, {101: one(2), 102: one(2**31 - 1)}, 11.0)
    say(tape, OTHER, 2, {102: one(1)}, 11.0)
    sharer.tick(11.0)
    assert (table.work(2, 1)[0], table.work(2, 2)[0]) == (7, 2**31 - 1)
    assert sharer.n_gateways() == 3
    tape.peers.apply(Beat(THIRD, 1), 13.0)
    sharer.tick(11.0 + EXPIRY_S + 0.01)
    assert (table.work(2, 1)[0], table.work(2, 2)[0]) == (2, 2**31 - 1)
    sharer.tick(13.0 + EXPIRY_S + 0.01)
    assert table.work(2, 1) == NOTHING


def test_a_slot_that_changes_hands(bench):
    table, tape, sharer = bench
    table.set_work(0, 0, one(4))
    say(tape, OTHER, 1, {100: one(1), 103: one(3), 777: one(7)}, 10.0)
    sharer.tick(10.0)
    assert tape.told == [{100: one(4)}]
    sharer._get_places = lambda: {777: 0, 103: 2}
    sharer.tick(10.02)
    # what stands in slot 0 is now another's
    assert tape.told[1] == {100: NOTHING, 101: NOTHING, 102: NOTHING, 103: NOTHING, 777: one(4)}
    assert [table.work(2, slot)[0] for slot in range(4)] == [7, 0, 3, 0]


def test_inserts_both_ways(bench):
    _, tape, sharer = bench
    sharer.tick(10.0)
    sharer.insert(2, bytes(8))
    sharer.insert(50, bytes(8))
    assert tape.inserts == [(102, bytes(8))]
    say(tape, OTHER, 1, {}, 10.0, [Insert(101, bytes(16)), Insert(999, bytes(16))])
    sharer.tick(10.02)
    assert sharer.heard == [(1, bytes(16))]


def test_scale_and_doubt_through_an_outage(bench):
    _, tape, sharer = bench
    # never yet connected: as many as the configuration names
    assert (sharer.scale(0.5), sharer.doubt_s(0.5)) == (5.0, 0.5)
    tape.state.connect(1.0)
    say(tape, OTHER, 1, {101: one(1)}, 1.0)
    sharer.tick(1.0)
    assert (sharer.scale(1.0), sharer.doubt_s(1.0)) == (1.0, 0.0)
    tape.state.lose(2.0, "gone")
    assert (sharer.scale(2.5), sharer.doubt_s(2.5)) == (1.0, 1.5)
    sharer.tick(1.0 + EXPIRY_S + 0.01)
    sharer._expected = 0
    assert (sharer.scale(5.0), sharer.n_gateways()) == (2.0, 2)
    assert sharer.doubt_s(5.0) == 3.0
    # back, and nobody there: believed once everybody would have been heard
    tape.state.connect(6.0)
    sharer.tick(6.1)
    assert (sharer.scale(6.1), sharer.n_gateways()) == (2.0, 2)
    sharer.tick(6.0 + EXPIRY_S)
    assert (sharer.scale(9.0), sharer.doubt_s(9.0), sharer.n_gateways()) == (1.0, 0.0, 1)


def test_alone():
    async def run():
        table, bus = table_of(1), NoBus()
        fellow: Bus = bus
        sharer = Sharer(table, fellow, dict, lambda slot, blocks: None)
        table.set_work(0, 0, one(1))
        sharer.tick(1.0)
        sharer.insert(0, bytes(8))
        bus.insert(1, bytes(8))
        bus.share({}, 1.0)
        assert (sharer.scale(1.0), sharer.doubt_s(1.0), sharer.n_gateways()) == (1.0, 0.0, 1)
        assert bus.state.describe(bus.peers, 1.0)["kind"] == "none"
        await bus.close()

    asyncio.run(run())


def test_own_columns():
    table = table_of(3)
    columns = OwnColumns(table)
    assert (columns.n_own, columns.changed(0.0)) == (3, [])
    works = [(1, 1, 0.5, 3.0, 0.0, 5, 6), (2, 0, 0.0, 1.0, 12.0, 0, 7), (0, 0, 0.0, 0.0, 9.0, 0, 0)]
    for worker, work in enumerate(works):
        table.set_work(worker, 1023, work)
    table.set_work(3, 4, one(1))
    assert columns.changed(10.0) == [(1023, total(works, 10.0))]
    assert columns.changed(10.0) == []
    columns.forget(1023)
    assert [slot for slot, _ in columns.changed(10.0)] == [1023]
    for slot in (-1, 1024):
        with pytest.raises(IndexError):
            columns.forget(slot)
    with pytest.raises(ValueError, match="no column for the peers"):
        OwnColumns(table_of(0))
