"""All that can be configured: one struct per component, every field with unit and reason.

Key names in the file are the field names. Durations are seconds (`_s`), sizes bytes. Bounds stand
in `Meta`, so that the reader can say what it expected.
"""

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from gateway import messages
from gateway.config.secret import Secret

__all__ = [
    "Admin",
    "Affinity",
    "Bus",
    "Config",
    "Drain",
    "Engine",
    "Health",
    "Hold",
    "Key",
    "Limits",
    "Listen",
    "Log",
    "ModelRule",
    "Overload",
    "Retry",
    "Timeouts",
    "label_texts",
]

Port = Annotated[int, Meta(ge=0, le=65535)]
Seconds = Annotated[float, Meta(gt=0)]
SecondsOrNone = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=1)]
CountOrNone = Annotated[int, Meta(ge=0)]
Weight = Annotated[float, Meta(gt=0)]
Rank = Annotated[int, Meta(ge=0, le=1023)]
Usage = Literal["observe", "exact"]
Kind = Literal[
    "auto", "vllm", "sglang", "trtllm", "nim", "ollama", "llamacpp", "tgi", "triton", "openai"
]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:\[\]-]*$", max_length=200)]
Priority = Annotated[int, Meta(ge=-1000, le=1000)]
Digest = Annotated[str, Meta(pattern=r"^(sha256:)?[0-9a-fA-F]{64}$")]
EnginePath = Annotated[str, Meta(pattern=r"^/")]
HeaderName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9-]+$", max_length=63)]
CookieName = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]*$")]
Label = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", max_length=63)]
Role = Literal["both", "prefill", "decode"]


class Struct(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all sections."""


class Listen(Struct, frozen=True, kw_only=True):
    """Where clients connect."""

    host: str = "127.0.0.1"
    """Address to bind. Loopback, so that nothing is open to a network by accident."""
    port: Port = 8080
    """TCP port; 0: any free one, told at start."""
    grpc_port: Port | None = None
    """TCP port for KServe's v2 protocol over gRPC, as Triton speaks it, on the same address; 0: any
    free one. Default: none."""
    backlog: Count = 4096
    """Connections the kernel queues per worker; a reconnecting client fleet comes all at once, and
    the kernel cuts it down to net.core.somaxconn."""
    tls_cert: str = ""
    """PEM file with the certificate chain; with `tls_key`: HTTPS only."""
    tls_key: str = ""
    """PEM file with the private key."""


class Admin(Struct, frozen=True, kw_only=True):
    """The control process's own port: health, readiness, metrics, admin calls."""

    host: str = "127.0.0.1"
    """Loopback; bind wider for Prometheus or probes from outside."""
    port: Port = 9180
    """TCP port; 0: any free one, told at start."""
    token: Secret = Secret()
    """Bearer token for /admin/*. Without one only /health, /ready and /metrics answer."""


class Engine(Struct, frozen=True, kw_only=True):
    """One engine pod."""

    url: str
    """http[s]://host[:port][/prefix]; the path stands before that of every request."""
    kind: Kind = "auto"
    """What runs there; auto: it is asked, each time it comes to life. openai is any server that
    speaks OpenAI and of which no more is known: also what auto makes of one that does not tell."""
    grpc_port: Port = 0
    """Of a Triton: where it generates. 0: the port behind that of its URL, as 8001 is to 8000."""
    name: Name | None = None
    """As seen in logs, metrics and the admin API; default: host:port."""
    api_key: Secret = Secret()
    """Sent as `Authorization: Bearer` on requests and probes."""
    control_header: Secret = Secret()
    """`NAME: VALUE`, sent with our own questions and orders, never with clients' requests: what
    Triton's --http-restricted-api asks for. Inline, as env:NAME or file:PATH."""
    ca_file: str = ""
    """PEM file with the CA for https; default: the system's."""
    server_name: str = ""
    """TLS server name, where it differs from the URL's host."""
    profile: str = "8b-h100"
    """How long its steps take, to begin with: model size and GPU. What is observed corrects it."""
    kv_events: list[str] = []
    """Where it publishes its KV events: tcp://HOST:PORT[?replay=PORT], `*` for its own host.
    Default: it is asked (GET /kv_event_sources). Read only where a model has a `tokenizer`."""
    data_parallel: Annotated[int, Meta(ge=1, le=1024)] = 1
    """Data-parallel ranks behind this URL, each with a KV cache of its own: each becomes an
    endpoint, NAME.dpN, whose requests carry X-data-parallel-rank."""
    rank: Rank | None = None
    """The one data-parallel rank that requests go to; set for each by `data_parallel`."""
    metrics_port: Port = 0
    """Where its metrics are, in plain HTTP, if not at the URL's port. 0: there; a Triton's are two
    behind it."""
    gpu_metrics: str = ""
    """http[s]://host:port of an exporter of its GPUs' counters (DCGM's), for `gpu_utilisation`."""
    gpu_labels: dict[str, str] = {}
    """Labels of the GPUs there that are this engine's, such as `pod: vllm-0`; at most 4. Default:
    all GPUs of the page are."""
    keep_alive_s: Seconds | None = None
    """Idle connections close after this; default: below the kind's own keep-alive (4 s)."""
    role: Role = "both"
    """Which half of a request it serves. Clients' requests go to those that decode (both, decode);
    one of role prefill gets only what asks for the label `role: prefill`."""
    labels: dict[str, Label] = {}
    """What models, keys and clients may ask for, such as `gpu: h100`."""
    max_in_flight: CountOrNone = 0
    """Requests it gets at once, from all workers; further ones go elsewhere, or wait as `hold`
    says. 0: as many as come, for vLLM and SGLang have queues of their own. Workers do not lock
    each other out: it may be passed by one request per further worker."""


class ModelRule(Struct, frozen=True, kw_only=True):
    """What is special about a model name."""

    split: dict[str, Weight] | None = None
    """Makes the name an alias: target model -> weight, relative to its siblings."""
    alias_of: str | None = None
    """Short for a split with a single target."""
    usage: Usage | None = None
    """Overrides the gateway's `usage`."""
    tokenizer: str = ""
    """Folder of the model's files (tokenizer.json and its kind), or `engine`: the engine is asked
    for token ids (POST /tokenize), which costs each request some milliseconds. With it, and with
    engines that publish KV events, prompts are compared by token ids with what each engine's cache
    holds. Default: by their text, with what was sent there. Chats with a model in Triton need the
    folder: the gateway renders its template."""
    chat_template: str = ""
    """File of the chat template that the engines were started with; default: the folder's own."""
    labels: dict[str, Label] = {}
    """Requests that name the model, or this alias, go only to engines with all these labels."""


class Key(Struct, frozen=True, kw_only=True):
    """A client's key; only its digest is kept. `headgate keys new` makes one."""

    name: Name
    """As seen in the access log."""
    digest: Digest
    """SHA-256 of the key in hex."""
    models: list[str] = []
    """Models and aliases it may use; empty: all."""
    usage: Usage | None = None
    """Overrides the model's and the gateway's `usage`."""
    labels: dict[str, Label] = {}
    """Its requests go only to engines with all these labels."""
    priority: Priority = 0
    """Of its requests in the queue (see `hold`): a lower number is served earlier. A request may
    ask for a higher one by itself, never for a lower one: nobody gets ahead who is not let."""


class Limits(Struct, frozen=True, kw_only=True):
    """Bounds on what a client may make the gateway hold."""

    body_bytes: Count = 64 << 20
    """Largest request body. Images in base64 take tens of MB; more is a mistake."""
    buffered_bytes: Count = 512 << 20
    """Request bodies under way per worker; at the bound it stops reading, then answers 503."""
    json_depth: Count = 128
    """Brackets open at once in a body, at most 512. Tool schemas nest some 20 deep; the engines'
    own parsers give up near 1,000, with a 500."""
    idle_connections: Count = 512
    """Kept upstream connections per worker and engine; above the largest batch an engine runs."""


class Timeouts(Struct, frozen=True, kw_only=True):
    """Patience, in seconds. There is no total limit: a long answer is not an error."""

    head_s: Seconds = 10.0
    """Until a request's head is complete; a slow reader's attack ends here."""
    body_idle_s: Seconds = 30.0
    """Silence within a request body."""
    body_bytes_per_s: Count = 1024
    """Slowest average of a request body, once body_idle_s are over."""
    connect_s: Seconds = 2.0
    """Dialling an engine; within one cluster it takes 1 ms, and another engine waits."""
    first_byte_s: Seconds = 600.0
    """Until an engine's first byte: queueing and prefill; the OpenAI clients' own default."""
    event_s: Seconds = 120.0
    """Silence in mid-stream; above any sane gap between two tokens."""
    client_stall_s: Seconds = 60.0
    """A client that reads nothing while bytes wait for it."""
    client_keep_alive_s: Seconds = 75.0
    """Idle client connections; above the 60 s after which common load balancers drop theirs."""
    dead_silence_s: Seconds = 2.0
    """Streams of an engine whose listener is gone end once they are silent for this long: it may
    still be finishing them."""


class Health(Struct, frozen=True, kw_only=True):
    """Probes and the circuit breaker."""

    interval_s: Seconds = 2.0
    """Between two probes of an engine, jittered by 20 %. An engine with failing requests is
    probed at once."""
    timeout_s: Seconds = 2.0
    """Of one probe or scrape; an API server under full load answers within 1 s."""
    scrape_s: Annotated[float, Meta(ge=0.05)] = 1.0
    """Between two readings of an engine's metrics while it has requests, jittered by 20 %. Own
    requests are counted without them; they tell what others do there. An engine that takes long
    to answer is asked less often: it shall spend no more than a tenth of its time on us."""
    scrape_idle_s: Annotated[float, Meta(ge=0.05)] = 5.0
    """The same while nothing runs there, and after failures; reached by doubling."""
    models_interval_s: Seconds = 10.0
    """Between two readings of /v1/models; LoRA adapters come and go."""
    failures_in_row: Count = 5
    """Failed requests in a row that open the circuit; lower opens it by chance under load."""
    backoff_s: Seconds = 1.0
    """First wait before a trial request; doubles with each failed trial."""
    backoff_max_s: Seconds = 30.0
    """Longest wait; a restarted pod is back within this after it answers probes again."""
    slow_start_s: SecondsOrNone = 10.0
    """After a trial the share grows from 0.1 to 1 in this time: caches and graphs are cold."""
    stall_s: Seconds = 5.0
    """No event on any stream that had begun, for this long, and the engine's own token counter
    stands still: it hangs. /health alone says 200 all the while. Above the longest prefill step."""
    stuck_s: Seconds = 120.0
    """It has requests, but no answer and none of its counters moved for this long: it hung while it
    was idle. Above the longest prefill: a million tokens take about a minute. One that hangs gets a
    trial request after this long even if nothing moves: another of its models may serve."""
    dns_interval_s: Seconds = 30.0
    """Between two look-ups of an engine's name; also after each failed probe."""


class Hold(Struct, frozen=True, kw_only=True):
    """Requests for which no engine has room wait in the gateway: first those of the lowest
    `priority` number, among equals the one that came first. When something frees, the first is
    routed, by what holds then. All bounds are per worker."""

    wait_s: SecondsOrNone = 0.0
    """An engine has no room while a prompt would wait there longer than this, as estimated from
    what was sent. 0: only a full `max_in_flight` holds requests back. Off unless asked for:
    engines queue by themselves, and where estimates are too high requests would wait for nothing.
    It buys that priorities count, and that engines are chosen late; 1 to 5 is a good value."""
    requests: CountOrNone = 1024
    """That wait at most. With one more the last of them is answered 429, or the new one unless its
    priority number is lower. 0: none waits. At 10 requests a second this is a queue of 100 s."""
    bytes: CountOrNone | None = None
    """Of their bodies; below limits.buffered_bytes, so that what waits never stops what runs.
    Default: half of it."""
    time_s: Seconds = 60.0
    """How long each waits at most before it is answered 429. Clients have more patience (OpenAI's
    600 s), proxies between them and us often have not, and shall see our answer."""
    no_engine_s: SecondsOrNone = 0.0
    """The same where no engine at all is ready, as while a single one restarts or the first one
    starts; then 503. 0: 503 at once, so that clients with another place to go, go there."""


class Overload(Struct, frozen=True, kw_only=True):
    """When an engine's own metrics say that it has too much: then it gets nothing while another
    has not. Against load that the gateway does not see, and for policies that look at none: what
    the gateway itself sent is weighed long before an engine says so. Read with each scrape."""

    waiting: CountOrNone = 32
    """Requests in its queue. Shorter ones are the policy's to weigh. 0: does not count."""
    kv_usage: Annotated[float, Meta(ge=0, le=1)] = 0.95
    """Share of its KV cache that running requests hold: above, it preempts what it has. 0: does
    not count."""


class Retry(Struct, frozen=True, kw_only=True):
    """How much may be asked a second time; a fleet in trouble must not get twice the load."""

    share: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Retries per request within the window."""
    floor: Annotated[int, Meta(ge=0)] = 100
    """Retries within the window that are always allowed, so that small fleets fail over too."""
    window_s: Seconds = 10.0
    """Length of the window."""


class Drain(Struct, frozen=True, kw_only=True):
    """From SIGTERM to the exit."""

    pre_stop_s: SecondsOrNone = 5.0
    """Unready but serving, until load balancers have noticed. A second signal ends the wait."""
    grace_s: SecondsOrNone = 600.0
    """For running streams; set the pod's terminationGracePeriodSeconds above the sum."""


class Bus(Struct, frozen=True, kw_only=True):
    """Several gateways in front of the same engines tell each other their load."""

    url: Secret = Secret()
    """redis[s]://[[user]:password@]host[:port][/db], inline, as env:NAME or file:PATH. Empty: this
    gateway is the only one. Gateways that share a db of a server share their load."""
    name: Name | None = None
    """Of this gateway, unlike any other's and the same after a restart; default: the host name
    (in Kubernetes the pod's) and the port."""
    gateways: Annotated[int, Meta(ge=0, le=256)] = 0
    """How many there are. While the bus is away, own load times this stands for that of all; 0: as
    many as were heard of last."""


class Affinity(Struct, frozen=True, kw_only=True):
    """Requests that name the same session, and where they meet again."""

    mode: Literal["soft", "hard", "off"] = "soft"
    """soft: leaving the session's engine costs `weight_s`, and is done where that pays; a term of
    the policy marginal-cost, which alone counts in seconds. hard: the session stays as long as its
    engine is up, whatever the policy, and moves once if it dies."""
    headers: list[HeaderName] = msgspec.field(
        default_factory=lambda: ["x-session-affinity", "x-session-id"]
    )
    """Request headers that name a session; the first of the list that is there counts."""
    cookie: CookieName = ""
    """Cookie that does, where none of the headers is there; empty: none."""
    weight_s: SecondsOrNone = 0.5
    """About what an 8B model on an H100 takes for the 10,000 tokens of an agent's context. What the
    prefix index knows of is counted beside it."""
    idle_s: Annotated[float, Meta(gt=0, le=14400)] = 3600.0
    """A session without a request for this long is forgotten; an engine's cache forgets sooner.
    At most 4 h."""


class Log(Struct, frozen=True, kw_only=True):
    """What the gateway says of itself, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Nothing is logged per request, at any level."""
    format: Literal["text", "json"] = "text"
    """text for people, json for collectors."""


class Config(Struct, frozen=True, kw_only=True):
    """The root of the file."""

    listen: Listen = Listen()
    admin: Admin = Admin()
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    """Data workers, each a process that takes one core at full load."""
    engines: list[Engine] = []
    models: dict[str, ModelRule] = {}
    """By model name; what is not listed here passes as it is."""
    keys: list[Key] = []
    """Empty: open, everybody may ask."""
    policy: str = "marginal-cost"
    """How an engine is picked; see router/policies. marginal-cost: where the request is answered
    soonest, at the least cost to the others."""
    index_blocks: Annotated[int, Meta(ge=1024, le=1 << 28)] = 1 << 20
    """Blocks of prompts of which it is known who has them cached, 16 bytes each in shared memory,
    about 50 more in the control process for each endpoint that has one. A block is 256 bytes of
    text, or as many tokens as in the engine (16, mostly)."""
    usage: Usage = "observe"
    """observe: read usage where the engine sends it, else estimate. exact: ask the engine for it
    in every stream and hide what the client did not ask for."""
    affinity: Affinity = Affinity()
    adapter_load_s: SecondsOrNone = 0.5
    """What it costs to ask for a LoRA adapter at an engine that has it in none of its slots, where
    one is free; twice that where it displaces another. Some 0.05 s from host memory, 1 s from
    disk. A term of marginal-cost; 0: adapters are spread like base models."""
    client_labels: bool = False
    """Heed clients' `x-headgate-labels: name=value, ...`, beside what model and key ask for. Off:
    clients do not choose engines."""
    paths: list[EnginePath] = []
    """Further request paths that go to the engines, besides OpenAI's own."""
    cors_origins: list[str] = []
    """Origins whose pages may call from a browser; '*': all."""
    decision_header: bool = False
    """Answer with x-headgate-decision: the engine picked, and why. Names engines to clients."""
    metrics_on_data_port: bool = False
    """Serve /metrics on the clients' port too."""
    allow_kv_transfer_params: bool = False
    """Accept `kv_transfer_params` from clients: they name hosts for engines to fetch from."""
    client_half_close: bool = False
    """Take a client's FIN in mid-response as 'I sent all', not as 'gone'. Off: a closed client
    frees its GPU at once."""
    limits: Limits = Limits()
    timeouts: Timeouts = Timeouts()
    health: Health = Health()
    hold: Hold = Hold()
    overload: Overload = Overload()
    retry: Retry = Retry()
    drain: Drain = Drain()
    bus: Bus = Bus()
    access_log: str = ""
    """File to append one JSON object per request to, '-' for standard output; empty: none.
    Reopened on SIGHUP."""
    log: Log = Log()

    def aliases(self) -> dict[str, dict[str, float]]:
        """Alias -> target model -> weight."""
        found = {}
        for name, rule in self.models.items():
            if rule.split is not None:
                found[name] = dict(rule.split)
            elif rule.alias_of is not None:
                found[name] = {rule.alias_of: 1.0}
        return found

    def to_keys(self) -> list[messages.Key]:
        """The clients' keys as the workers take them."""
        return [
            messages.Key(
                key.name,
                bytes.fromhex(key.digest.removeprefix("sha256:")),
                list(key.models),
                key.usage or "",
                label_texts(key.labels),
                key.priority,
            )
            for key in self.keys
        ]

    def to_settings(self, admin_address: str = "") -> messages.Settings:
        """The part that the workers take; `admin_address`: where the admin port can be reached."""
        limits, timeouts, retry, hold = self.limits, self.timeouts, self.retry, self.hold
        return messages.Settings(
            policy=self.policy,
            usage=self.usage,
            usage_by_model={n: rule.usage for n, rule in self.models.items() if rule.usage},
            labels_by_model={
                n: label_texts(rule.labels) for n, rule in self.models.items() if rule.labels
            },
            client_labels=self.client_labels,
            adapter_load_s=self.adapter_load_s,
            affinity_mode=self.affinity.mode,
            affinity_headers=tuple(name.lower() for name in self.affinity.headers),
            affinity_cookie=self.affinity.cookie,
            affinity_weight_s=self.affinity.weight_s,
            affinity_idle_s=self.affinity.idle_s,
            paths=list(self.paths),
            cors_origins=list(self.cors_origins),
            decision_header=self.decision_header,
            metrics_on_data_port=self.metrics_on_data_port,
            allow_kv_transfer_params=self.allow_kv_transfer_params,
            client_half_close=self.client_half_close,
            access_log=bool(self.access_log),
            admin_address=admin_address,
            body_bytes=limits.body_bytes,
            buffered_bytes=limits.buffered_bytes,
            json_depth=limits.json_depth,
            idle_connections=limits.idle_connections,
            head_s=timeouts.head_s,
            body_idle_s=timeouts.body_idle_s,
            body_bytes_per_s=timeouts.body_bytes_per_s,
            connect_s=timeouts.connect_s,
            first_byte_s=timeouts.first_byte_s,
            event_s=timeouts.event_s,
            client_stall_s=timeouts.client_stall_s,
            client_keep_alive_s=timeouts.client_keep_alive_s,
            dead_silence_s=timeouts.dead_silence_s,
            hold_wait_s=hold.wait_s,
            hold_requests=hold.requests,
            hold_bytes=limits.buffered_bytes // 2 if hold.bytes is None else hold.bytes,
            hold_s=hold.time_s,
            hold_no_engine_s=hold.no_engine_s,
            retry_share=retry.share,
            retry_floor=retry.floor,
            retry_window_s=retry.window_s,
            log_level=self.log.level,
            log_format=self.log.format,
        )


def label_texts(labels: Mapping[str, str]) -> list[str]:
    """Labels as they are told: name=value each."""
    return [f"{name}={value}" for name, value in sorted(labels.items())]
