"""A data worker's double: speaks the channel, and answers any HTTP request with what it was told.

Run by `python -m` with a worker's arguments. HEADGATE_TEST_WORKER=crash makes it exit at once,
=babble send what is no message, =mute never get ready.
"""

import argparse
import asyncio
import json
import os
import socket

import msgspec

from gateway._shared import Shared
from gateway.channel import Channel
from gateway.messages import Access, Condemn, Drain, Drained, Fleet, Made, Ready


async def main(arguments: argparse.Namespace) -> None:
    shared = Shared(arguments.fd_shared, arguments.workers)
    channel = await Channel.to_control(socket.socket(fileno=arguments.fd_control))
    listener = socket.socket(fileno=arguments.fd_listen)
    heard: dict[str, object] = {"pid": os.getpid(), "index": arguments.index, "condemned": []}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        rows = {
            endpoint["slot"]: shared.table.row(endpoint["slot"])[0].name
            for endpoint in heard["fleet"]["endpoints"]
        }
        body = json.dumps({**heard, "rows": rows}).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
            % (len(body), body)
        )
        await writer.drain()
        writer.close()

    async def end(pre_stop_s: float) -> None:
        await asyncio.sleep(pre_stop_s)
        channel.send(Drained())
        await channel.close()
        os._exit(0)

    if os.environ.get("HEADGATE_TEST_WORKER") == "babble":
        channel._writer.write(b"\x01\x00\x00\x00\xc1")
    server = None
    ending = []
    async for message in channel:
        match message:
            case Fleet():
                heard["fleet"] = json.loads(msgspec.json.encode(message))
                if server is None and os.environ.get("HEADGATE_TEST_WORKER") != "mute":
                    server = await asyncio.start_server(answer, sock=listener)
                    channel.send(Ready(os.getpid()))
                    channel.send(Access([b'{"worker":%d}' % arguments.index]))
                    channel.send(Made(f"resp_{arguments.index}", 0, 1))
            case Condemn():
                heard["condemned"].append(msgspec.to_builtins(message))
            case Made():
                heard["made"] = message.response
            case Drain(pre_stop_s=pre_stop_s):
                ending.append(asyncio.create_task(end(pre_stop_s)))
    os._exit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("shared", "control", "listen"):
        parser.add_argument(f"--fd-{name}", type=int, required=True)
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--log-level")
    parser.add_argument("--log-format")
    if os.environ.get("HEADGATE_TEST_WORKER") == "crash":
        raise SystemExit(3)
    asyncio.run(main(parser.parse_known_args()[0]))
