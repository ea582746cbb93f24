"""File, environment and flags into one `Config`, or into all their errors."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from gateway.config.check import check
from gateway.config.errors import ConfigError
from gateway.config.reader import Reader, leaf_type, takes_text
from gateway.config.schema import Config

__all__ = ["ENVIRONMENT", "load"]

PREFIX = "HEADGATE_"

# Short names, one per flag of `headgate serve`. Everything else is reached by its path with two
# underscores for a dot: HEADGATE_LIMITS__BODY_BYTES=1000000.
ENVIRONMENT = {
    "HEADGATE_HOST": "listen.host",
    "HEADGATE_PORT": "listen.port",
    "HEADGATE_GRPC_PORT": "listen.grpc_port",
    "HEADGATE_TLS_CERT": "listen.tls_cert",
    "HEADGATE_TLS_KEY": "listen.tls_key",
    "HEADGATE_ADMIN_HOST": "admin.host",
    "HEADGATE_ADMIN_PORT": "admin.port",
    "HEADGATE_ADMIN_TOKEN": "admin.token",
    "HEADGATE_WORKERS": "workers",
    "HEADGATE_ENGINES": "engines",
    "HEADGATE_POLICY": "policy",
    "HEADGATE_USAGE": "usage",
    "HEADGATE_ACCESS_LOG": "access_log",
    "HEADGATE_DECISION_HEADER": "decision_header",
    "HEADGATE_LOG_LEVEL": "log.level",
    "HEADGATE_LOG_FORMAT": "log.format",
}


# Read elsewhere.
OURS = ("HEADGATE_CONFIG", "HEADGATE_DEBUG", "HEADGATE_EXTENSIONS", "HEADGATE_REQUIRE_ENGINES")


def load(
    path: str | None, env: Mapping[str, str], flags: Mapping[str, Any] | None = None
) -> Config:
    """Read it all; reads files, so not for an event loop's hot hours. ConfigError: all errors.

    `flags`: flag name (for messages) -> (key path, value); they win over `env`, which wins over
    the file at `path` (None: no file).
    """
    tree, errors = _read_file(path)
    errors += _mistyped(env)
    for label, at, value in [*_from_environment(env), *_from_flags(flags or {})]:
        errors += _overlay(tree, label, at.split("."), value, env)
    if isinstance(tree.get("engines"), list):
        tree["engines"] = _engines_from(tree["engines"])
    reader = Reader(path or "configuration", env)
    config: Config = reader.read(Config, tree)
    errors += reader.errors
    if not errors:
        errors = [f"{path or 'configuration'}: {line}" for line in check(config)]
    if errors:
        raise ConfigError(errors)
    return config


def _read_file(path: str | None) -> tuple[dict[str, Any], list[str]]:
    if path is None:
        return {}, []
    try:
        tree = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        return {}, [f"{path}: cannot be read: {error.strerror}"]
    except UnicodeDecodeError:
        return {}, [f"{path}: is not UTF-8 text"]
    except yaml.YAMLError as error:
        return {}, [f"{path}: is not YAML: {' '.join(str(error).split())}"]
    except RecursionError:
        return {}, [f"{path}: is nested too deeply"]
    if tree is None:
        return {}, []
    if not isinstance(tree, dict):
        return {}, [f"{path}: expected a mapping at the top, got {type(tree).__name__}"]
    return tree, []


def _from_environment(env: Mapping[str, str]) -> list[tuple[str, str, Any]]:
    found: list[tuple[str, str, Any]] = []
    for name in sorted(env):
        if not name.startswith(PREFIX) or not env[name]:
            continue
        if name in ENVIRONMENT:
            # Kubernetes sets HEADGATE_PORT=tcp://... in every pod beside a Service "headgate".
            if not (name.endswith("_PORT") and env[name].startswith("tcp://")):
                found.append((name, ENVIRONMENT[name], env[name]))
        elif "__" in name or _path_of(name) in Config.__struct_fields__:
            found.append((name, _path_of(name), env[name]))
    return found


def _path_of(name: str) -> str:
    return name.removeprefix(PREFIX).lower().replace("__", ".")


def _mistyped(env: Mapping[str, str]) -> list[str]:
    """Variables that look like ours and are none. Others may be Kubernetes' own."""
    found = []
    for name in sorted(env):
        if name.startswith(PREFIX) and name not in ENVIRONMENT and "__" not in name:
            near = get_close_matches(name, [*ENVIRONMENT, *OURS], n=1, cutoff=0.85)
            if near and name not in OURS and _path_of(name) not in Config.__struct_fields__:
                found.append(f"{name}: unknown variable; did you mean {near[0]}?")
    return found


def _from_flags(flags: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    return [(label, at, value) for label, (at, value) in flags.items() if value is not None]


def _overlay(
    tree: dict[str, Any], label: str, path: list[str], value: Any, env: Mapping[str, str]
) -> list[str]:
    """Put a value into the tree if it is right; its errors name `label`."""
    try:
        wanted = leaf_type(Config, path)
    except KeyError:
        return [f"{label}: there is no key {'.'.join(path)}"]
    if path == ["engines"]:
        value = _engines_from(value)
    elif isinstance(value, str) and not takes_text(wanted):
        value = _scalar(value)
    reader = Reader(label, env)
    reader.read(wanted, value)
    if not reader.errors:
        for name in path[:-1]:
            if not isinstance(tree.get(name), dict):
                tree[name] = {}
            tree = tree[name]
        tree[path[-1]] = value
    return reader.errors


def _engines_from(value: Any) -> Any:
    """Engines given as [kind=]URL, with commas between or in a list, as mappings."""
    items = value.split(",") if isinstance(value, str) else value
    engines = []
    for item in items:
        if not isinstance(item, str):
            engines.append(item)
            continue
        kind, sign, url = item.strip().partition("=")
        if not sign or "/" in kind:
            engines.append({"url": item.strip()})
        else:
            engines.append({"kind": kind, "url": url})
    return engines


def _scalar(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        return text


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice: the first would silently be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' is given twice", key_node.start_mark
                )
            seen.add(key if isinstance(key, str) else id(key_node))
        return super().construct_mapping(node, deep)
