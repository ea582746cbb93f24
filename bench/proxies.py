"""The proxies that are measured: how each is installed, configured and started.

To add one: a function that returns its command line, a line in PROXIES.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from bench.gwbench import KEY, default_cache

__all__ = ["PROXIES", "Missing", "Place", "Proxy", "answers", "environment", "wait_until_answers"]

ROOT = Path(__file__).resolve().parent.parent
PINS = {
    "sglang-router": "0.3.2",
    "vllm-router": "0.1.17",
    "smg": "1.13.0",
    "litellm": "1.106.2",
}
"""Versions of the peers from PyPI: results are compared over time, so they stay until moved."""
MODEL = "mock"


class Missing(Exception):
    """The proxy is not on this machine and cannot be installed; the text says why."""


class Place(msgspec.Struct, frozen=True):
    """Where a proxy runs and what it may use."""

    port: int
    side_port: int
    """For its admin or metrics listener."""
    engine_ports: Sequence[int]
    folder: Path
    """For its configuration and temporary files."""

    @property
    def engines(self) -> list[str]:
        """URLs of the engines."""
        return [f"http://127.0.0.1:{port}" for port in self.engine_ports]


class Proxy(msgspec.Struct, frozen=True):
    """One row of the table."""

    name: str
    command: Callable[[Place], list[str]]
    """The command line for a place; writes configuration there; may install. Missing."""
    version: Callable[[], str]
    is_product: bool = False


def headgate(place: Place) -> list[str]:
    """The product with all features on: a key, metrics, marginal-cost, scrapes and probes."""
    return _headgate(place, "marginal-cost")


def headgate_least_requests(place: Place) -> list[str]:
    """The same but for its policy, which reads no prompts."""
    return _headgate(place, "least-requests")


def _headgate(place: Place, policy: str) -> list[str]:
    config = {
        "listen": {"port": place.port},
        "admin": {"port": place.side_port},
        "engines": [{"url": url} for url in place.engines],
        "keys": [{"name": "bench", "digest": hashlib.sha256(KEY.encode()).hexdigest()}],
        "policy": policy,
        "drain": {"pre_stop_s": 0, "grace_s": 1},
        "log": {"level": "warning"},
    }
    path = place.folder / f"headgate-{place.port}.yaml"
    path.write_text(json.dumps(config))  # JSON is YAML
    return [sys.executable, "-m", "headgate", "serve", "--config", str(path)]


def nginx(place: Place) -> list[str]:
    """A plain reverse proxy: no key, no metrics, round-robin."""
    _on_path("nginx")
    servers = " ".join(f"server 127.0.0.1:{port};" for port in place.engine_ports)
    path = place.folder / f"nginx-{place.port}.conf"
    path.write_text(f"""worker_processes 1;
daemon off;
pid {place.folder}/nginx-{place.port}.pid;
error_log {place.folder}/nginx-{place.port}.log;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  client_max_body_size 64m;
  client_body_buffer_size 512k;
  client_body_temp_path {place.folder};
  upstream engines {{ {servers} keepalive 256; }}
  server {{
    listen 127.0.0.1:{place.port};
    keepalive_requests 100000000;
    location / {{
      proxy_pass http://engines;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
""")
    return ["nginx", "-c", str(path)]


def haproxy(place: Place) -> list[str]:
    """A plain reverse proxy with least connections."""
    _on_path("haproxy")
    servers = "\n".join(
        f"  server s{index} 127.0.0.1:{port}" for index, port in enumerate(place.engine_ports)
    )
    path = place.folder / f"haproxy-{place.port}.cfg"
    path.write_text(f"""global
  nbthread 1
  maxconn 8192
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  http-reuse always
  option http-no-delay
frontend front
  bind 127.0.0.1:{place.port}
  default_backend engines
backend engines
  balance leastconn
{servers}
""")
    return ["haproxy", "-f", str(path)]


def sglang_router(place: Place) -> list[str]:
    """SGLang's router with its cache-aware policy."""
    python = _installed("sglang-router") / "python"
    return [str(python), "-m", "sglang_router.launch_router", *_router_flags(place)]


def vllm_router(place: Place) -> list[str]:
    """vLLM's router with its cache-aware policy."""
    return [str(_installed("vllm-router") / "vllm-router"), *_router_flags(place)]


def smg(place: Place) -> list[str]:
    """The Shepherd Model Gateway with its cache-aware policy."""
    command = [str(_installed("smg") / "smg"), "launch", *_router_flags(place)]
    return [*command, "--disable-tokenizer-autoload"]


def litellm(place: Place) -> list[str]:
    """LiteLLM's proxy with a master key."""
    path = place.folder / f"litellm-{place.port}.yaml"
    entry = {"model_name": MODEL}
    config = {
        "model_list": [
            {
                **entry,
                "litellm_params": {
                    "model": f"openai/{MODEL}",
                    "api_base": url + "/v1",
                    "api_key": "none",
                },
            }
            for url in place.engines
        ],
        "general_settings": {"master_key": KEY},
        "litellm_settings": {"telemetry": False},
    }
    path.write_text(json.dumps(config))
    binary = _installed("litellm", f"litellm[proxy]=={PINS['litellm']}") / "litellm"
    return [str(binary), "--config", str(path), "--host", "127.0.0.1", "--port", str(place.port)]


def environment() -> dict[str, str]:
    """The environment of every proxy: the product from this tree, the peers offline."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADGATE_")}
    return {
        **kept,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }


def answers(port: int) -> bool:
    """Does a chat request with the key get a 200 there?"""
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}).encode()
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=3) as got:
            return bool(got.status == 200)
    except OSError:
        return False


def wait_until_answers(port: int, process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    """Wait for the first 200; False: the time is over, or the process has ended."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s and process.poll() is None:
        if answers(port):
            return True
        time.sleep(0.2)
    return False


def _router_flags(place: Place) -> list[str]:
    return [
        "--worker-urls", *place.engines, "--host", "127.0.0.1", "--port", str(place.port),
        "--policy", "cache_aware", "--log-level", "error",
        "--prometheus-port", str(place.side_port),
    ]  # fmt: skip


def _on_path(name: str) -> None:
    if shutil.which(name) is None:
        raise Missing(f"{name} is not installed")


def _installed(name: str, requirement: str | None = None) -> Path:
    """The bin folder of a virtual environment with the pinned package, made on first use."""
    home = default_cache() / "peers" / f"{name}-{PINS[name]}"
    mark = home / ".complete"
    if not mark.exists():
        commands = (
            [sys.executable, "-m", "venv", str(home)],
            [str(home / "bin/pip"), "install", "-q", requirement or f"{name}=={PINS[name]}"],
        )
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise Missing(f"{name} cannot be installed: {done.stderr.strip()[-300:]}")
        mark.touch()
    return home / "bin"


def _said(*command: str) -> Callable[[], str]:
    """A version from what the command prints, on either output."""

    def version() -> str:
        done = subprocess.run(command, capture_output=True, text=True, env=environment())
        words = (done.stdout + done.stderr).replace("/", " ").replace(",", " ").split()
        return next((word for word in words if word[:1].isdigit()), "unknown")

    return version


def _pinned(name: str) -> Callable[[], str]:
    return lambda: PINS[name]


PROXIES: dict[str, Proxy] = {
    proxy.name: proxy
    for proxy in (
        Proxy("headgate", headgate, _said(sys.executable, "-m", "headgate", "--version"), True),
        Proxy(
            "headgate-least-requests",
            headgate_least_requests,
            _said(sys.executable, "-m", "headgate", "--version"),
            True,
        ),
        Proxy("nginx", nginx, _said("nginx", "-v")),
        Proxy("haproxy", haproxy, _said("haproxy", "-v")),
        Proxy("sglang-router", sglang_router, _pinned("sglang-router")),
        Proxy("vllm-router", vllm_router, _pinned("vllm-router")),
        Proxy("smg", smg, _pinned("smg")),
        Proxy("litellm", litellm, _pinned("litellm")),
    )
}
