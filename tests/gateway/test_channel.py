"""The framing between control process and worker, over a real socket pair."""

import asyncio
import socket

import pytest
import uvloop

from gateway.channel import MAX_FRAME_BYTES, Channel, ChannelError
from gateway.messages import Access, Condemn, Drain, Drained, Fleet, Made, Ready, Settings

TO_WORKER = [
    Fleet([], [], {}, [], False, Settings(), b'{"object":"list","data":[]}'),
    Condemn(3, 7, "gone", hung=True),
    Drain(5.0, 600.0),
    Made("resp_1", 2, 9),
]
FROM_WORKER = [Ready(1), Access([b"{}", b"x" * 300_000]), Made("r", 1, 1), Drained()]


@pytest.mark.parametrize("runner", [asyncio.run, uvloop.run])
def test_messages_arrive_whole_and_in_order(runner):
    async def scene():
        ours, theirs = socket.socketpair()
        control, worker = await Channel.to_worker(ours), await Channel.to_control(theirs)
        for message in TO_WORKER:
            control.send(message)
        for message in FROM_WORKER:
            worker.send(message)
        assert [await anext(worker) for _ in TO_WORKER] == TO_WORKER
        assert [await anext(control) for _ in FROM_WORKER] == FROM_WORKER
        assert control.backlog_bytes == 0
        await worker.close()
        assert [message async for message in control] == []
        control.send(Drain(0, 0))
        await control.close()
        await control.close()

    runner(scene())


def test_half_a_frame_is_the_end():
    async def scene():
        ours, theirs = socket.socketpair()
        control = await Channel.to_worker(ours)
        theirs.sendall(b"\x05\x00\x00\x00ab")
        theirs.close()
        assert [message async for message in control] == []
        await control.close()

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        ((MAX_FRAME_BYTES + 1).to_bytes(4, "little"), "a frame of 67108865 bytes"),
        (b"\x01\x00\x00\x00\xc1", "a frame that is no message"),
        (b"\x01\x00\x00\x00\x01", "a frame that is no message"),
    ],
)
def test_what_is_no_message_is_an_error(frame, text):
    async def scene():
        ours, theirs = socket.socketpair()
        control = await Channel.to_worker(ours)
        theirs.sendall(frame)
        with pytest.raises(ChannelError, match=text):
            await anext(control)
        theirs.close()
        await control.close()

    asyncio.run(scene())
