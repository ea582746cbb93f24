"""What unary calls and streams have in common: a request's account, its engine, its failures."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc

from engines.kserve_wire import SERVICE, is_decoupled, renamed
from gateway._shared import Count
from gateway.kserve.channels import Channels
from gateway.kserve.metadata import Metadata, forwarded, head_of
from gateway.kserve.status import cause_of, code_of, status_of
from gateway.messages import Endpoint
from gateway.proxy._errand import Errand, Refused
from gateway.proxy._plane import Plane
from gateway.proxy.retry import Cause
from gateway.reasons import Reason

__all__ = ["SERVER_PATH", "Ended", "Failed", "Relay", "status_for", "understood", "within"]

log = logging.getLogger("headgate.grpc")

# The path as which any request is read; its model comes with the message.
PATH = "/v2/models/model/infer"
# Of what is asked of a server, not of a model.
SERVER_PATH = "/v2"
# A model's config is asked again after this; it may have been loaded anew.
CONFIG_S = 60.0
CONFIG_PATIENCE_S = 2.0
# From here on a reason says that a request failed at an engine.
FIRST_FAILURE = Reason.CONNECT_FAILED

T = TypeVar("T")


class Failed(Exception):
    """An engine's connection failed, or it turned the request away: a retry.Cause, and why."""

    def __init__(self, cause: Cause, why: str) -> None:
        self.cause = cause
        super().__init__(why)


class Ended(Exception):
    """The client's call ends with this status. `cause`: a Count of cancels, if the client is
    why."""

    def __init__(self, code: grpc.StatusCode, details: str, cause: int = 0) -> None:
        self.code = code
        self.details = details
        self.cause = cause
        super().__init__(details)


def understood(read: Callable[..., T], message: bytes, *how: Any) -> T:
    """What `read` finds in a client's message. Ended: it is none."""
    try:
        return read(message, *how)
    except ValueError as error:
        text = f"not a request: {error}"
        raise Ended(grpc.StatusCode.INVALID_ARGUMENT, text) from None


def status_for(error: Exception) -> tuple[grpc.StatusCode, str]:
    """What the client of a request that failed so is told. An error that nobody raised for it is a
    bug of ours, which is logged and must cost this request alone."""
    if isinstance(error, Refused):
        return code_of(error.status), str(error)
    if isinstance(error, Ended):
        return error.code, error.details
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code(), error.details() or ""
    log.error("a request failed in the gateway", exc_info=error)
    return grpc.StatusCode.INTERNAL, str(Refused(Reason.INTERNAL, type(error).__name__))


async def within(errand: Errand, seconds: float | None, ask: Callable[[], Awaitable[T]]) -> T:
    """`ask`, and wait for it this long at most. TimeoutError; Failed: the errand's endpoint was
    condemned; Refused: the gateway ends the errand."""
    _check(errand)
    try:
        async with asyncio.timeout(seconds) as errand.patience:
            return await ask()
    except TimeoutError:
        _check(errand)
        raise
    finally:
        errand.patience = None


def _check(errand: Errand) -> None:
    if errand.is_cut:
        raise Refused(Reason.DRAIN_GRACE_OVER) from None
    if errand.doom is not None:
        raise Failed(Cause.CONDEMNED, errand.doom) from None


class Relay:
    """One per port. `retain` follows the fleet."""

    def __init__(self, plane: Plane, channels: Channels) -> None:
        self.plane = plane
        self.channels = channels
        self._decoupled: dict[tuple[int, int, str], tuple[float, bool]] = {}

    @asynccontextmanager
    async def errand(
        self, context: Any, method: str, path: str = PATH
    ) -> AsyncIterator[tuple[Errand, Metadata]]:
        """A request's life in the account: what ends it (Refused, a cancel, a bug) is counted. If
        nothing does, the caller has called `end`."""
        errand = Errand(self.plane)
        metadata: Metadata = tuple(context.invocation_metadata() or ())
        try:
            verb = "POST" if path == PATH else "GET"
            errand.begin(head_of(verb, path, metadata), method.encode())
            yield errand, metadata
        except Refused as refused:
            failed = refused.reason >= FIRST_FAILURE
            outcome = Count.FAILED if failed else Count.REFUSED
            errand.end(outcome, refused.status, refused.reason)
            raise
        except asyncio.CancelledError:
            if errand.is_cut:
                # It was about to tell its client something, which takes nothing.
                errand.end(Count.FAILED, 503, Reason.DRAIN_GRACE_OVER)
            errand.end(Count.CANCELLED, 499, cause=Count.CANCEL_CLIENT_GONE)
            raise
        except Ended as ended:
            errand.end(Count.CANCELLED, 499, cause=ended.cause)
            raise
        except grpc.aio.AioRpcError as error:
            # The engine's own word, or the client's deadline.
            status = status_of(error.code())
            if status == 504:
                errand.end(Count.CANCELLED, status, cause=Count.CANCEL_CLIENT_GONE)
            errand.end(Count.COMPLETED, status)
            raise
        finally:
            errand.end(Count.FAILED, 500, Reason.INTERNAL)

    def named(self, errand: Errand, model: str, message: bytes) -> bytes:
        """The message with the name that the engines know the model by."""
        return message if errand.model == model else renamed(message, errand.model)

    def invocation(self, errand: Errand, context: Any, metadata: Metadata) -> dict[str, Any]:
        """Keywords of a call to the errand's endpoint."""
        return {
            "metadata": forwarded(
                metadata, self._endpoint(errand), errand.request_id, self.plane.has_keys
            ),
            "timeout": context.time_remaining(),
        }

    async def channel(self, errand: Errand) -> grpc.aio.Channel:
        """To the errand's endpoint. Failed: there can be none. Refused."""
        endpoint = self._endpoint(errand)
        seconds = self.plane.settings.connect_s
        try:
            return await within(errand, seconds, lambda: self.channels.connect(endpoint))
        except TimeoutError:
            raise Failed(Cause.DIAL, "no connection in time") from None
        except OSError as error:
            raise Failed(Cause.DIAL, str(error)) from None

    def _endpoint(self, errand: Errand) -> Endpoint:
        assert errand.endpoint is not None
        return errand.endpoint

    async def patiently(self, errand: Errand, seconds: float, ask: Callable[[], Awaitable[T]]) -> T:
        """`ask`, and wait for an engine's word. Failed, Refused, or the AioRpcError that is its
        word."""
        try:
            return await within(errand, seconds, ask)
        except TimeoutError:
            raise Failed(Cause.TIMEOUT, f"{seconds:g}") from None
        except grpc.aio.AioRpcError as error:
            cause = cause_of(error)
            if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
                errand.release(Count.ABANDONED)  # the client's patience, and its alone
                raise
            if cause is None:
                errand.release(Count.ANSWERED)
                errand.answered(status_of(error.code()))
                raise
            raise Failed(cause, error.details() or "") from None

    async def persistently(
        self, errand: Errand, ask: Callable[[], Awaitable[T]], has_answered: Callable[[], bool]
    ) -> T:
        """`ask` at one endpoint after the other, as the rules for retries allow. Refused."""
        await errand.place()
        while True:
            try:
                return await ask()
            except Failed as failed:
                if has_answered():
                    raise self._broken(errand, failed) from None
                await errand.again(failed.cause, str(failed))

    def _broken(self, errand: Errand, failed: Failed) -> Refused:
        """In mid-stream: nothing is asked twice."""
        if failed.cause is Cause.TIMEOUT:
            errand.release(Count.TIMED_OUT)
            return Refused(Reason.EVENT_TIMEOUT, str(failed))
        if failed.cause is Cause.CONDEMNED:
            errand.release(Count.CONDEMNED)
            return Refused(Reason.ENDPOINT_CONDEMNED, str(failed))
        errand.release(Count.LOST)
        return Refused(Reason.UPSTREAM_LOST, "in the middle of its answer")

    async def may_answer_often(self, errand: Errand) -> bool:
        """Is the errand's model decoupled: may a request of it have any number of responses, at
        any time? An engine that does not say is taken for one whose model is. Failed, Refused."""
        endpoint = self._endpoint(errand)
        key = endpoint.slot, endpoint.generation, errand.model
        until_s, known = self._decoupled.get(key, (0.0, True))
        if time.monotonic() < until_s:
            return known
        ask = (await self.channel(errand)).unary_unary(SERVICE + "ModelConfig")
        message = renamed(b"", errand.model)
        metadata = forwarded((), endpoint, errand.request_id, True)
        try:
            known = is_decoupled(
                await within(errand, CONFIG_PATIENCE_S, lambda: ask(message, metadata=metadata))
            )
        except (grpc.aio.AioRpcError, TimeoutError, ValueError):
            return True
        self._decoupled[key] = time.monotonic() + CONFIG_S, known
        return known

    def retain(self, endpoints: list[Endpoint]) -> None:
        """The fleet has changed."""
        places = {(one.slot, one.generation) for one in endpoints}
        self.channels.retain(one for one in endpoints if one.grpc_port)
        self._decoupled = {
            key: value for key, value in self._decoupled.items() if key[:2] in places
        }
