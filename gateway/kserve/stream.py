"""ModelStreamInfer: many requests, maybe of several models, on one stream of the client's.

Each request is routed by itself, and gets an upstream stream of its own at its engine. So load and
caches decide for each of them, as they do in HTTP; where a request ends is plain, since its stream
ends there, whatever its model says of final responses; an engine that dies takes only those with it
that ran there, and those of them that had no response yet are asked elsewhere; and nobody else's
identifiers have to be told apart. One upstream stream for all would tie a client to one engine for
as long as it lives, and clients keep a stream for hours.

What Triton promises of order on a stream holds here too. The responses of one request come in their
order. Requests for models that answer each exactly once are answered in the order in which they
were asked; those of decoupled models, and of ensembles, as they come. Requests of one sequence (a
stateful model's) go to one engine, each after the one before it has ended.

A request that fails is answered by a response with an `error_message`, and the stream goes on; if
the client asks for it (`triton_grpc_error: true`), the stream ends with the error's status instead.
"""

import asyncio
from typing import Any

import grpc

from engines.kserve_wire import (
    SERVICE,
    Infer,
    read_infer,
    read_stream_error,
    write_stream_error,
)
from gateway._shared import Count
from gateway.kserve.metadata import Metadata
from gateway.kserve.relay import Ended, Failed, Relay, status_for, understood
from gateway.kserve.status import code_of
from gateway.proxy._errand import Errand, Refused
from gateway.proxy.retry import Cause
from gateway.reasons import Reason

__all__ = ["Stream"]

METHOD = SERVICE + "ModelStreamInfer"
# Requests under way on one stream; further ones are read when one of these has ended.
MAX_UNDER_WAY = 1024
# Of Triton's error messages: another engine may have room.
TURNED_AWAY = "Exceeds maximum queue size"


class Stream:
    """One client's stream. `closing`: set when the gateway takes no more requests."""

    def __init__(self, relay: Relay, context: Any, closing: asyncio.Event) -> None:
        self._relay = relay
        self._context = context
        self._closing = closing
        self._room = asyncio.Semaphore(MAX_UNDER_WAY)
        self._writing = asyncio.Lock()
        self._sequences: dict[tuple[str, int | str], asyncio.Future[None]] = {}
        self._last: asyncio.Future[None] | None = None
        self._is_cut_short = False
        self._ended: Ended | None = None
        self._ends_on_error = ("triton_grpc_error", "true") in tuple(
            context.invocation_metadata() or ()
        )

    async def run(self) -> None:
        """Until the client has said all and has its answers. Ended."""
        closing = asyncio.create_task(self._closing.wait())
        try:
            async with asyncio.TaskGroup() as tasks:
                while (message := await self._read(closing)) is not grpc.aio.EOF:
                    await self._room.acquire()
                    self._begin(tasks, message)
        except* Ended as ended:
            raise _first(ended) from None
        finally:
            closing.cancel()
        if self._is_cut_short:
            refused = Refused(Reason.DRAINING)
            raise Ended(code_of(refused.status), str(refused))

    async def _read(self, closing: "asyncio.Task[Any]") -> Any:
        """The client's next request; EOF: there are no more, or no more are taken."""
        reading = asyncio.ensure_future(self._context.read())
        try:
            await asyncio.wait((reading, closing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not reading.done():
                reading.cancel()
        if reading.done() and not reading.cancelled():
            return reading.result()
        self._is_cut_short = True
        return grpc.aio.EOF

    def _begin(self, tasks: asyncio.TaskGroup, message: bytes) -> None:
        try:
            asked = understood(read_infer, message)
        except Ended as ended:
            raise self._end(ended) from None
        before, self._last = self._last, asyncio.get_running_loop().create_future()
        turn = _Turn(before, self._last)
        task = tasks.create_task(self._serve(asked, message, turn, self._sequence(asked)))
        task.add_done_callback(lambda _: self._over(asked, turn))

    def _sequence(self, asked: Infer) -> "_Turn | None":
        if not asked.tensors.sequence:
            return None
        key = asked.model, asked.tensors.sequence
        before = self._sequences.get(key)
        self._sequences[key] = mine = asyncio.get_running_loop().create_future()
        mine.add_done_callback(
            lambda _: self._sequences.pop(key) if self._sequences.get(key) is mine else None
        )
        return _Turn(before, mine)

    def _over(self, asked: Infer, turn: "_Turn") -> None:
        turn.give_up()
        self._room.release()

    async def _serve(
        self, asked: Infer, message: bytes, turn: "_Turn", sequence: "_Turn | None"
    ) -> None:
        """One request, from its first byte to its last response."""
        try:
            await self._answer(asked, message, turn, sequence)
        except Ended:
            raise
        except Exception as error:
            await self._fail(asked, turn, *status_for(error))
        finally:
            if sequence is not None:
                sequence.give_up()

    async def _answer(
        self, asked: Infer, message: bytes, turn: "_Turn", sequence: "_Turn | None"
    ) -> None:
        relay = self._relay
        async with relay.errand(self._context, METHOD) as (errand, metadata):
            errand.read(asked.model.encode(), asked.tensors, len(message))
            one = _One(self, errand, relay.named(errand, asked.model, message), metadata, turn)
            try:
                if sequence is not None:
                    await sequence.come()
                await relay.persistently(errand, one.ask, lambda: one.n_sent > 0)
                errand.release(Count.ANSWERED)
                await one.deliver()
            except asyncio.CancelledError:
                if self._ended is not None:
                    raise self._ended from None  # by another request on the stream
                raise
            errand.end(Count.COMPLETED, 200)

    async def _fail(self, asked: Infer, turn: "_Turn", code: grpc.StatusCode, details: str) -> None:
        if self._ends_on_error:
            raise self._end(Ended(code, details))
        if turn.is_ordered:
            await turn.come()
        await self.write(write_stream_error(details, asked.id))

    def _end(self, ended: Ended) -> Ended:
        """With this the stream ends, and all that runs on it."""
        self._ended = self._ended or ended
        return ended

    async def write(self, response: bytes) -> None:
        """Give the client a response. Ended: it takes none."""
        seconds = self._relay.plane.settings.client_stall_s
        async with self._writing:
            if self._ended is not None:
                raise self._ended
            try:
                async with asyncio.timeout(seconds):
                    await self._context.write(response)
            except TimeoutError:
                text = f"The client read nothing for {seconds:g} s."
                slow = Ended(grpc.StatusCode.CANCELLED, text, Count.CANCEL_CLIENT_SLOW)
                raise self._end(slow) from None
            except Exception as error:  # of gRPC's library, which has several for it
                gone = Ended(grpc.StatusCode.CANCELLED, str(error), Count.CANCEL_CLIENT_GONE)
                raise self._end(gone) from None


class _One:
    """One request at one engine after the other."""

    def __init__(
        self, stream: Stream, errand: Errand, message: bytes, metadata: Metadata, turn: "_Turn"
    ) -> None:
        self._stream = stream
        self._relay = stream._relay
        self._errand = errand
        self._message = message
        self._metadata = metadata
        self._turn = turn
        self._kept: list[bytes] = []
        self.n_sent = 0
        """Responses that the client has."""

    async def ask(self) -> None:
        """Send it to the errand's endpoint, and pass what comes. Failed, AioRpcError, Refused."""
        relay, errand = self._relay, self._errand
        self._kept.clear()
        if await relay.may_answer_often(errand):
            self._turn.pass_on()
        channel = await relay.channel(errand)
        call = channel.stream_stream(METHOD)(
            **relay.invocation(errand, self._stream._context, self._metadata)
        )
        try:
            settings = relay.plane.settings
            patience_s = settings.first_byte_s
            await relay.patiently(errand, patience_s, lambda: self._send(call))
            while True:
                response = await relay.patiently(errand, patience_s, call.read)
                if response is grpc.aio.EOF:
                    break
                await self._take(response)
                patience_s = settings.event_s
            code = await call.code()
            if code is not grpc.StatusCode.OK:
                raise Failed(Cause.LOST, str(await call.details()))
        finally:
            call.cancel()

    async def _send(self, call: Any) -> None:
        try:
            await call.write(self._message)
            await call.done_writing()
        except asyncio.InvalidStateError:
            await call.read()  # it has ended already: says why
        self._errand.moved(0, len(self._message))

    async def _take(self, response: bytes) -> None:
        errand = self._errand
        error = read_stream_error(response)
        if not self.n_sent and not self._kept:
            if TURNED_AWAY in error:
                raise Failed(Cause.STATUS, error)
            errand.answered(200)
        if not error:
            errand.event()
        errand.moved(len(response), 0)
        if self._turn.is_ordered:
            self._kept.append(response)
        else:
            await self._give(response)

    async def deliver(self) -> None:
        """Its turn has come, and what was kept for it goes out."""
        if self._turn.is_ordered:
            await self._turn.come()
        for response in self._kept:
            await self._give(response)

    async def _give(self, response: bytes) -> None:
        self.n_sent += 1
        await self._stream.write(response)
        self._errand.sent(len(response))


class _Turn:
    """A place in an order: comes when the one before has ended."""

    def __init__(self, before: asyncio.Future[None] | None, mine: asyncio.Future[None]) -> None:
        self._before = before
        self._mine = mine
        self.is_ordered = True

    async def come(self) -> None:
        """Wait for all before."""
        if self._before is not None:
            await asyncio.wait((self._before,))

    def end(self) -> None:
        """The next one's turn."""
        if not self._mine.done():
            self._mine.set_result(None)

    def pass_on(self) -> None:
        """It waits for nobody, and nobody for it: the next one's turn comes with its own."""
        self.is_ordered = False
        self.give_up()

    def give_up(self) -> None:
        """It has ended, perhaps before its turn came."""
        if self._before is None or self._before.done():
            self.end()
        else:
            self._before.add_done_callback(lambda _: self.end())


def _first(group: BaseExceptionGroup[Ended]) -> Ended:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, Ended)
    return found
