"""Calls with one request and one response: inference without a stream, and what models tell."""

from typing import Any

from engines.kserve import Tensors
from engines.kserve_wire import SERVICE, read_infer, read_name
from gateway._shared import Count
from gateway.kserve.relay import Relay, understood
from gateway.proxy._errand import Errand

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
