"""The mock engine and the load generator: built on demand, and what they count is right."""

import json

import pytest

from bench.gwbench import END_EVENTS, Load, NoCompiler, build, free_ports, start_engine
from bench.processes import end_all


@pytest.fixture
def engine():
    port = free_ports(1)[0]
    process = start_engine(port, n_chunks=5, gap_us=1000)
    yield port
    end_all([process])


@pytest.fixture
def body(tmp_path):
    def write(**members):
        path = tmp_path / "body.json"
        path.write_text(json.dumps({"model": "mock", "messages": [], **members}))
        return path

    return write


def test_is_built_once(tmp_path):
    binary = build(tmp_path)
    made = binary.stat().st_mtime_ns
    assert build(tmp_path) == binary
    assert binary.stat().st_mtime_ns == made
    assert [path.name for path in tmp_path.iterdir()] == [binary.name]


def test_tells_that_there_is_no_compiler(tmp_path):
    with pytest.raises(NoCompiler, match="there is no 'no-such-cc': install"):
        build(tmp_path, compiler="no-such-cc")


def test_tells_what_the_compiler_said(tmp_path):
    with pytest.raises(NoCompiler, match="'false' cannot build gwbench"):
        build(tmp_path, compiler="false")


def test_counts_answers(engine, body):
    run = Load(port=engine, body=body(), connections=4, seconds=0.2).run()
    assert run.ok > 4
    assert run.bad == run.late == 0
    assert 0 < run.ttfb_ms.p50 <= run.total_ms.p50


@pytest.mark.parametrize(("wanted", "is_short"), [(5 + END_EVENTS, False), (8, True)])
def test_counts_short_streams(engine, body, wanted, is_short):
    plan = Load(port=engine, body=body(stream=True), connections=3, seconds=0.1, want_events=wanted)
    run = plan.run()
    assert (run.ok, run.short > 0) == (0, True) if is_short else (run.ok > 0, run.short == 0)
    assert run.errors == run.non200 == 0


def test_keeps_a_rate(engine, body):
    run = Load(port=engine, body=body(), connections=8, seconds=0.5, rate_per_s=100).run()
    assert 20 < run.ok < 100
    assert run.bad == 0


def test_counts_a_refused_connection_as_an_error(body):
    run = Load(port=free_ports(1)[0], body=body(), connections=1, seconds=0.05).run()
    assert run.ok == 0


def test_refuses_what_it_cannot_do(engine, tmp_path):
    with pytest.raises(RuntimeError, match="No such file"):
        Load(port=engine, body=tmp_path / "none.json", seconds=0.1).run()
