"""What the control process and a data worker say to each other over their socket pair.

MessagePack of tagged structs, each behind a 4-byte little-endian length. The control process
sends whole states, never differences: the newest `Fleet` replaces all that came before it. Load,
health and counts do not travel here: they stand in shared memory.
"""

import struct
from collections.abc import Iterator
from typing import Annotated

import msgspec

__all__ = [
    "Access",
    "Choice",
    "Condemn",
    "Drain",
    "Drained",
    "Endpoint",
    "Fleet",
    "FromWorker",
    "Key",
    "Made",
    "Model",
    "Ready",
    "Sent",
    "Settings",
    "ToWorker",
]


class Endpoint(msgspec.Struct, frozen=True):
    """An engine pod as a worker dials it."""

    slot: int
    generation: int
    name: str
    kind: str
    host: str
    """As it goes out in the Host header: name[:port]."""
    address: str
    """IP address; names are resolved by the control process."""
    port: int
    tls: bool = False
    server_name: str = ""
    ca_file: str = ""
    api_key: str = ""
    """Sent as `Authorization: Bearer`; empty: none of ours."""
    keep_alive_s: float = 4.0
    """Idle connections are closed after this; below the engine's own keep-alive."""
    path_prefix: str = ""
    """Put before the path of each request; from a URL such as http://host/engine-a."""


class Model(msgspec.Struct, frozen=True):
    """A model that can be served, and by whom."""

    name: str
    index: int
    """Row in the shared counters; MAX_MODELS - 1 for those beyond."""
    slots: list[int]
    """Endpoints that list it, ascending, whatever their state."""


class Choice(msgspec.Struct, frozen=True):
    """One target of an alias; `weight` relative to its siblings."""

    model: str
    weight: float = 1.0


class Key(msgspec.Struct, frozen=True):
    """A client's key. `models` empty: all of them."""

    name: str
    digest: bytes
    """SHA-256 of the key, 32 bytes."""
    models: list[str] = []
    usage: str = ""
    """'observe', 'exact', or empty: as the model or the gateway says."""
    priority: int = 0
    """The lowest that its requests get."""


class Settings(msgspec.Struct, frozen=True):
    """The part of the configuration that a worker needs; durations in seconds."""

    policy: str = "marginal-cost"
    usage: str = "observe"
    usage_by_model: dict[str, str] = {}
    paths: list[str] = []
    cors_origins: list[str] = []
    decision_header: bool = False
    metrics_on_data_port: bool = False
    admin_address: str = ""
    """host:port of the admin listener, for `metrics_on_data_port`."""
    allow_kv_transfer_params: bool = False
    client_half_close: bool = False
    access_log: bool = False
    body_bytes: int = 64 << 20
    buffered_bytes: int = 512 << 20
    json_depth: int = 128
    head_s: float = 10.0
    body_idle_s: float = 30.0
    body_bytes_per_s: int = 1024
    connect_s: float = 2.0
    first_byte_s: float = 600.0
    event_s: float = 120.0
    client_stall_s: float = 60.0
    client_keep_alive_s: float = 75.0
    idle_connections: int = 512
    hold_wait_s: float = 0.0
    hold_requests: int = 1024
    hold_bytes: int = 256 << 20
    hold_s: float = 60.0
    hold_no_engine_s: float = 0.0
    retry_share: float = 0.1
    retry_floor: int = 100
    retry_window_s: float = 10.0
    log_level: str = "info"
    log_format: str = "text"
    dead_silence_s: float = 2.0


class Fleet(msgspec.Struct, frozen=True, tag="fleet"):
    """Everything a worker knows of the world; replaces the one before."""

    endpoints: list[Endpoint]
    models: list[Model]
    aliases: dict[str, list[Choice]]
    keys: list[Key]
    complete: bool
    """Every endpoint's model list has been read: a missing model does not exist (404)."""
    settings: Settings
    models_json: bytes
    """Body of GET /v1/models."""


class Condemn(msgspec.Struct, frozen=True, tag="condemn"):
    """An endpoint was declared dead or hung: act on what runs there."""

    slot: int
    generation: int
    why: str
    hung: bool
    """True: streams that produced end too. False (listener gone): only once they are silent."""


class Drain(msgspec.Struct, frozen=True, tag="drain"):
    """Stop listening after `pre_stop_s`, end idle connections, give streams `grace_s` more.

    A second one replaces the first; `grace_s` 0 ends what runs at once.
    """

    pre_stop_s: float
    grace_s: float


class Made(msgspec.Struct, frozen=True, tag="made"):
    """A response id and the endpoint that holds it; sent on to the other workers."""

    response: str
    slot: int
    generation: int
    holder: str = ""
    """Name of the key that asked for it: no other key may have it."""


class Sent(msgspec.Struct, frozen=True, tag="sent"):
    """Which prompts went where since the last one; see Plane.take_sent."""

    prompts: Annotated[bytes, msgspec.Meta(max_length=64 << 20)]

    def each(self) -> Iterator[tuple[int, bytes]]:
        """(slot, block hashes, 8 bytes each) of every prompt."""
        at = 0
        while at + 16 <= len(self.prompts):
            slot, _, n = struct.unpack_from("=IIQ", self.prompts, at)
            yield slot, self.prompts[at + 16 : at + 16 + 8 * n]
            at += 16 + 8 * n


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The worker serves; sent once, after its first `Fleet`."""

    pid: int


class Access(msgspec.Struct, frozen=True, tag="access"):
    """Access log lines, each one a JSON object without its line end."""

    lines: Annotated[list[bytes], msgspec.Meta(max_length=100_000)]


class Drained(msgspec.Struct, frozen=True, tag="drained"):
    """Nothing runs any more; the worker exits."""


ToWorker = Fleet | Condemn | Drain | Made
FromWorker = Ready | Access | Drained | Made | Sent
