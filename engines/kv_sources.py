"""Where an engine publishes its KV events: vLLM's `GET /kv_event_sources`, or configuration."""

import json
from dataclasses import dataclass
from urllib.parse import urlsplit

__all__ = ["KV_SOURCES_PATH", "KvSource", "parse_kv_source", "parse_kv_sources"]

KV_SOURCES_PATH = "/kv_event_sources"
ANYWHERE = ("*", "0.0.0.0", "::", "[::]")
LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True, slots=True)
class KvSource:
    """One publisher: a data-parallel rank of an engine."""

    endpoint: str
    """ZeroMQ address to subscribe to: `tcp://10.0.0.7:5557`."""
    replay_endpoint: str = ""
    """Where missed batches can be asked for; empty: nowhere."""
    topic: str = ""
    """Prefix of the topics to take; empty: all."""
    rank: int = 0


def parse_kv_sources(body: bytes | str, address: str) -> list[KvSource]:
    """Read the answer of an engine at this IP address, by rank. ValueError: it is no such answer.

    Empty: it publishes none. Publishers on all interfaces or on the engine's loopback are looked
    for at `address`. Ranks that connect to somebody else's socket are told like the others.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{KV_SOURCES_PATH} answers something that is no JSON") from error
    if not isinstance(found, dict):
        raise ValueError(f"{KV_SOURCES_PATH} answers something that is no map of ranks")
    sources = []
    for rank, entry in found.items():
        if not rank.isdecimal() or not isinstance(entry, dict):
            raise ValueError(f"{KV_SOURCES_PATH}: entry {rank[:20]!r} is no rank and its publisher")
        if entry.get("enable_kv_cache_events") is False or entry.get("publisher") == "null":
            continue
        endpoint, replay = entry.get("endpoint"), entry.get("replay_endpoint")
        if not isinstance(endpoint, str) or not isinstance(replay, str | None):
            raise ValueError(f"{KV_SOURCES_PATH}: rank {rank} has no endpoint")
        reachable = _at(replay, address) if replay else ""
        sources.append(KvSource(_at(endpoint, address), reachable, "", int(rank)))
    return sorted(sources, key=lambda source: source.rank)


def parse_kv_source(text: str, address: str = "") -> KvSource:
    """Read `tcp://HOST:PORT`, or with a replay port `tcp://HOST:PORT?replay=PORT`. ValueError.

    HOST may be `*` for the engine's own address; `&rank=N` names another rank than 0.
    """
    url = urlsplit(text)
    options = {}
    for option in filter(None, url.query.split("&")):
        name, _, value = option.partition("=")
        if name not in ("replay", "rank") or not value.isdecimal() or name in options:
            raise ValueError(f"{text!r}: {option!r} is neither replay=PORT nor rank=N")
        options[name] = int(value)
    endpoint = _at(f"{url.scheme}://{url.netloc}", address, is_theirs=False)
    replay = options.get("replay")
    if replay is None:
        return KvSource(endpoint, rank=options.get("rank", 0))
    if not 0 < replay < 65536:
        raise ValueError(f"{text!r}: {replay} is no port")
    host = endpoint.rpartition(":")[0]
    return KvSource(endpoint, f"{host}:{replay}", "", options.get("rank", 0))


def _at(endpoint: str, address: str, is_theirs: bool = True) -> str:
    """The same endpoint as seen from here; `is_theirs`: as the engine says it."""
    scheme, _, rest = endpoint.partition("://")
    host, _, port = rest.rpartition(":")
    if scheme != "tcp" or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{endpoint[:100]!r} is no tcp://HOST:PORT")
    if host in ANYWHERE or (is_theirs and host in LOOPBACK):
        if not address:
            raise ValueError(f"{endpoint[:100]!r} names no host, and the engine has no address")
        host = f"[{address}]" if ":" in address else address
    return f"tcp://{host}:{port}"
