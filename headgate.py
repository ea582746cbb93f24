"""The command line. Each subcommand imports what it needs, and nothing before it is called."""

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

import click

from bench.cli import bench
from gateway.engine_commands import engines
from gateway.version import VERSION

if TYPE_CHECKING:
    from gateway.config import Config

__all__ = ["main"]


@click.group(
    "headgate", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(VERSION, prog_name="headgate")
def main() -> None:
    """A streaming OpenAI gateway in front of LLM engine pods.

    Try it without any engine:

    \b
        headgate serve --sim 2
        curl localhost:8080/v1/chat/completions -H 'content-type: application/json' \\
          -d '{"model": "sim", "stream": true, "messages": [{"role": "user", "content": "hi"}]}'
    """


main.add_command(bench)
main.add_command(engines)

# Flag -> key path in the configuration; the flags win over environment and file.
PATHS = {
    "engine": "engines",
    "host": "listen.host",
    "port": "listen.port",
    "grpc_port": "listen.grpc_port",
    "tls_cert": "listen.tls_cert",
    "tls_key": "listen.tls_key",
    "admin_host": "admin.host",
    "admin_port": "admin.port",
    "workers": "workers",
    "policy": "policy",
    "access_log": "access_log",
    "decision_header": "decision_header",
    "log_level": "log.level",
    "log_format": "log.format",
}


@main.command()
@click.option(
    "--engine",
    multiple=True,
    metavar="[KIND=]URL",
    help="An engine; repeat for more. KIND: vllm, sglang, trtllm, nim, ollama, llamacpp, tgi, "
    "triton or openai.  [default: auto, which asks it]",
)
@click.option(
    "--sim",
    type=click.IntRange(0, 64),
    default=0,
    metavar="N",
    help="Run N simulated engines beside.",
)
@click.option(
    "--config",
    "config_path",
    metavar="FILE",
    envvar="HEADGATE_CONFIG",
    help="YAML file; SIGHUP reads it anew.",
)
@click.option("--host", help="Address for clients.  [default: 127.0.0.1]")
@click.option("--port", type=int, help="Port for clients; 0: any.  [default: 8080]")
@click.option("--grpc-port", type=int, help="Port for Triton's gRPC protocol; 0: any.  [off]")
@click.option(
    "--admin-host", help="Address for health, readiness, metrics, admin.  [default: 127.0.0.1]"
)
@click.option("--admin-port", type=int, help="Its port; 0: any.  [default: 9180]")
@click.option("--workers", type=int, metavar="N", help="Data workers, one core each.  [default: 1]")
@click.option(
    "--policy",
    help="How an engine is picked: marginal-cost, lmetric, weighted, prefix-affinity, "
    "power-of-two, least-requests or round-robin.  [default: marginal-cost]",
)
@click.option("--tls-cert", metavar="FILE", help="Certificate chain (PEM): HTTPS for clients.")
@click.option("--tls-key", metavar="FILE", help="Its private key (PEM).")
@click.option("--access-log", metavar="FILE|-", help="A JSON line per request; -: standard output.")
@click.option(
    "--decision-header/--no-decision-header",
    default=None,
    help="Tell clients which engine was picked, and why.",
)
@click.option("--log-level", help="debug, info, warning or error.  [default: info]")
@click.option("--log-format", help="text or json.  [default: text]")
def serve(sim: int, config_path: str | None, **flags: Any) -> None:
    """Run the gateway.

    Every flag but --sim has an environment variable (--admin-port: HEADGATE_ADMIN_PORT; --engine:
    HEADGATE_ENGINES, with commas), and every other key of the file has one too (limits.json_depth:
    HEADGATE_LIMITS__JSON_DEPTH). Flags win over the environment, which wins over the file, also
    after a reload. SIGTERM drains, a second one ends at once; SIGHUP reads the file anew.

    \b
    Examples:
        headgate serve --engine http://10.0.0.5:8000 --engine http://10.0.0.6:8000
        headgate serve --config headgate.yaml --workers 2
        headgate serve --sim 2
    """
    from gateway.control import run
    from gateway.listener import ListenError

    load = _loader(config_path, flags)
    config = _loaded(load)
    try:
        code = run(config, load, sim)
    except (ListenError, RuntimeError) as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.strerror}: {error.filename}") from None
    sys.exit(code)


@main.command("check-config")
@click.option(
    "--config", "config_path", metavar="FILE", envvar="HEADGATE_CONFIG", help="YAML file."
)
@click.argument("path", required=False)
def check_config(config_path: str | None, path: str | None) -> None:
    """Check a configuration file, with the environment over it as `serve` does.

    Prints 'ok' and a summary, or what is wrong; the exit code is 2 then. Rules between keys are
    checked once each key is right by itself.

    \b
    Example:
        headgate check-config headgate.yaml
    """
    from gateway.config import summary

    if path is None and config_path is None:
        raise click.UsageError("name a file, or set HEADGATE_CONFIG")
    config = _loaded(_loader(path or config_path, {}))
    click.echo("\n".join(["ok", *summary(config)]))


@main.command()
@click.option(
    "--config",
    "config_path",
    metavar="FILE",
    envvar="HEADGATE_CONFIG",
    help="The gateway's own file: where its admin port is, and the token.",
)
@click.option(
    "--prompt-file",
    type=click.File("r", encoding="utf-8"),
    required=True,
    metavar="FILE|-",
    help="A request's JSON body, or a plain prompt.",
)
@click.option("--model", help="Asked for, if the file does not say.")
@click.option("--path", metavar="PATH", help="Asked on.  [default: by the body's fields]")
@click.option(
    "--header",
    "-H",
    "headers",
    multiple=True,
    metavar="'NAME: VALUE'",
    help="A header of the request, such as 'x-session-id: 7'; repeat for more.",
)
@click.option("--key", default="", metavar="NAME", help="Asked with the client key of this name.")
@click.option(
    "--admin", metavar="URL", help="The gateway's admin port.  [default: by the configuration]"
)
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
def explain(
    config_path: str | None,
    prompt_file: TextIO,
    model: str | None,
    path: str | None,
    headers: tuple[str, ...],
    key: str,
    admin: str | None,
    as_json: bool,
) -> None:
    """Say where a running gateway would send a request now, and why.

    The gateway's own code weighs it, with the load and the caches as they are at this moment;
    nothing is sent to an engine. Per engine: what it would cost and of which terms, prompt tokens
    that are cached there, and why it may not have the request. The exit code is 1 if the request
    would be refused, or if no gateway answers.

    \b
    Examples:
        headgate explain --config headgate.yaml --prompt-file request.json
        headgate explain --config headgate.yaml --prompt-file prompt.txt --model qwen3-8b
        headgate explain --prompt-file request.json -H 'x-session-id: 7' --json
    """
    from gateway.admin_client import AdminError
    from gateway.explain import Question, ask, read_prompt, table

    config = _loaded(_loader(config_path, {}))
    fields = []
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon or not name.strip():
            raise click.UsageError(f"--header: expected 'NAME: VALUE', got {header!r}")
        fields.append((name.strip(), value.strip()))
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.admin.host, config.admin.host)
    place = f"[{host}]" if ":" in host else host
    try:
        asked_on, body = read_prompt(prompt_file.read(), model, path)
    except UnicodeDecodeError:
        raise click.UsageError("--prompt-file: is not UTF-8 text") from None
    question = Question(asked_on, body, fields, key)
    try:
        answer = ask(
            admin or f"http://{place}:{config.admin.port}", config.admin.token.reveal(), question
        )
    except AdminError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json.dumps(answer, indent=2))
    else:
        click.echo(table(answer))
    sys.exit(1 if answer.get("refused") else 0)


@main.group()
def keys() -> None:
    """Make clients' keys; only digests go into the configuration."""


@keys.command("new")
@click.option("--name", default="my-key", help="As it will stand in the access log.")
def keys_new(name: str) -> None:
    """Make a key, print it once, and print the lines for the configuration file.

    \b
    Example:
        headgate keys new --name team-a
    """
    from gateway.keys import is_name, new_key, yaml_lines

    if not is_name(name):
        raise click.UsageError(
            f"--name: {name!r} cannot be used: letters, digits and . _ : [ ] - only, the first one "
            "a letter or a digit"
        )
    key = new_key()
    click.echo("The key, shown this once; give it to its user:", err=True)
    click.echo(key)
    click.echo("Put this under `keys:` in the configuration file:", err=True)
    click.echo(yaml_lines(name, key), nl=False)


@keys.command("digest")
def keys_digest() -> None:
    """Read a key from standard input and print its digest.

    \b
    Example:
        printf %s "$KEY" | headgate keys digest
    """
    from gateway.keys import digest_of

    key = sys.stdin.read().strip()
    if not key:
        raise click.UsageError("there is no key on standard input")
    click.echo(digest_of(key))


@main.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option(
    "--port",
    "ports",
    type=int,
    multiple=True,
    default=(8000,),
    show_default=True,
    help="Of the first engine, the next ones count up; or repeat it, one for each. 0: any.",
)
@click.option(
    "--replicas",
    type=click.IntRange(1, 1000),
    default=1,
    show_default=True,
    help="Engines in this process.",
)
@click.option("--model", default="sim", show_default=True, help="Name of the served model.")
@click.option("--profile", default="demo", show_default=True, help="Step model: how fast it is.")
@click.option(
    "--time-scale",
    type=float,
    default=1.0,
    show_default=True,
    help="Real seconds per modelled one.",
)
@click.option(
    "--sigterm",
    type=click.Choice(["hang", "drain", "quit"]),
    default="hang",
    show_default=True,
    help="How it dies: hang as vLLM does, drain, or quit at once.",
)
@click.option("--block-size", type=int, default=None, help="Tokens per KV block.")
@click.option("--kv-tokens", type=int, default=None, help="Size of the KV cache.")
@click.option(
    "--max-model-len", type=int, default=None, help="Longest prompt and answer, in tokens."
)
@click.option("--max-num-seqs", type=int, default=None, help="Sequences in a batch.")
@click.option("--max-num-batched-tokens", type=int, default=None, help="Tokens in a step.")
@click.option(
    "--default-max-tokens", type=int, default=None, help="Answer length if none is asked for."
)
@click.option("--keep-alive-s", type=float, default=None, help="Idle connections close after this.")
@click.option("--api-key", default=None, help="Wanted as bearer token on /v1.")
@click.option("--seed", type=int, default=None, help="Equal seeds give equal answers.")
@click.option(
    "--kv-events", default=None, help="Publish KV events at tcp://*:PORT; replicas count up."
)
@click.option(
    "--kv-replay", default=None, help="Replay missed ones at tcp://*:PORT; replicas count up."
)
@click.option("--until-eof", is_flag=True, hidden=True, help="End when standard input does.")
def sim(host: str, ports: tuple[int, ...], replicas: int, until_eof: bool, **fields: Any) -> None:
    """Run simulated engines: vLLM seen from outside, without a GPU.

    \b
    Example:
        headgate sim --port 8000 --replicas 2 --time-scale 0.1
        headgate serve --engine http://127.0.0.1:8000 --engine http://127.0.0.1:8001
    """
    from engines.sim import SimConfig
    from engines.sim.main import run

    if until_eof:
        _exit_at_eof()
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        configs = [
            SimConfig(name=f"sim-{index}", **given | _kv_endpoints(given, index))
            for index in range(replicas)
        ]
        run(configs, host, _ports(ports, replicas))
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"cannot listen on {host}: {error}") from None


def _ports(ports: tuple[int, ...], replicas: int) -> list[int]:
    if len(ports) == replicas:
        return list(ports)
    if len(ports) != 1:
        raise click.UsageError(f"give one --port, or one for each of {replicas} replicas")
    return [ports[0] + index if ports[0] else 0 for index in range(replicas)]


def _kv_endpoints(given: dict[str, Any], replica: int) -> dict[str, str]:
    """Each replica's own ports for KV events; 0 is any port, for all of them."""
    endpoints = {}
    for name in ("kv_events", "kv_replay"):
        host, _, port = str(given.get(name, "")).rpartition(":")
        if port.isdecimal() and int(port):
            endpoints[name] = f"{host}:{int(port) + replica}"
    return endpoints


def _exit_at_eof() -> None:
    """The process that started us holds our standard input open as long as it lives."""
    import threading

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def _loader(path: str | None, flags: dict[str, Any]) -> "Callable[[], Config]":
    from gateway.config import load

    values: dict[str, Any] = {
        "--" + name.replace("_", "-"): (PATHS[name], list(value) if name == "engine" else value)
        for name, value in flags.items()
        if value is not None and value != ()
    }
    return lambda: load(path, os.environ, values)


def _loaded(load: "Callable[[], Config]") -> "Config":
    """The configuration, or all that is wrong with it and exit code 2."""
    from gateway.config import ConfigError

    try:
        return load()
    except ConfigError as error:
        for line in error.errors:
            click.echo(f"error: {line}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
