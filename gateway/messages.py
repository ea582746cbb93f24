"""What the control process and a data worker say to each other over their socket pair.

MessagePack of tagged structs, each behind a 4-byte little-endian length. The control process
sends whole states, never differences: the newest `Fleet` replaces all that came before it. Load,
health and counts do not travel here: they stand in shared memory.
"""

import struct
from collections.abc import Iterator
from typing import Annotated

import msgspec

from engines.triton.model import TritonModel

__all__ = [
    "Access",
    "Choice",
    "Condemn",
    "Drain",
    "Drained",
    "Endpoint",
    "Explain",
    "Explained",
    "Fleet",
    "FromWorker",
    "Key",
    "Made",
    "Model",
    "Ready",
    "Sample",
    "Sent",
    "Settings",
    "ToWorker",
    "Tokenizer",
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
    rank: int | None = None
    """Data-parallel rank behind it that requests go to."""
    grpc_port: int = 0
    """Where it speaks gRPC; 0: nowhere."""
    triton: dict[str, TritonModel] = {}
    """Of a Triton: its models that generate text."""


class Model(msgspec.Struct, frozen=True):
    """A model that can be served, and by whom."""

    name: str
    index: int
    """Row in the shared counters; MAX_MODELS - 1 for those beyond."""
    slots: list[int]
    """Endpoints that list it, ascending, whatever their state."""
    parent: str = ""
    """Of a LoRA adapter: its base model. Empty: it is none."""
    tokenizer: str = ""
    """Of `Fleet.tokenizers`: makes the token ids of its prompts; empty: go by their text."""
    block_tokens: int = 0
    """In a block of token ids."""


class Sample(msgspec.Struct, frozen=True):
    """A request and the token ids that an engine made of its prompt."""

    path: str
    body: bytes
    ids: bytes
    """4 bytes each, little-endian."""


class Tokenizer(msgspec.Struct, frozen=True):
    """What makes the token ids of a model's prompts."""

    folder: str
    """Empty: an engine is asked for them."""
    chat_template: str = ""
    """File of a template other than the folder's; empty: none."""
    samples: tuple[Sample, ...] = ()
    """It must do as the engines do."""


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
    labels: list[str] = []
    """name=value that its requests ask of an endpoint."""
    priority: int = 0
    """The lowest that its requests get."""


class Settings(msgspec.Struct, frozen=True):
    """The part of the configuration that a worker needs; durations in seconds."""

    policy: str = "marginal-cost"
    usage: str = "observe"
    usage_by_model: dict[str, str] = {}
    labels_by_model: dict[str, list[str]] = {}
    """name=value that requests for a model or an alias ask of an endpoint."""
    client_labels: bool = False
    adapter_load_s: float = 0.5
    affinity_mode: str = "soft"
    affinity_headers: tuple[str, ...] = ("x-session-affinity", "x-session-id")
    """Lower case."""
    affinity_cookie: str = ""
    affinity_weight_s: float = 0.5
    affinity_idle_s: float = 3600.0
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
    tokenizers: dict[str, Tokenizer] = {}
    labels: dict[str, int] = {}
    """name=value of the endpoints -> its bit in the rows of the table."""


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

    def each(self) -> Iterator[tuple[int, int, bytes]]:
        """(slot, generation, block hashes, 8 bytes each) of every prompt."""
        at = 0
        while at + 16 <= len(self.prompts):
            slot, generation, n = struct.unpack_from("=IIQ", self.prompts, at)
            yield slot, generation, self.prompts[at + 16 : at + 16 + 8 * n]
            at += 16 + 8 * n


class Explain(msgspec.Struct, frozen=True, tag="explain"):
    """Say where a request would go now. It goes nowhere, and nothing is counted."""

    number: int
    """For the `Explained` that answers it."""
    head: bytes
    """As a client would send it, without credentials."""
    body: Annotated[bytes, msgspec.Meta(max_length=64 << 20)]
    key: str = ""
    """Name of the key it is asked with."""


class Explained(msgspec.Struct, frozen=True, tag="explained"):
    """The answer to an `Explain`, as JSON."""

    number: int
    answer: Annotated[bytes, msgspec.Meta(max_length=64 << 20)]


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """The worker serves; sent once, after its first `Fleet`."""

    pid: int


class Access(msgspec.Struct, frozen=True, tag="access"):
    """Access log lines, each one a JSON object without its line end."""

    lines: Annotated[list[bytes], msgspec.Meta(max_length=100_000)]


class Drained(msgspec.Struct, frozen=True, tag="drained"):
    """Nothing runs any more; the worker exits."""


ToWorker = Fleet | Condemn | Drain | Made | Explain
FromWorker = Ready | Access | Drained | Made | Sent | Explained
