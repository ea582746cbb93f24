"""`headgate bench`: options become a run of the load generator."""

import json

import pytest
from click.testing import CliRunner

from bench.cli import bench
from bench.gwbench import free_ports, start_engine
from bench.processes import end_all


@pytest.fixture(scope="module")
def engine():
    port = free_ports(1)[0]
    process = start_engine(port, n_chunks=5, gap_us=1000)
    yield port
    end_all([process])


def run(*arguments):
    return CliRunner().invoke(bench, arguments)


def test_load_prints_what_happened(engine):
    done = run("load", "--url", f"http://127.0.0.1:{engine}", "--seconds", "0.2")
    assert done.exit_code == 0, done.output
    assert "requests/s" in done.output


def test_load_prints_json(engine, tmp_path):
    body = tmp_path / "body.json"
    body.write_text('{"model": "mock", "messages": []}')
    url = f"http://localhost:{engine}/v1/chat/completions"
    done = run("load", "--url", url, "--body", str(body), "--seconds", "0.2", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["ok"] > 0


def test_load_fails_when_streams_are_short(engine):
    url = f"http://127.0.0.1:{engine}"
    done = run("load", "--url", url, "--seconds", "0.1", "--want-events", "100")
    assert done.exit_code == 1


@pytest.mark.parametrize("url", ["https://127.0.0.1", "127.0.0.1:80", "http://127.0.0.1:x"])
def test_load_refuses_other_urls(url):
    done = run("load", "--url", url)
    assert done.exit_code == 2
    assert "--url" in done.output


@pytest.mark.parametrize("command", ["compare", "streams", "idle", "report"])
def test_modules_tell_their_own_options(command):
    done = run(command, "--help")
    assert done.exit_code == 0
    assert "--folder" in done.output
