"""Calls with one request and one response: inference without a stream, and what models tell."""

from typing import Any

import grpc

from engines.kserve import Tensors
from engines.kserve_wire import SERVICE, read_infer, read_name, renamed
from gateway._shared import Count
from gateway.kserve.relay import SERVER_PATH, Relay, status_for, understood
from gateway.proxy._errand import Errand, Refused
from gateway.proxy._native import repository_index

__all__ = ["Unary"]


class Unary:
    """Relays them. Ended: a message that is no protobuf."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    async def infer(self, message: bytes, context: Any) -> bytes:
        """ModelInfer."""
        asked = understood(read_infer, message)
        return await self._pass("ModelInfer", message, context, asked.model, asked.tensors)

    async def tell(self, method: str, message: bytes, context: Any) -> bytes:
        """ModelMetadata, ModelConfig, ModelStatistics: always by the same engine while it is up."""
        model, _ = understood(read_name, message)
        return await self._pass(method, message, context, model, None)

    async def statistics(self, message: bytes, context: Any) -> bytes:
        """ModelStatistics. Without a name: of every model that is ready and that the client may
        use, each as if it were asked for alone."""
        model, _ = understood(read_name, message)
        if model:
            return await self.tell("ModelStatistics", message, context)
        method = SERVICE + "ModelStatistics"
        async with self._relay.errand(context, method, SERVER_PATH) as (errand, _):
            ready = repository_index(self._relay.plane, errand.allowed, True)
            errand.end(Count.COMPLETED, 200)
        # Messages put together are one, with the repeated fields of all.
        return b"".join([await self._statistics_of(one["name"], context) for one in ready])

    async def _statistics_of(self, model: str, context: Any) -> bytes:
        try:
            return await self.tell("ModelStatistics", renamed(b"", model), context)
        except (Refused, grpc.aio.AioRpcError) as error:
            if status_for(error)[0] is not grpc.StatusCode.NOT_FOUND:
                raise
            return b""  # it was unloaded meanwhile

    async def _pass(
        self, method: str, message: bytes, context: Any, model: str, tensors: Tensors | None
    ) -> bytes:
        relay = self._relay
        async with relay.errand(context, SERVICE + method) as (errand, metadata):
            errand.read(model.encode(), tensors, len(message))
            message = relay.named(errand, model, message)

            async def ask() -> bytes:
                channel = await relay.channel(errand)
                call = channel.unary_unary(SERVICE + method)
                invocation = relay.invocation(errand, context, metadata)
                patience_s = relay.plane.settings.first_byte_s
                answer: bytes = await relay.patiently(
                    errand, patience_s, lambda: call(message, **invocation)
                )
                return answer

            answer = await relay.persistently(errand, ask, lambda: False)
            return self._over(errand, len(message), answer)

    def _over(self, errand: Errand, n_sent: int, answer: bytes) -> bytes:
        errand.moved(len(answer), n_sent)
        errand.sent(len(answer))
        errand.answered(200)
        errand.release(Count.ANSWERED)
        errand.end(Count.COMPLETED, 200)
        return answer
