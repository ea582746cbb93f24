"""`make demo` as a user sees it."""

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from bench.demo import free_port
from bench.demo_client import Answer

DEMO = [sys.executable, "-m", "bench.demo"]


def test_once_shows_every_kind_of_request_and_ends_well():
    done = subprocess.run([*DEMO, "--once"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(" -> sim-") == 6
    assert len(re.findall(r"^  sim-\d +\d+ +\d+ ms +candidates 4", done.stdout, re.M)) == 8
    turns = re.findall(r"-> (sim-\d) .*cached-tokens (\d+)/(\d+)", done.stdout)[-3:]
    assert len({endpoint for endpoint, _, _ in turns}) == 1
    assert [int(cached) > 1000 for _, cached, _ in turns] == [False, True, True]
    assert "404, x-headgate-reason: unknown_model" in done.stdout
    assert "curl -N http://127.0.0.1:" in done.stdout
    assert "\x1b" not in done.stdout


def test_serves_until_it_is_interrupted():
    demo = subprocess.Popen(DEMO, stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    output = ""
    for line in demo.stdout:
        output += line
        if "Serving until Ctrl-C" in line:
            break
    url = re.search(r"curl (http://\S+/v1/models)", output)[1]
    with urllib.request.urlopen(url, timeout=5) as reply:
        assert reply.status == 200
    os.kill(demo.pid, signal.SIGINT)
    assert demo.wait(20) == 0
    assert "Stopped." in demo.stdout.read()
    demo.stdout.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=5)


def test_port_in_use_is_left_alone():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert free_port(port) != port
    assert free_port(port) == port


def test_answer_reads_the_decision():
    answer = Answer("/v1/completions")
    answer.take_headers({"x-headgate-decision": "endpoint=a policy=p candidates=2 in-flight=1"})
    assert (answer.endpoint, answer.policy) == ("a", "p")
    assert answer.why == "candidates 2, in-flight 1"
