"""2,000 streams at once for a minute; and the same plumbing in small, for every run."""

import pytest

from bench.streams import Plan, soak


def test_small(tmp_path):
    result = soak(Plan(streams=20, events_per_s=20, seconds=4))
    assert (result.ok, result.non200, result.errors, result.short) == (20, 0, 0, 0)
    assert len(result.rss_samples_bytes) >= 3
    assert result.measured_events_per_s > 300


@pytest.mark.soak
@pytest.mark.timeout(240)
def test_two_thousand_streams_for_a_minute():
    result = soak(Plan(streams=2000, events_per_s=20, seconds=60))
    assert (result.non200, result.errors) == (0, 0)
    assert result.short == 0, "streams were cut early"
    assert result.ok == 2000
    assert result.rss_per_stream_bytes <= 12 * 1024
    assert result.growth_per_stream_bytes <= 1024, "memory is not flat"
