"""The command line: by click's runner where it only prints, as a process where it serves."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import headgate
from gateway.version import VERSION

ROOT = Path(headgate.__file__).parent


@pytest.fixture
def call(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("HEADGATE_")]:
        monkeypatch.delenv(name)

    def run(*arguments, text=None, **env):
        return CliRunner().invoke(headgate.main, arguments, input=text, env=env)

    return run


def test_version(call):
    assert call("--version").output == f"headgate, version {VERSION}\n"


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["serve"],
        ["sim"],
        ["check-config"],
        ["keys"],
        ["keys", "new"],
        ["keys", "digest"],
        ["explain"],
    ],
)
def test_every_help_reads_well(call, command):
    result = call(*command, "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.output
    assert "headgate" in result.output
    if command != ["keys"]:
        assert re.search(
            r"^ +(printf .*)?headgate (serve|sim|check|keys|explain)", result.output, re.M
        )


def test_help_imports_nothing_heavy():
    heavy = ("aiohttp", "starlette", "uvicorn", "prometheus_client", "uvloop", "asyncio", "yaml")
    code = (
        "import sys, headgate\n"
        "try: headgate.main(['serve', '--help'])\n"
        f"except SystemExit: print([m for m in {heavy!r} if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert output.splitlines()[-1] == "[]"


def test_check_config_says_ok(call):
    Path("h.yaml").write_text("engines: [http://a]\nmodels: {fast: {split: {x: 2, y: 1}}}\n")
    result = call("check-config", "h.yaml", HEADGATE_ADMIN_TOKEN="hidden")
    assert (result.exit_code, result.output) == (
        0,
        "ok\n"
        "listen   127.0.0.1:8080, 1 worker(s)\n"
        "admin    127.0.0.1:9180, /admin with a token\n"
        "engine   http://a (auto)\n"
        "alias    fast -> x x2, y x1\n"
        "keys     none: open to everybody\n"
        "policy   marginal-cost, usage observe\n"
        "sessions soft, by x-session-affinity, x-session-id\n"
        "hold     nothing to wait for: neither wait_s nor any max_in_flight is set\n"
        "labels   not asked for\n"
        "bus      none: this gateway is the only one\n",
    )
    assert call("check-config", HEADGATE_CONFIG="h.yaml").exit_code == 0


def test_check_config_sums_up_all_that_is_on(call):
    Path("h.yaml").write_text(
        "engines: [{url: http://a, kind: sglang, role: decode, labels: {gpu: h100},\n"
        "  max_in_flight: 8, data_parallel: 2}]\n"
        "models: {big: {tokenizer: engine, labels: {gpu: h100}, usage: exact}}\n"
        f"keys: [{{name: a, digest: {'ab' * 32}, labels: {{gpu: h100}}}}]\n"
        "policy: lmetric\nclient_labels: true\naffinity: {mode: hard, headers: [], cookie: sid}\n"
        "hold: {wait_s: 2, requests: 9, no_engine_s: 30}\n"
        "bus: {url: 'redis://:hidden@there/3'}\n"
    )
    result = call("check-config", "h.yaml")
    assert result.exit_code == 0
    assert result.output.splitlines()[3:] == [
        "engine   http://a (sglang), role=decode, gpu=h100, 2 ranks, 8 requests at once",
        "model    big: token ids asked of its engines, usage exact, only engines with gpu=h100",
        "keys     1",
        "policy   lmetric, usage observe",
        "sessions hard, by cookie sid",
        "hold     9 requests for 60 s where all engines have a queue of more than 2 s or are at "
        "max_in_flight; 30 s for one to be ready",
        "labels   asked for by 1 key(s) and models and clients (x-headgate-labels)",
        "bus      redis://there:6379/3",
    ]


def test_check_config_tells_all_errors(call):
    Path("h.yaml").write_text("usage: x\nlisten: {prot: 1}\n")
    result = call("check-config", "h.yaml")
    assert (result.exit_code, result.output) == (
        2,
        "error: h.yaml: listen.prot: unknown key; did you mean 'port'?\n"
        "error: h.yaml: usage: expected one of observe, exact, got 'x'\n",
    )
    result = call("check-config")
    assert result.exit_code == 2
    assert "name a file, or set HEADGATE_CONFIG" in result.output


def test_serve_names_the_flag_that_is_wrong(call):
    result = call("serve", "--log-level", "loud", "--engine", "vlm=http://a")
    assert result.exit_code == 2
    assert result.output.splitlines() == [
        "error: --log-level: expected one of debug, info, warning, error, got 'loud'",
        "error: --engine: [0].kind: expected one of auto, vllm, sglang, trtllm, nim, "
        "ollama, llamacpp, tgi, triton, openai, got 'vlm'",
    ]


def test_keys(call):
    result = call("keys", "new", "--name", "team-a")
    key = result.stdout.splitlines()[0]
    (entry,) = yaml.safe_load(result.stdout.partition("\n")[2])
    assert entry["name"] == "team-a"
    assert call("keys", "digest", text=key + "\n").output == entry["digest"] + "\n"
    assert call("keys", "digest", text="").exit_code == 2


def test_sim_wants_ports_that_fit(call):
    result = call("sim", "--replicas", "3", "--port", "1", "--port", "2")
    assert result.exit_code == 2
    assert "give one --port, or one for each of 3 replicas" in result.output
    result = call("sim", "--profile", "nonsense")
    assert result.exit_code == 2


def get(url):
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read()


def test_serve_with_simulated_engines_from_start_to_end(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "headgate", "serve", "--sim", "2"]
    command += ["--port", "0", "--admin-port", "0", "--log-format", "json"]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        lines, ready = [], set()
        while len(ready) < 3:
            lines.append(json.loads(process.stderr.readline())["message"])
            ready |= set(re.findall(r"^(sim-\d): unknown -> ready|^(worker 0) is ready", lines[-1]))
        (data,) = [url for line in lines for url in re.findall(r"listening on (\S+)", line)]
        (admin,) = [url for line in lines for url in re.findall(r"admin on (\S+)", line)]
        assert json.loads(get(f"{admin}/ready"))["status"] == "ready"
        assert [m["id"] for m in json.loads(get(f"{data}/v1/models"))["data"]] == ["sim"]
        taken = subprocess.run(
            [*command[:4], "--port", data.rpartition(":")[2]],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert taken.returncode == 1
        assert "another process listens there" in taken.stderr
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()
