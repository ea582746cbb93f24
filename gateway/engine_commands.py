"""`headgate engines`: what a running gateway's engines serve, and switching it.

A thin client of the admin port; the words come from there, and from the engines.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar
from urllib.parse import quote

import click

from gateway.engine_action import GRACE_S, TIMEOUT_S, Action

__all__ = ["engines"]

F = TypeVar("F", bound=Callable[..., Any])
SLACK_S = 15.0
"""The gateway has its own time, and then answers that it goes on."""
LOOK_S = 30.0
"""For what only asks: an engine that loads is slow to answer."""
WIDTH = 60


@click.group()
def engines() -> None:
    """See and switch what the engines of a running gateway serve.

    Models of Triton, Ollama and llama.cpp are loaded and unloaded; vLLM and SGLang get LoRA
    adapters, and are put to sleep and woken. What an engine can do it says itself: see `models`.
    What is so already is left as it is. The exit code is 1 if it could not be done.

    \b
    Examples:
        headgate engines list --config headgate.yaml
        headgate engines models 10.0.0.5:8000
        headgate engines load triton-0 llama-3-8b
        headgate engines load-adapter 10.0.0.5:8000 poet /adapters/poet
        headgate engines sleep 10.0.0.5:8000 --level 2
    """


def _common(command: F) -> F:
    """The options that all of them have."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON."),
        click.option(
            "--admin", metavar="URL", help="The gateway's admin port.  [default: by --config]"
        ),
        click.option(
            "--config",
            metavar="FILE",
            envvar="HEADGATE_CONFIG",
            help="The gateway's own file: where its admin port is, and the token.",
        ),
    ):
        command = option(command)
    return command


def _timed(command: F) -> F:
    return click.option(
        "--timeout-s",
        type=click.FloatRange(min=0, min_open=True),
        help="How long to wait; what was begun goes on.",
    )(command)


@engines.command("list")
@_common
def list_(as_json: bool, **where: str | None) -> None:
    """The engines: state, models, what came last.

    \b
    Example:
        headgate engines list --config headgate.yaml
    """
    answer = _call(where, "GET", "/admin/endpoints")
    if as_json:
        return _print_json(answer)
    rows = [
        [one["name"], one["kind"], one["state"], ", ".join(one["models"] or []), one["reason"]]
        for one in answer["data"]
    ]
    _print_table(["endpoint", "kind", "state", "models", "why"], rows)
    return None


@engines.command()
@click.argument("endpoint")
@_common
def models(endpoint: str, as_json: bool, **where: str | None) -> None:
    """The models and adapters of an engine, and what it can be asked.

    \b
    Example:
        headgate engines models triton-0
    """
    answer = _call(where, "GET", f"{_place(endpoint)}/models", timeout_s=LOOK_S)
    if as_json:
        return _print_json(answer)
    rows = [[one["id"], one["state"], one["parent"] or "", one["reason"]] for one in answer["data"]]
    _print_table(["model", "state", "adapter of", "why"], rows)
    click.echo()
    able = answer["capabilities"]
    levels = ", ".join(map(str, able.pop("sleep_levels")))
    for name, one in able.items():
        more = f"levels {levels}" if name == "sleep" and levels else one["why"]
        click.echo(f"{name.replace('_', '-'):<15}{'yes' if one['yes'] else 'no':<5}{more}".rstrip())
    return None


@engines.command()
@click.argument("endpoint")
@click.argument("model")
@_common
def ready(endpoint: str, model: str, as_json: bool, **where: str | None) -> None:
    """Say whether a model or adapter would be served there now: exit code 0, else 1.

    \b
    Example:
        headgate engines ready triton-0 llama-3-8b
    """
    path = f"{_place(endpoint)}/ready/{quote(model, safe='/')}"
    answer = _call(where, "GET", path, timeout_s=LOOK_S)
    if as_json:
        _print_json(answer)
    else:
        click.echo(f"{endpoint}: '{model}' is {'' if answer['ready'] else 'not '}ready")
    sys.exit(0 if answer["ready"] else 1)


@engines.command()
@click.argument("endpoint")
@click.argument("model")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="As the engine takes it; VALUE: JSON, or text.  Triton: config, file:PATH, reload=true.  "
    "Ollama: keep_alive.  Repeat for more.",
)
@_timed
@_common
def load(
    endpoint: str,
    model: str,
    options: tuple[str, ...],
    timeout_s: float | None,
    as_json: bool,
    **where: str | None,
) -> None:
    """Load a model. One that is loaded is left as it is, unless options are given.

    \b
    Examples:
        headgate engines load triton-0 llama-3-8b
        headgate engines load ollama-0 qwen3:8b --option keep_alive=3600
    """
    body = {"model": model, "options": _options(options)}
    _switch(where, Action.LOAD, endpoint, "load", body, timeout_s, as_json)


@engines.command()
@click.argument("endpoint")
@click.argument("model")
@click.option(
    "--option",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="Triton: dependents=true, for an ensemble's steps too.",
)
@_timed
@_common
def unload(
    endpoint: str,
    model: str,
    options: tuple[str, ...],
    timeout_s: float | None,
    as_json: bool,
    **where: str | None,
) -> None:
    """Unload a model. Requests that run there finish.

    \b
    Example:
        headgate engines unload triton-0 ensemble --option dependents=true
    """
    body = {"model": model, "options": _options(options)}
    _switch(where, Action.UNLOAD, endpoint, "unload", body, timeout_s, as_json)


@engines.command("load-adapter")
@click.argument("endpoint")
@click.argument("name")
@click.argument("path")
@_timed
@_common
def load_adapter(
    endpoint: str,
    name: str,
    path: str,
    timeout_s: float | None,
    as_json: bool,
    **where: str | None,
) -> None:
    """Load a LoRA adapter from PATH, as the engine sees it; clients ask for it by NAME.

    \b
    Example:
        headgate engines load-adapter 10.0.0.5:8000 poet /adapters/poet
    """
    body = {"name": name, "path": path}
    _switch(where, Action.LOAD_ADAPTER, endpoint, "adapters", body, timeout_s, as_json)


@engines.command("unload-adapter")
@click.argument("endpoint")
@click.argument("name")
@_timed
@_common
def unload_adapter(
    endpoint: str, name: str, timeout_s: float | None, as_json: bool, **where: str | None
) -> None:
    """Unload a LoRA adapter.

    \b
    Example:
        headgate engines unload-adapter 10.0.0.5:8000 poet
    """
    path = f"adapters/{quote(name, safe='/')}"
    _switch(where, Action.UNLOAD_ADAPTER, endpoint, path, {}, timeout_s, as_json)


@engines.command()
@click.argument("endpoint")
@click.option(
    "--level",
    type=click.IntRange(0, 2),
    default=1,
    show_default=True,
    help="1: weights go to host memory; 2: they are dropped; 0: it only stops.",
)
@click.option(
    "--grace-s",
    type=click.FloatRange(min=0),
    default=GRACE_S,
    show_default=True,
    help="For requests that run; new ones wait, or go elsewhere.",
)
@_timed
@_common
def sleep(
    endpoint: str,
    level: int,
    grace_s: float,
    timeout_s: float | None,
    as_json: bool,
    **where: str | None,
) -> None:
    """Put an engine to sleep: its GPU memory is free until it wakes.

    \b
    Example:
        headgate engines sleep 10.0.0.5:8000 --level 2
    """
    body = {"level": level, "grace_s": grace_s}
    _switch(where, Action.SLEEP, endpoint, "sleep", body, timeout_s, as_json)


@engines.command()
@click.argument("endpoint")
@_timed
@_common
def wake(endpoint: str, timeout_s: float | None, as_json: bool, **where: str | None) -> None:
    """Wake an engine; weights that were dropped are read again.

    \b
    Example:
        headgate engines wake 10.0.0.5:8000
    """
    _switch(where, Action.WAKE, endpoint, "wake", {}, timeout_s, as_json)


def _switch(
    where: dict[str, str | None],
    action: Action,
    endpoint: str,
    path: str,
    body: dict[str, Any],
    timeout_s: float | None,
    as_json: bool,
) -> None:
    method = "DELETE" if action is Action.UNLOAD_ADAPTER else "POST"
    patience_s = TIMEOUT_S[action] if timeout_s is None else timeout_s
    body = {**body, "timeout_s": patience_s}
    answer = _call(where, method, f"{_place(endpoint)}/{path}", body, patience_s + SLACK_S)
    if as_json:
        _print_json(answer)
    else:
        how = "" if answer["changed"] else "nothing to do: "
        click.echo(f"{answer['endpoint']}: {how}{answer['message']} ({answer['took_s']:.1f} s)")


def _call(
    where: dict[str, str | None],
    method: str,
    path: str,
    body: Any = None,
    timeout_s: float = 10.0,
) -> Any:
    from gateway.admin_client import AdminError, call
    from gateway.config import ConfigError, load

    try:
        config = load(where["config"], os.environ)
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.admin.host, config.admin.host)
        place = f"[{host}]" if ":" in host else host
        admin = where["admin"] or f"http://{place}:{config.admin.port}"
        return call(admin, config.admin.token.reveal(), method, path, body, timeout_s)
    except ConfigError as error:
        _exit_with(error.errors)
    except AdminError as error:
        raise click.ClickException(str(error)) from None


def _exit_with(errors: list[str]) -> NoReturn:
    for line in errors:
        click.echo(f"error: {line}", err=True)
    sys.exit(2)


def _place(endpoint: str) -> str:
    return f"/admin/endpoints/{quote(endpoint, safe='')}"


def _options(given: tuple[str, ...]) -> dict[str, Any]:
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise click.UsageError(f"--option: expected NAME=VALUE, got {text!r}")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def _print_json(answer: Any) -> None:
    click.echo(json.dumps(answer, indent=2))


def _print_table(heads: list[str], rows: list[list[str]]) -> None:
    short = [[" ".join(cell.split()) for cell in row] for row in rows]
    # The last column is as long as it is: an engine's own words.
    cut = [
        [*(c if len(c) <= WIDTH else c[: WIDTH - 4] + " ..." for c in r[:-1]), r[-1]] for r in short
    ]
    table = [heads, *cut]
    widths = [max(len(row[at]) for row in table) for at in range(len(heads))]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
