"""Clients, engines and orders in any order: a session never loses count, and never says too much.

Time is left out: what deadlines do has scenes of its own.
"""

import asyncio
import contextlib

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway._shared import Count
from router import State
from tests.e2e.conftest import Script, open_house
from tests.e2e.tape import Tape, turn

BODY = b'{"model":"sim","stream":true}'
FIRST = b'{"model":"sim","priority":-1}'
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
REQUESTS = [
    POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY,
    POST + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY),
    POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY,
    POST + b"Content-Length: %d\r\n\r\n" % len(FIRST) + FIRST,
    POST + b"X-Headgate-Priority: 7\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY,
    POST + b"Content-Length: 2\r\n\r\n{]",
    POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY,
    b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /none HTTP/1.1\r\nHost: x\r\n\r\n",
    b"HEAD /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
]
EVENT = b'data: {"choices":[{"text":"a"}]}\n\n'
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
END = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
PLAIN = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
ANSWERS = {
    "plain": [PLAIN],
    "stream": [STREAM, CHUNK, CHUNK, END],
    "stream held": [STREAM, CHUNK, "gate", CHUNK, END],
    "held": ["gate", PLAIN],
    "500": [b"HTTP/1.1 500 Error\r\nContent-Length: 2\r\n\r\n{}"],
    "503": [b"HTTP/1.1 503 Busy\r\nContent-Length: 2\r\n\r\n{}"],
    "close": ["close"],
    "reset": ["reset"],
    "reset in the middle": [STREAM, CHUNK, CHUNK[:9], "reset"],
    "early close": [STREAM, CHUNK, "close"],
    "bad head": [b"HTTP/1.1 2 x\r\n\r\n"],
    "bad chunk": [STREAM, CHUNK, b"xyz\r\n"],
    "two at once": [PLAIN + PLAIN],
    "until close": [b"HTTP/1.1 200 OK\r\n\r\n{}", "close"],
    "hang": ["hang"],
}
ENDS = (Count.COMPLETED, Count.CANCELLED, Count.FAILED, Count.REFUSED)
N_ENGINES = 2


class Sessions(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.next_answer = "plain"
        self.gates = []
        self.stack = contextlib.ExitStack()
        self.engines = [Script(self._answer) for _ in range(N_ENGINES)]
        self.world = self.stack.enter_context(
            open_house(*self.engines, hold_requests=2, hold_s=60.0)
        )
        self.house, self.run = self.world.house, self.world.run
        self.tapes = []
        self.unsent = {}
        self.sent = {}

    def _answer(self, asked):
        for step in ANSWERS[self.next_answer]:
            if step == "gate":
                self.gates.append(asyncio.Event())
                yield self.gates[-1].wait()
            else:
                yield step

    async def _turn(self):
        # Through real sockets to the engines and back.
        for _ in range(3):
            await asyncio.sleep(0.0005)
            await turn()

    # clients

    @precondition(lambda self: len(self.tapes) < 3)
    @rule()
    def dial(self):
        async def make():
            tape = Tape(self.house.worker.plane)
            self.tapes.append(tape)
            self.unsent[tape], self.sent[tape] = b"", 0

        self.run(make())

    @precondition(lambda self: self.tapes)
    @rule(which=st.integers(0, 2), request=st.sampled_from(REQUESTS), share=st.floats(0, 1))
    def send(self, which, request, share):
        """The next request, or a part of it; what is left goes out first the next time."""
        tape = self.tapes[which % len(self.tapes)]
        data = self.unsent[tape] + request
        size = max(1, int(share * len(data)))
        self.sent[tape] += 1
        self.unsent[tape] = data[size:]
        self._feed(tape, data[:size])

    @precondition(lambda self: any(self.unsent.values()))
    @rule(which=st.integers(0, 2))
    def send_rest(self, which):
        tape = self.tapes[which % len(self.tapes)]
        data, self.unsent[tape] = self.unsent[tape], b""
        self._feed(tape, data)

    def _feed(self, tape, data):
        async def feed():
            if data:
                tape.feed(data)
            await self._turn()

        self.run(feed())

    @precondition(lambda self: self.tapes)
    @rule(which=st.integers(0, 2), how=st.sampled_from(["end", "drop"]))
    def leave(self, which, how):
        tape = self.tapes[which % len(self.tapes)]

        async def go():
            getattr(tape, how)()
            await self._turn()

        self.run(go())
        if tape.lost:
            self._forget(tape)

    def _forget(self, tape):
        self.tapes.remove(tape)
        del self.unsent[tape], self.sent[tape]

    @precondition(lambda self: self.tapes)
    @rule(which=st.integers(0, 2), full=st.booleans())
    def buffer(self, which, full):
        """The client stops taking what it is sent, or goes on."""
        tape = self.tapes[which % len(self.tapes)]

        async def turn_it():
            if not tape.closing:
                (tape.session.pause_writing if full else tape.session.resume_writing)()
            await self._turn()

        self.run(turn_it())

    # engines

    @rule(answer=st.sampled_from(sorted(ANSWERS)))
    def answer_so(self, answer):
        self.next_answer = answer

    @precondition(lambda self: self.gates)
    @rule()
    def open_gate(self):
        self.gates.pop(0).set()
        self.run(self._turn())

    @rule(slot=st.integers(0, N_ENGINES - 1), state=st.sampled_from([State.READY, State.OPEN]))
    def state(self, slot, state):
        self.house.state(slot, state)

    @rule(slot=st.integers(0, N_ENGINES - 1), n=st.integers(0, 1))
    def take_at_most(self, slot, n):
        self.house.shared.table.set_row(slot, max_in_flight=n)

    # orders

    @rule(no_engine_s=st.sampled_from([0.0, 60.0]))
    def tell(self, no_engine_s):
        async def order():
            self.house.tell(hold_no_engine_s=no_engine_s)
            await self._turn()

        self.run(order())

    @rule()
    def tick(self):
        async def order():
            self.house.worker.plane.tick()
            await self._turn()

        self.run(order())

    @rule(slot=st.integers(0, N_ENGINES - 1), hung=st.booleans())
    def condemn(self, slot, hung):
        async def order():
            self.house.worker.plane.condemn(slot, 1, "by order", hung)
            await self._turn()

        self.run(order())

    @rule()
    def cut(self):
        async def order():
            self.house.worker.plane.cut()
            await self._turn()

        self.run(order())

    # what always holds

    @invariant()
    def the_account_is_even(self):
        count = self.house.count
        under_way = count(Count.ACCEPTED) - sum(count(end) for end in ENDS)
        assert 0 <= under_way <= len(self.tapes)
        in_flight = [self.house.shared.table.load(slot)["in_flight"] for slot in range(N_ENGINES)]
        ended = sum(count(one) for one in range(Count.ANSWERED, Count.CUT + 1))
        assert count(Count.DISPATCHED) - ended == sum(in_flight)
        assert min(in_flight) >= 0
        held = count(Count.HELD_REQUESTS)
        assert 0 <= held <= 3  # one more, while another that gave way is told
        assert held + sum(in_flight) <= under_way
        assert (count(Count.HELD_BYTES) == 0) == (held == 0)
        assert count(Count.BUFFERED_BYTES) >= 0
        assert count(Count.WAITING_FOR_DIAL) >= 0

    @invariant()
    def nobody_gets_more_answers_than_asked_for(self):
        for tape in self.tapes:
            final = [status for status in tape.statuses if status >= 200]
            assert len(final) <= self.sent[tape] + 1  # a framing error may be one more
            assert set(final) <= {200, 400, 404, 429, 500, 502, 503, 504}

    def teardown(self):
        async def leave():
            for tape in self.tapes:
                tape.drop()
            for gate in self.gates:
                gate.set()
            await self._turn()

        self.run(leave())
        # The house closes, and its account has to be even.
        self.stack.close()


Sessions.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
test_sessions = Sessions.TestCase
