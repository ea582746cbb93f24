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
        "policy   marginal-cost, usage observe\n",
    )
    assert call("check-config", HEADGATE_CONFIG="h.yaml").exit_code == 0


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
