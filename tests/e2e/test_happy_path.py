"""What a streamed request costs the event loop on the happy path: callbacks, and nothing else."""

import asyncio
import socket
import threading

import uvloop

from gateway._shared import Shared
from gateway.messages import Endpoint, Fleet, Model, Settings
from gateway.proxy._plane import Plane
from gateway.proxy._pool import Pool
from gateway.proxy._session import Session
from router import State

EVENT = b'12\r\ndata: {"a": "b"}\n\n\r\n'
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    + EVENT * 20
    + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
)
REQUEST = (
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 29\r\n\r\n"
    b'{"model":"sim","stream":true}'
)


class CountingLoop(uvloop.Loop):
    """Counts what it is asked to make."""

    def __init__(self):
        self.made = 0
        super().__init__()

    def create_task(self, *args, **kwargs):
        self.made += 1
        return super().create_task(*args, **kwargs)

    def create_future(self):
        self.made += 1
        return super().create_future()

    def call_later(self, *args, **kwargs):
        self.made += 1
        return super().call_later(*args, **kwargs)

    def call_at(self, *args, **kwargs):
        self.made += 1
        return super().call_at(*args, **kwargs)


def serve(listener):
    connection, _ = listener.accept()
    with connection:
        while connection.recv(65536):
            connection.sendall(ANSWER)


def ask(port, n, loop):
    """Objects made by the loop during the last n - 1 of n requests."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as sock:
        for index in range(n):
            sock.sendall(REQUEST)
            data = b""
            while not data.endswith(b"0\r\n\r\n"):
                data += sock.recv(65536)
            if index == 0:
                before = loop.made
        return loop.made - before


def test_no_task_future_or_timer_per_request():
    async def main():
        loop = asyncio.get_running_loop()
        listener = socket.create_server(("127.0.0.1", 0))
        engine = threading.Thread(target=serve, args=(listener,), daemon=True)
        engine.start()
        port = listener.getsockname()[1]
        shared = Shared.create(1)
        shared.table.set_row(0, state=State.READY, share=1.0, generation=1)
        plane = Plane(loop, shared, 0, Pool)
        endpoint = Endpoint(0, 1, "e", "vllm", f"127.0.0.1:{port}", "127.0.0.1", port)
        model = Model("sim", 0, [0])
        plane.apply(Fleet([endpoint], [model], {}, [], True, Settings(), b'{"data":[]}'))
        server = await loop.create_server(lambda: Session(plane), "127.0.0.1", 0)
        found = await asyncio.to_thread(ask, server.sockets[0].getsockname()[1], 100, loop)
        server.close()
        plane.apply(Fleet([], [], {}, [], True, Settings(), b'{"data":[]}'))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(engine.join, 10)
        listener.close()
        return found

    with asyncio.Runner(loop_factory=CountingLoop) as runner:
        assert runner.run(main()) == 0
