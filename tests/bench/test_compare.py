"""The comparison's plumbing, with the gateway alone: are its figures there, and plausible?"""

import pytest

from bench.compare import DIRECT, Plan, compare
from bench.proxies import PROXIES, Missing, Place


@pytest.fixture(scope="module")
def comparison():
    return compare(
        Plan(proxies=("headgate",), workloads=("plain", "stream"), rounds=1, seconds=0.3)
    )


@pytest.mark.parametrize("workload", ["plain", "stream"])
def test_measures_the_gateway(comparison, workload):
    assert comparison.missing == {}
    assert comparison.proxies() == [DIRECT, "headgate"]
    rows = [row for row in comparison.rows if row.workload == workload]
    assert [row.bad for row in rows] == [0, 0]
    mine = rows[1]
    assert mine.units > 1
    assert mine.rps > 0
    assert 0 <= mine.worker_cpu_us <= mine.cpu_us * 1.0001 < 10_000
    assert 10e6 < mine.rss_bytes < 500e6
    assert comparison.versions["headgate"][0].isdigit()


def test_peers_that_are_not_there_are_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Missing, match="nginx is not installed"):
        PROXIES["nginx"].command(Place(1, 2, (3,), tmp_path))
