"""A configuration in a few lines for people: what `headgate check-config` prints."""

from urllib.parse import urlsplit

from gateway.config.check import ASK
from gateway.config.schema import Config, Engine, ModelRule, label_texts

__all__ = ["summary"]


def summary(config: Config) -> list[str]:
    """A line per thing that runs, and one for each part that is on. No secrets."""
    return [
        f"listen   {config.listen.host}:{config.listen.port}, {config.workers} worker(s)"
        + (f", gRPC {config.listen.grpc_port}" if config.listen.grpc_port is not None else "")
        + (", HTTPS" if config.listen.tls_cert else ""),
        f"admin    {config.admin.host}:{config.admin.port}, "
        + ("/admin with a token" if config.admin.token else "/admin off (no token)"),
        *(f"engine   {_engine(engine)}" for engine in config.engines),
        *(
            f"alias    {alias} -> "
            + ", ".join(f"{model} x{weight:g}" for model, weight in targets.items())
            for alias, targets in config.aliases().items()
        ),
        *(
            f"model    {name}: {text}"
            for name, rule in config.models.items()
            if (text := _rule(rule))
        ),
        f"keys     {len(config.keys) or 'none: open to everybody'}",
        f"policy   {config.policy}, usage {config.usage}",
        f"sessions {_affinity(config)}",
        f"hold     {_hold(config)}",
        f"labels   {_labels(config)}",
        f"bus      {_bus(config)}",
    ]


def _engine(engine: Engine) -> str:
    extras = [
        "" if engine.role == "both" else f"role={engine.role}",
        *label_texts(engine.labels),
        f"{engine.data_parallel} ranks" if engine.data_parallel > 1 else "",
        f"{engine.max_in_flight} requests at once" if engine.max_in_flight else "",
    ]
    return ", ".join([f"{engine.url} ({engine.kind})", *filter(None, extras)])


def _rule(rule: ModelRule) -> str:
    """What is said of a model beside what it is an alias of."""
    tokens = "asked of its engines" if rule.tokenizer == ASK else f"by {rule.tokenizer}"
    parts = [
        f"token ids {tokens}" if rule.tokenizer else "",
        f"usage {rule.usage}" if rule.usage else "",
        f"only engines with {' and '.join(label_texts(rule.labels))}" if rule.labels else "",
    ]
    return ", ".join(filter(None, parts))


def _affinity(config: Config) -> str:
    affinity = config.affinity
    if affinity.mode == "off":
        return "off"
    names = [*affinity.headers, *([f"cookie {affinity.cookie}"] if affinity.cookie else [])]
    return f"{affinity.mode}, by {', '.join(names) or 'nothing'}"


def _hold(config: Config) -> str:
    hold = config.hold
    if hold.requests == 0:
        return "off: without room a request is refused"
    rooms = []
    if hold.wait_s:
        rooms.append(f"have a queue of more than {hold.wait_s:g} s")
    if any(engine.max_in_flight for engine in config.engines):
        rooms.append("are at max_in_flight")
    waits = "nothing to wait for: neither wait_s nor any max_in_flight is set"
    if rooms:
        where = " or ".join(rooms)
        waits = f"{hold.requests} requests for {hold.time_s:g} s where all engines {where}"
    return waits + (f"; {hold.no_engine_s:g} s for one to be ready" if hold.no_engine_s else "")


def _labels(config: Config) -> str:
    n_keys = sum(bool(key.labels) for key in config.keys)
    asking = [
        f"{n_keys} key(s)" if n_keys else "",
        "models" if any(rule.labels for rule in config.models.values()) else "",
        "clients (x-headgate-labels)" if config.client_labels else "",
    ]
    return f"asked for by {' and '.join(filter(None, asking))}" if any(asking) else "not asked for"


def _bus(config: Config) -> str:
    if not config.bus.url:
        return "none: this gateway is the only one"
    parts = urlsplit(config.bus.url.reveal())
    return f"{parts.scheme}://{parts.hostname}:{parts.port or 6379}/{parts.path.strip('/') or 0}"
