"""The metrics page: names, labels and meanings of the real one."""

from __future__ import annotations

import asyncio
import re

import pytest

from engines.sim.metrics import CONTENT_TYPE, Histogram

SERIES = re.compile(r"^([a-zA-Z0-9_:]+)(?:\{(.*)\})? (\S+)$")

# What routers and scalers read.
NAMES = [
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:num_requests_waiting_by_reason",
    "vllm:kv_cache_usage_perc",
    "vllm:engine_sleep_state",
    "vllm:cache_config_info",
    "vllm:lora_requests_info",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:prompt_tokens_total",
    "vllm:prompt_tokens_cached_total",
    "vllm:prompt_tokens_by_source_total",
    "vllm:generation_tokens_total",
    "vllm:request_success_total",
    "vllm:num_preemptions_total",
    "vllm:admission_rejections_total",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:e2e_request_latency_seconds_bucket",
    "vllm:request_queue_time_seconds_bucket",
    "vllm:iteration_tokens_total_bucket",
]


def parse(text: str) -> dict[str, dict[str, float]]:
    page: dict[str, dict[str, float]] = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            match = SERIES.match(line)
            assert match, line
            name, labels, value = match.groups()
            page.setdefault(name, {})[labels or ""] = float(value)
    return page


def value(page: dict[str, dict[str, float]], name: str, label: str = "") -> float:
    (found,) = [v for labels, v in page[f"vllm:{name}"].items() if label in labels]
    return found


def test_names_and_labels(sim):
    async def scenario(engine, client):
        response = await client.get("/metrics")
        assert response.headers["content-type"] == CONTENT_TYPE
        page = parse(response.text)
        assert set(NAMES) <= set(page)
        for name, series in page.items():
            if name not in ("vllm:lora_requests_info", "process_start_time_seconds"):
                assert all(
                    'model_name="sim"' in labels or "block_size" in labels for labels in series
                )
        info = next(iter(page["vllm:cache_config_info"]))
        for label in ('block_size="32"', 'num_gpu_blocks="128"', 'kv_cache_size_tokens="4096"'):
            assert label in info

    sim(scenario, block_size=32, kv_tokens=4096)


def test_counts_mean_what_they_mean_in_vllm(sim):
    async def scenario(engine, client):
        body = {"prompt": list(range(600, 700)), "max_tokens": 4}
        for _ in range(2):
            await client.post("/v1/completions", json=body)
        page = parse((await client.get("/metrics")).text)
        assert value(page, "prefix_cache_queries_total") == 200
        assert value(page, "prefix_cache_hits_total") == 96
        assert value(page, "prompt_tokens_total") == 200
        assert value(page, "prompt_tokens_cached_total") == 96
        assert value(page, "prompt_tokens_by_source_total", "local_compute") == 104
        assert value(page, "prompt_tokens_by_source_total", "local_cache_hit") == 96
        assert value(page, "prompt_tokens_cached_by_source_total", "device") == 96
        assert value(page, "generation_tokens_total") == 8
        assert value(page, "request_success_total", 'finished_reason="length"') == 2
        assert value(page, "time_to_first_token_seconds_count") == 2
        assert value(page, "inter_token_latency_seconds_count") == 6
        assert value(page, "e2e_request_latency_seconds_bucket", '"+Inf"') == 2
        assert value(page, "num_requests_running") == 0
        assert value(page, "kv_cache_usage_perc") == 0

    sim(scenario, block_size=32)


def test_gauges_follow_the_batch(sim, until):
    async def scenario(engine, client):
        body = {"prompt": "word " * 200, "max_tokens": 6000}
        tasks = [asyncio.create_task(client.post("/v1/completions", json=body)) for _ in range(3)]
        await until(lambda: engine.state()["output_tokens"] > 4)
        page = parse((await client.get("/metrics")).text)
        assert value(page, "num_requests_running") == 2
        assert value(page, "num_requests_waiting") == 1
        assert value(page, "num_requests_waiting_by_reason", "capacity") == 1
        assert 0 < value(page, "kv_cache_usage_perc") < 1
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await until(lambda: engine.state()["running"] == engine.state()["waiting"] == 0)

    sim(scenario, profile="demo", time_scale=0.2, max_num_seqs=2)


def test_adapters_in_use_are_the_newest_series(sim):
    async def scenario(engine, client):
        body = {"prompt": "x", "max_tokens": 3, "model": "poet"}
        await client.post("/v1/completions", json=body)
        series = parse((await client.get("/metrics")).text)["vllm:lora_requests_info"]
        assert any('running_lora_adapters="poet"' in labels for labels in series)
        assert 'running_lora_adapters=""' in max(series, key=lambda labels: series[labels])

    sim(scenario, adapters=("poet",))


@pytest.mark.parametrize(("seen", "bucket"), [(0.5, 0), (1.0, 0), (1.5, 1), (2.5, 2)])
def test_a_bound_belongs_to_its_bucket(seen, bucket):
    histogram = Histogram((1.0, 2.0))
    histogram.observe(seen)
    assert histogram.counts[bucket] == 1
    assert histogram.sum == seen
