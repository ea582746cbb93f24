"""Scrapes of one page over real sockets: at its pace, over one connection, unknown if in doubt."""

import asyncio
import contextlib
import gc
import socket
import threading

import pytest
import uvloop

from engines.kind import KINDS
from engines.load import EngineLoad, LoadReader
from gateway.scrape import Pace, Page, Scrape, Wheel

VLLM = LoadReader(KINDS["vllm"].metrics)
REQUEST = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n"
BODY = b"vllm:num_requests_running 3\n"
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
RUNNING = EngineLoad(running=3.0)


class Server:
    """Answers each request by the next of its answers, the last one again and again. An answer is
    pieces of bytes; None at its end closes the connection, ... never ends it."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.connections = self.requests = 0

    async def _serve(self, reader, writer):
        self.connections += 1
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                self.requests += 1
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                for piece in answer:
                    if piece is None:
                        return
                    if piece is ...:
                        await reader.read()
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.002)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()


async def loads_of(port, n, timeout_s=0.2, pace=None, keep_alive_s=4.0):
    """What the first n scrapes told, and the scrape's last complaint."""
    queue = asyncio.Queue()

    def on_load(load):
        queue.put_nowait(load)
        return True

    page = Page("127.0.0.1", port, REQUEST, keep_alive_s=keep_alive_s)
    scrape = Scrape(Wheel(), page, VLLM, pace or Pace(0.01, 0.01), timeout_s, on_load)
    found = [await asyncio.wait_for(queue.get(), 5) for _ in range(n)]
    why = scrape.why
    scrape.stop()
    seen = queue.qsize()
    await asyncio.sleep(0.05)
    assert queue.qsize() == seen, "it has been stopped"
    return found, why


def run(*answers, n=3, **options):
    async def inside():
        async with Server(*answers) as server:
            return *await loads_of(server.port, n, **options), server

    return asyncio.run(inside())


def test_page_after_page_over_one_connection():
    found, why, server = run([WHOLE])
    assert found == [RUNNING] * 3
    assert (why, server.connections) == ("", 1)


CHUNKED = [
    b"HTTP/1.1 200 OK\r\nTransfer-Enc",
    b"oding: chunked\r\n\r\n5\r\nvllm:\r\n",
    b"17\r\nnum_requests_running 3\n\r\n0\r\n",
    b"\r\n",
]


@pytest.mark.parametrize(
    ("answer", "connections"),
    [
        ([WHOLE[:1], WHOLE[1:60], WHOLE[60:]], 1),
        (CHUNKED, 1),
        ([b"HTTP/1.1 103 Early Hints\r\n\r\n" + WHOLE], 1),
        ([b"HTTP/1.0 200 OK\r\n\r\n" + BODY, None], 3),
        ([WHOLE.replace(b"OK", b"OK\r\nConnection: close")], 3),
        ([WHOLE + b"more"], 3),
        ([WHOLE, None], 3),
    ],
    ids=["pieces", "chunks", "hints", "until it closes", "it will close", "too much", "it closes"],
)
def test_however_it_comes(answer, connections):
    found, why, server = run(answer)
    assert found == [RUNNING] * 3
    assert (why, server.connections) == ("", connections)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ([b"HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n"], "answers 404"),
        ([WHOLE[:-5], None], "closes the connection"),
        ([None], "closes the connection"),
        ([WHOLE[:-5], ...], "does not answer within 0.05 s"),
        ([...], "does not answer within 0.05 s"),
        ([b"SSH-2.0\r\n\r\n"], "answers what is not HTTP"),
        (
            [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n"],
            "answers what is not HTTP",
        ),
        (
            [b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", b"\n" * (9 << 20)],
            "answers with more than 8388608 bytes",
        ),
    ],
)
def test_what_is_not_a_whole_page_is_unknown_and_the_next_one_comes(answer, why):
    found, complaint, _ = run(answer, n=1, timeout_s=0.05 if answer[-1] is ... else 2.0)
    assert found == [None]
    assert complaint == why
    found, _, _ = run(answer, [WHOLE], n=2, timeout_s=0.3)
    assert found == [None, RUNNING]


def test_a_page_of_other_things_is_known_and_says_nothing():
    found, _, _ = run([b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"], n=1)
    assert found == [EngineLoad()]


def test_nobody_there():
    async def inside():
        async with Server([WHOLE]) as server:
            port = server.port
        return await loads_of(port, 2)

    found, why = asyncio.run(inside())
    assert found == [None, None]
    assert why.startswith("cannot connect")


def test_a_connection_that_idled_too_long_is_not_used():
    found, _, server = run([WHOLE], keep_alive_s=0.0)
    assert found == [RUNNING] * 3
    assert server.connections == 3


def test_it_can_be_wanted_soon():
    async def inside():
        queue = asyncio.Queue()
        async with Server([WHOLE]) as server:
            page = Page("127.0.0.1", server.port, REQUEST)
            scrape = Scrape(
                Wheel(), page, VLLM, Pace(60, 60), 1.0, lambda load: bool(queue.put_nowait(load))
            )
            await asyncio.wait_for(queue.get(), 5)
            scrape.soon()
            await asyncio.wait_for(queue.get(), 5)
            scrape.stop()

    asyncio.run(inside())


def test_whoever_fails_to_take_a_load_gets_the_next_one():
    """And so do the others on the wheel."""

    async def inside():
        told = asyncio.Queue()
        async with Server([WHOLE]) as server:
            wheel = Wheel()

            def on_load(load):
                told.put_nowait(load)
                raise ValueError("a bug")

            places = (server.port, 1)  # nobody is at the other
            scrapes = [
                Scrape(wheel, Page("127.0.0.1", port, REQUEST), VLLM, Pace(0.01, 0.01), 1, on_load)
                for port in places
            ]
            async with asyncio.timeout(5):
                left = {None: 3, RUNNING: 3}
                while max(left.values()) > 0:
                    left[await told.get()] -= 1
            for scrape in scrapes:
                scrape.stop()

    asyncio.run(inside())


@pytest.mark.parametrize(
    ("steps", "waits_s"),
    [
        ([(False, 0.0)] * 5, [1.0, 2.0, 4.0, 5.0, 5.0]),
        ([(False, 0.0), (False, 0.0), (True, 0.0), (False, 0.0)], [1.0, 2.0, 1.0, 2.0]),
        ([(True, 0.05), (True, 0.2), (True, 3.0), (True, 0.0)], [1.0, 2.0, 5.0, 1.0]),
    ],
    ids=["idle", "work comes", "slow answers"],
)
def test_pace(steps, waits_s):
    pace = Pace(1.0, 5.0)
    assert [pace.next_s(busy, took_s) for busy, took_s in steps] == pytest.approx(waits_s)


def test_bounds_that_stand_the_wrong_way_round():
    pace = Pace(3.0, 1.0)
    assert [pace.next_s(busy, 0.0) for busy in (True, False, False)] == [3.0, 3.0, 3.0]


def test_a_server_that_speaks_first():
    """uvloop hears it before the dial's own task goes on: the scrape has failed by then."""
    greeted = []

    def greet(listener):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                greeted.append(connection)
                connection.sendall(b"220 ready\r\n\r\n")

    async def inside(port):
        faults = []
        asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
        found, why = await loads_of(port, 20)
        gc.collect()  # a task's exception that nobody asks for is told when the task goes
        return found, why, faults

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=greet, args=(listener,))
        thread.start()
        found, why, faults = uvloop.run(inside(listener.getsockname()[1]))
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in greeted:
        connection.close()
    assert found == [None] * 20
    assert why in ("speaks unasked", "answers what is not HTTP")
    assert not faults
