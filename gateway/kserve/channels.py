"""gRPC channels to the engines: one per endpoint and worker, made when it is first asked."""

import asyncio
from collections.abc import Iterable
from pathlib import Path

import grpc

from gateway.messages import Endpoint

__all__ = ["Channels"]

# Triton ends connections that are pinged more often than every 300 s while it has nothing to say;
# the gateway's own probes notice a host that vanished much earlier.
KEEPALIVE_MS = 310_000
# An engine that is back shall be used at once: the probes say when it is.
RECONNECT_MS = 100
MAX_RECONNECT_MS = 1000
# One attempt at a connection, with TLS and the first words of HTTP/2.
CONNECT_MS = 5000
# For what runs at an endpoint that has left the fleet or has changed.
LONG_S = 3600.0

Place = tuple[int, int, str, int, bool, str, str]


class Channels:
    """Make it in the loop it is used in. What a message may have is judged where it comes in."""

    def __init__(self) -> None:
        self._options = (
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.keepalive_permit_without_calls", 0),
            ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS),
            # In spite of its name.
            ("grpc.min_reconnect_backoff_ms", CONNECT_MS),
            ("grpc.max_reconnect_backoff_ms", MAX_RECONNECT_MS),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_retries", 0),
            ("grpc.enable_http_proxy", 0),
        )
        self._channels: dict[Place, grpc.aio.Channel] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def get(self, endpoint: Endpoint) -> grpc.aio.Channel:
        """The endpoint's channel. OSError: its CA file cannot be read."""
        place = _place(endpoint)
        channel = self._channels.get(place)
        if channel is None:
            channel = self._channels[place] = self._open(endpoint)
        return channel

    async def connect(self, endpoint: Endpoint) -> grpc.aio.Channel:
        """Its channel, connected, or known not to be: then a call fails at once. OSError."""
        channel = self.get(endpoint)
        state = channel.get_state(try_to_connect=True)
        while state in (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING):
            await channel.wait_for_state_change(state)
            state = channel.get_state(try_to_connect=True)
        return channel

    def _open(self, endpoint: Endpoint) -> grpc.aio.Channel:
        host = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
        target = f"{host}:{endpoint.grpc_port}"
        if not endpoint.tls:
            return grpc.aio.insecure_channel(target, self._options)
        ca = Path(endpoint.ca_file).read_bytes() if endpoint.ca_file else None
        options = (*self._options, ("grpc.ssl_target_name_override", endpoint.server_name))
        return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(ca), options)

    def retain(self, endpoints: Iterable[Endpoint]) -> None:
        """Close the channels of all others, once what runs there has ended."""
        for place in self._channels.keys() - {_place(endpoint) for endpoint in endpoints}:
            self._close(self._channels.pop(place), LONG_S)

    def _close(self, channel: grpc.aio.Channel, grace_s: float | None) -> None:
        task = asyncio.create_task(channel.close(grace_s))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all of them, with what runs there."""
        for channel in self._channels.values():
            await channel.close(None)
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)


def _place(endpoint: Endpoint) -> Place:
    """What a connection depends on; its models and its key do not matter."""
    return (
        endpoint.slot,
        endpoint.generation,
        endpoint.address,
        endpoint.grpc_port,
        endpoint.tls,
        endpoint.ca_file,
        endpoint.server_name,
    )
