"""What no single field can tell: rules between fields, and files that must be there."""

import re
import ssl
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from engines.kv_sources import parse_kv_source
from engines.profile import PROFILES
from gateway.config.bus_url import check_bus_url
from gateway.config.schema import Config, Engine
from gateway.config.url import parse_engine_url
from router.policy import POLICIES

MAX_URL = 2048
MAX_PORT = 65535
MAX_GPU_LABELS = 4
# For a `tokenizer`: none here, the engine has one.
ASK = "engine"
LABEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+:.+")

__all__ = ["ASK", "check", "check_engine", "engine_name", "ranks_of"]


def check(config: Config) -> list[str]:
    """One line per thing that is wrong, beginning with its key path."""
    return [
        *_listeners(config),
        *_engines(config),
        *_models(config),
        *_keys(config),
        *_policy(config),
        *_bus(config),
        *_labels(config),
        *_hold(config),
    ]


def check_engine(engine: Engine) -> None:
    """ValueError, beginning with the key, if it cannot be used: URL, profile, CA file."""
    if not engine.api_key.reveal().isprintable():
        raise ValueError("api_key: holds a control character, a line end perhaps")
    header = engine.control_header.reveal()
    if header and (not HEADER.fullmatch(header) or not header.isprintable()):
        raise ValueError("control_header: expected NAME: VALUE")
    if len(engine.url) > MAX_URL:
        raise ValueError(f"url: {len(engine.url)} characters; at most {MAX_URL} are taken")
    try:
        parse_engine_url(engine.url)
    except ValueError as error:
        raise ValueError(f"url: {error}") from None
    _check_triton(engine)
    for source in engine.kv_events:
        try:
            parse_kv_source(source, "0.0.0.0")
        except ValueError as error:
            raise ValueError(f"kv_events: {error}") from None
    if engine.gpu_metrics:
        try:
            parse_engine_url(engine.gpu_metrics)
        except ValueError as error:
            raise ValueError(f"gpu_metrics: {error}") from None
    if len(engine.gpu_labels) > MAX_GPU_LABELS:
        raise ValueError(f"gpu_labels: at most {MAX_GPU_LABELS} are looked at")
    if engine.data_parallel > 1 and engine.rank is not None:
        raise ValueError("rank: is set by `data_parallel` for each rank; keep one")
    if engine.profile not in PROFILES:
        raise ValueError(f"profile: expected one of {', '.join(PROFILES)}, got {engine.profile!r}")
    for text in _label_names(engine.labels):
        raise ValueError(f"labels.{text}")
    if not engine.ca_file:
        return
    if not Path(engine.ca_file).is_file():
        raise ValueError(f"ca_file: there is no file {engine.ca_file}")
    try:
        ssl.create_default_context(cafile=engine.ca_file)
    except OSError:  # what OpenSSL says of it helps nobody
        raise ValueError(f"ca_file: {engine.ca_file} holds no certificates in PEM") from None


def _check_triton(engine: Engine) -> None:
    """ValueError, beginning with the key: its ports and ranks."""
    if engine.kind not in ("triton", "auto") and engine.grpc_port:
        raise ValueError("grpc_port: is of use only with `kind: triton`")
    if engine.kind != "triton":
        return
    if engine.data_parallel > 1 or engine.rank is not None:
        raise ValueError("data_parallel: Triton has no ranks; give each server its own entry")
    port = parse_engine_url(engine.url).port
    for name, after in (("grpc_port", 1), ("metrics_port", 2)):
        if not getattr(engine, name) and port + after > MAX_PORT:
            raise ValueError(f"{name}: missing; {port} + {after}, the default, is no port")


def engine_name(url: str, name: str | None) -> str:
    """The name an engine goes by: its own, or host:port with the prefix behind it."""
    if name:
        return name
    parsed = parse_engine_url(url)
    host = f"[{parsed.host}]" if ":" in parsed.host else parsed.host
    return f"{host}:{parsed.port}{parsed.prefix.replace('/', '-')}"


def ranks_of(engine: Engine) -> list[Engine]:
    """The engine as endpoints: one, or one for each of its data-parallel ranks."""
    if engine.data_parallel == 1:
        return [engine]
    name = engine_name(engine.url, engine.name)
    return [
        msgspec.structs.replace(engine, name=f"{name}.dp{rank}", data_parallel=1, rank=rank)
        for rank in range(engine.data_parallel)
    ]


def _listeners(config: Config) -> list[str]:
    listen, found = config.listen, []
    if bool(listen.tls_cert) != bool(listen.tls_key):
        missing = "tls_key" if listen.tls_cert else "tls_cert"
        found.append(f"listen.{missing}: missing; HTTPS needs both tls_cert and tls_key")
    for name in ("tls_cert", "tls_key"):
        path = getattr(listen, name)
        if path and not Path(path).is_file():
            found.append(f"listen.{name}: there is no file {path}")
    if listen.tls_cert and listen.tls_key and not found:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(listen.tls_cert, listen.tls_key)
        except (OSError, ValueError) as error:
            found.append(f"listen.tls_cert: cannot be used with tls_key: {error}")
    if listen.port == config.admin.port != 0 and listen.host == config.admin.host:
        found.append(f"admin.port: {listen.port} is listen.port already; choose another")
    grpc_port = listen.grpc_port
    if grpc_port and grpc_port == listen.port:
        found.append(f"listen.grpc_port: {grpc_port} is listen.port already; choose another")
    if grpc_port and grpc_port == config.admin.port and listen.host == config.admin.host:
        found.append(f"listen.grpc_port: {grpc_port} is admin.port already; choose another")
    return found


def _engines(config: Config) -> list[str]:
    found, names = [], []
    for index, engine in enumerate(config.engines):
        try:
            check_engine(engine)
        except ValueError as error:
            found.append(f"engines[{index}].{error}")
            continue
        names += [engine_name(one.url, one.name) for one in ranks_of(engine)]
    for name in _twice(names):
        found.append(f"engines: two are called '{name}'; give each its own `name`")
    return found


def _models(config: Config) -> list[str]:
    found = []
    aliases = config.aliases()
    for name, rule in config.models.items():
        if rule.split is not None and rule.alias_of is not None:
            found.append(f"models.{name}: has both `split` and `alias_of`; keep one")
        if rule.split is not None and not rule.split:
            found.append(f"models.{name}.split: names no model")
        for target in aliases.get(name, {}):
            if target in aliases:
                what = "itself" if target == name else f"the alias '{target}'"
                found.append(f"models.{name}: points to {what}; an alias names real models")
        folder = "" if rule.tokenizer == ASK else rule.tokenizer
        if folder and not (Path(folder) / "tokenizer.json").is_file():
            found.append(f"models.{name}.tokenizer: there is no {folder}/tokenizer.json")
        if rule.tokenizer and name in aliases:
            found.append(f"models.{name}.tokenizer: belongs to the models that the alias names")
        if rule.chat_template and not folder:
            found.append(f"models.{name}.chat_template: is of use only beside a folder `tokenizer`")
        if rule.chat_template and not Path(rule.chat_template).is_file():
            found.append(f"models.{name}.chat_template: there is no file {rule.chat_template}")
    return found


def _keys(config: Config) -> list[str]:
    names = _twice([key.name for key in config.keys])
    digests = _twice([key.digest.removeprefix("sha256:").lower() for key in config.keys])
    return [f"keys: two are called '{name}'" for name in names] + [
        f"keys: two have the digest {digest[:12]}..." for digest in digests
    ]


def _policy(config: Config) -> list[str]:
    if config.policy in POLICIES:
        return []
    return [f"policy: expected one of {', '.join(POLICIES)}, got {config.policy!r}"]


def _bus(config: Config) -> list[str]:
    if not config.bus.url:
        return []
    try:
        check_bus_url(config.bus.url.reveal())
    except ValueError as error:
        return [f"bus.url: {error}"]
    return []


def _hold(config: Config) -> list[str]:
    hold, found = config.hold, []
    if hold.bytes is not None and hold.bytes >= config.limits.buffered_bytes:
        found.append(
            f"hold.bytes: {hold.bytes} is not below limits.buffered_bytes "
            f"({config.limits.buffered_bytes}), so what waits could stop what runs; leave it out "
            "to have half of that"
        )
    if hold.wait_s >= hold.time_s:
        found.append(
            f"hold.wait_s: {hold.wait_s:g} is not below hold.time_s ({hold.time_s:g}): who is "
            "held back for so long a wait is not waited for; lower it, to 1 to 5, or raise time_s"
        )
    return found


def _labels(config: Config) -> list[str]:
    asking = [(f"models.{name}", rule.labels) for name, rule in config.models.items()]
    asking += [(f"keys[{index}]", key.labels) for index, key in enumerate(config.keys)]
    found = []
    for path, labels in asking:
        role = labels.get("role", "decode")
        if role not in ("prefill", "decode"):
            found.append(f"{path}.labels.role: expected one of prefill, decode, got {role!r}")
        plain = {name: value for name, value in labels.items() if name != "role"}
        found += [f"{path}.labels.{text}" for text in _label_names(plain)]
    return found


def _label_names(labels: Mapping[str, str]) -> Iterator[str]:
    for name in labels:
        if name == "role":
            yield "role: the role is no label; give the engine's `role`"
        elif not LABEL_NAME.fullmatch(name):
            yield f"{name}: expected a name like {LABEL_NAME.pattern}"


def _twice(values: list[str]) -> list[str]:
    return [value for value, count in Counter(values).items() if count > 1]
