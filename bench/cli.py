"""`headgate bench`: load, comparisons and reports. Each command imports what it runs."""

import sys
from pathlib import Path

import click

__all__ = ["bench"]

PASSED_ON = {"ignore_unknown_options": True, "help_option_names": []}
"""For commands that are modules with a command line of their own."""


@click.group()
def bench() -> None:
    """Drive an endpoint with load, compare proxies, render reports."""


@bench.command()
@click.option(
    "--url",
    default="http://127.0.0.1:8080/v1/chat/completions",
    show_default=True,
    help="Where to post; http only.",
)
@click.option(
    "--body",
    "body_path",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File to post as it is.  [default: made from the options below]",
)
@click.option("--model", default="sim", show_default=True, help="Model to name in a made body.")
@click.option("--stream/--no-stream", default=True, show_default=True, help="Of a made body.")
@click.option("--prompt-bytes", type=click.IntRange(1), default=64, show_default=True)
@click.option("--max-tokens", type=click.IntRange(1), default=32, show_default=True)
@click.option("--connections", type=click.IntRange(1, 10000), default=16, show_default=True)
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=5.0, show_default=True)
@click.option(
    "--rate",
    type=click.FloatRange(0),
    default=0.0,
    help="Requests per second, Poisson.  [default: closed loop]",
)
@click.option("--header", "headers", multiple=True, metavar="NAME:VALUE", help="Repeat for more.")
@click.option(
    "--want-events",
    type=int,
    default=0,
    help="Streams with fewer events count as short.  [default: not looked at]",
)
@click.option(
    "--api-key", envvar="OPENAI_API_KEY", default="sk-test", help="Bearer token ($OPENAI_API_KEY)."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def load(
    url: str,
    body_path: Path | None,
    model: str,
    stream: bool,
    prompt_bytes: int,
    max_tokens: int,
    connections: int,
    seconds: float,
    rate: float,
    headers: tuple[str, ...],
    want_events: int,
    api_key: str,
    as_json: bool,
) -> None:
    """Drive an OpenAI endpoint with one kind of request.

    Exits with 1 if a request did not end as it should.

    \b
    Examples:
        headgate bench load --url http://127.0.0.1:8080/v1/chat/completions --model sim
        headgate bench load --connections 200 --rate 500 --seconds 30 --json
    """
    import json
    import tempfile

    import msgspec

    from bench.gwbench import Load, NoCompiler

    message = {
        "role": "user",
        "content": ("lorem ipsum " * (prompt_bytes // 12 + 1))[:prompt_bytes],
    }
    made = {"model": model, "stream": stream, "max_tokens": max_tokens, "messages": [message]}
    host, port, path = _split_url(url)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        if body_path is None:
            body_path = Path(folder) / "body.json"
            body_path.write_text(json.dumps(made))
        plan = Load(
            host=host,
            port=port,
            path=path,
            body=body_path,
            connections=connections,
            seconds=seconds,
            rate_per_s=rate,
            headers=headers,
            want_events=want_events,
            key=api_key,
        )
        try:
            run = plan.run()
        except (NoCompiler, RuntimeError) as error:
            raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(msgspec.json.encode(run))
    else:
        click.echo(
            f"ok {run.ok}  non-200 {run.non200}  errors {run.errors}  short {run.short}"
            f"  late {run.late}"
        )
        click.echo(f"{run.rps:.1f} requests/s  {run.events_per_s:.0f} events/s")
        click.echo(f"first byte  p50 {run.ttfb_ms.p50:.2f} ms  p99 {run.ttfb_ms.p99:.2f} ms")
        click.echo(f"whole       p50 {run.total_ms.p50:.2f} ms  p99 {run.total_ms.p99:.2f} ms")
    sys.exit(1 if run.bad else 0)


def _split_url(url: str) -> tuple[str, int, str]:
    """(IPv4 address, port, path); UsageError."""
    import socket
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise click.UsageError(f"--url is http://host[:port][/path], not {url!r}")
    try:
        port = parts.port or 80
        found = socket.getaddrinfo(parts.hostname, port, socket.AF_INET, socket.SOCK_STREAM)
    except (OSError, ValueError) as error:
        raise click.UsageError(f"--url: {error}") from None
    path = parts.path if parts.path not in ("", "/") else "/v1/chat/completions"
    return str(found[0][4][0]), port, path + (f"?{parts.query}" if parts.query else "")


@bench.command("compare", context_settings=PASSED_ON, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def compare_proxies(arguments: tuple[str, ...]) -> None:
    """Measure the gateway and its peers side by side (--help: options)."""
    from bench.compare import main

    sys.exit(main(arguments))


@bench.command(context_settings=PASSED_ON, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def streams(arguments: tuple[str, ...]) -> None:
    """Run many streams at once through one worker (--help: options)."""
    from bench.streams import main

    sys.exit(main(arguments))


@bench.command(context_settings=PASSED_ON, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def idle(arguments: tuple[str, ...]) -> None:
    """Measure an idle gateway's memory and CPU (--help: options)."""
    from bench.idle import main

    sys.exit(main(arguments))


@bench.command(context_settings=PASSED_ON, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def report(arguments: tuple[str, ...]) -> None:
    """Render the report from what was measured (--help: options)."""
    from bench.report import main

    sys.exit(main(arguments))


@bench.command(context_settings=PASSED_ON, add_help_option=False)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def lab(arguments: tuple[str, ...]) -> None:
    """Compare policies on a virtual clock (--help: options)."""
    from bench.lab.__main__ import main

    sys.exit(main(arguments))
