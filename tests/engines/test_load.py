"""What each kind of engine's metrics page says of its load."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.kind import KINDS
from engines.load import AdaptersInUse, EngineLoad, LoadReader, Rates
from engines.nvidia import DCGM_METRICS, TRITON_METRICS

VLLM = LoadReader(KINDS["vllm"].metrics)

PAGE = """\
# HELP vllm:num_requests_running Requests in batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a b} c"} 3.0
vllm:num_requests_running{engine="1",model_name="a b} c"} 4.0
vllm:num_requests_waiting{engine="0"} 2
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 7.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.5
vllm:gpu_cache_usage_perc{engine="0"} 0.9
vllm:engine_sleep_state{engine="0",sleep_state="awake"} 0.0
vllm:engine_sleep_state{engine="0",sleep_state="weights_offloaded"} 1.0
vllm:generation_tokens_total{engine="0"} 1.5e+06 # {trace_id="x"} 1.0 1795220352
vllm:generation_tokens_created{engine="0"} 1.79e+09
vllm:prompt_tokens_total 12
vllm:request_success_total{finished_reason="stop"} 5.0
vllm:request_success_total{finished_reason="abort"} 2.0
vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="100"} 1.0
vllm:cache_config_info{block_size="16",engine="1",num_gpu_blocks="200"} 1.0
"""


def test_a_page_of_vllm():
    assert VLLM.read(PAGE.encode()) == EngineLoad(
        running=7.0,
        waiting=2.0,
        kv_usage=0.5,
        kv_capacity_tokens=4800.0,
        block_size=16.0,
        generation_tokens=1.5e6,
        prompt_tokens=12.0,
        requests=7.0,
        sleep_state="weights_offloaded",
    )


TRTLLM_IN_TRITON = """\
nv_inference_request_success{model="ensemble",version="1"} 205
nv_inference_request_success{model="tensorrt_llm",version="1"} 205
nv_inference_request_duration_us{model="ensemble",version="1"} 2500000
nv_inference_exec_count{model="tensorrt_llm",version="1"} 94
nv_inference_pending_request_count{model="postprocessing",version="1"} 9
nv_gpu_utilization{gpu_uuid="GPU-a"} 0.25
nv_gpu_utilization{gpu_uuid="GPU-b"} 0.75
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 3
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="scheduled",version="1"} 8
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 512
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="t",version="1"} 0.125
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="tokens_per",model="t",version="1"} 64
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="used",model="t",version="1"} 780
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="t",version="1"} 6239
"""

VLLM_IN_TRITON = """\
nv_inference_request_success{model="vllm_model",version="1"} 6
nv_inference_pending_request_count{model="vllm_model",version="1"} 1
vllm:prompt_tokens_total{model="vllm_model",version="1"} 70
vllm:generation_tokens_total{model="vllm_model",version="1"} 340
"""

DCGM = """\
DCGM_FI_DEV_GPU_UTIL{gpu="0",UUID="GPU-a",Hostname="h"} 50
DCGM_FI_DEV_GPU_UTIL{gpu="1",UUID="GPU-b",Hostname="h"} 100
DCGM_FI_DEV_FB_USED{gpu="0"} 70000
"""


@pytest.mark.parametrize(
    ("names", "page", "load"),
    [
        (
            KINDS["vllm"].metrics,
            "vllm:gpu_cache_usage_perc 0.9\nvllm:prompt_tokens 4\n",
            EngineLoad(kv_usage=0.9, prompt_tokens=4.0),
        ),
        (
            TRITON_METRICS,
            TRTLLM_IN_TRITON,
            EngineLoad(
                running=8.0,
                waiting=3.0,
                kv_usage=0.125,
                kv_capacity_tokens=6239 * 64.0,
                block_size=64.0,
                gpu_utilisation=0.5,
                requests=410.0,
                request_s=2.5,
            ),
        ),
        (
            TRITON_METRICS,
            VLLM_IN_TRITON,
            EngineLoad(waiting=1.0, prompt_tokens=70.0, generation_tokens=340.0, requests=6.0),
        ),
        (
            TRITON_METRICS,
            VLLM_IN_TRITON + "vllm:num_requests_running 2\nvllm:num_requests_waiting 5\n",
            EngineLoad(
                running=2.0,
                waiting=5.0,
                prompt_tokens=70.0,
                generation_tokens=340.0,
                requests=6.0,
            ),
        ),
        (
            TRITON_METRICS,
            TRTLLM_IN_TRITON + "vllm:num_requests_running 2\nvllm:gpu_cache_usage_perc 0.5\n",
            EngineLoad(
                running=10.0,
                waiting=3.0,
                kv_usage=0.5,
                kv_capacity_tokens=6239 * 64.0,
                block_size=64.0,
                gpu_utilisation=0.5,
                requests=410.0,
                request_s=2.5,
            ),
        ),
        (TRITON_METRICS, "nv_inference_exec_count 99\n", EngineLoad()),
        (DCGM_METRICS, DCGM, EngineLoad(gpu_utilisation=0.75)),
    ],
    ids=[
        "old vllm",
        "trtllm in triton",
        "vllm in triton",
        "its gauges",
        "both",
        "bare triton",
        "dcgm",
    ],
)
def test_a_page(names, page, load):
    assert LoadReader(names).read(page.encode()) == load


@pytest.mark.parametrize("value", ["", "x", "NaN", "+Inf", "-1"])
def test_what_is_no_number_is_unknown_and_not_zero(value):
    assert VLLM.read(f"vllm:num_requests_running {value}\n".encode()) == EngineLoad()


@pytest.mark.parametrize(
    "page",
    [
        'vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1\n',
        'vllm:cache_config_info{num_gpu_blocks="100"} 1\n',
        'vllm:cache_config_info{block_size="16",num_gpu_blocks="0"} 1\n',
        'vllm:cache_config_info{block_size="16",num_gpu_blocks="1"} 1\n'
        'vllm:cache_config_info{block_size="32",num_gpu_blocks="1"} 1\n',
    ],
)
def test_a_cache_whose_size_is_not_told(page):
    assert VLLM.read(page.encode()).kv_capacity_tokens is None


def test_a_cache_that_tells_its_tokens():
    page = (
        'vllm:cache_config_info{block_size="16",kv_cache_size_tokens="900",num_gpu_blocks="99"} 1\n'
    )
    assert VLLM.read(page.encode()).kv_capacity_tokens == 900.0


@given(st.binary() | st.lists(st.sampled_from(PAGE.encode().splitlines())).map(b"\n".join))
def test_never_raises_and_never_gives_what_is_no_number(page):
    load = VLLM.read(page)
    for name in ("running", "waiting", "kv_usage", "generation_tokens", "prompt_tokens"):
        value = getattr(load, name)
        assert value is None or math.isfinite(value)


LORA = "vllm:lora_requests_info"


@pytest.mark.parametrize(
    ("page", "found"),
    [
        ("", None),
        (f'{LORA}{{max_lora="4",running_lora_adapters="",waiting_lora_adapters=""}} 5.0', (4, ())),
        (
            f'{LORA}{{max_lora="4",running_lora_adapters="a,b",waiting_lora_adapters="b,c"}} 5.0',
            (4, ("a", "b", "c")),
        ),
        # Label sets of old times stay: the newest holds.
        (
            f'{LORA}{{max_lora="4",running_lora_adapters="old",waiting_lora_adapters=""}} 5.0\n'
            f'{LORA}{{max_lora="4",running_lora_adapters="new",waiting_lora_adapters=""}} 7.0\n'
            f'{LORA}{{max_lora="4",running_lora_adapters="mid",waiting_lora_adapters=""}} 6.0\n',
            (4, ("new",)),
        ),
        (
            f'{LORA}{{max_lora="1",running_lora_adapters="q\\"x",waiting_lora_adapters=""}} 1',
            (1, ('q"x',)),
        ),
        (f'{LORA}{{max_lora="0",running_lora_adapters="a"}} 5.0', None),
        (f'{LORA}{{max_lora="{"9" * 5000}",running_lora_adapters="a"}} 5.0', None),
        (f'{LORA}{{max_lora="many",running_lora_adapters="a"}} 5.0', None),
        (f'{LORA}{{running_lora_adapters="a"}} 5.0', None),
        (f"{LORA} 5.0", None),
    ],
)
def test_adapters_in_use(page, found):
    expected = None if found is None else AdaptersInUse(*found)
    assert VLLM.read(f"{page}\n".encode()).adapters == expected


@pytest.mark.parametrize(
    ("before", "after", "elapsed_s", "rates"),
    [
        ({}, {}, 1.0, {}),
        ({"requests": 4.0}, {"requests": 10.0}, 2.0, {"requests_per_s": 3.0}),
        ({"request_s": 4.0}, {"request_s": 10.0}, 2.0, {"mean_requests": 3.0}),
        ({"generation_tokens": 9.0}, {"generation_tokens": 2.0}, 1.0, {}),
        ({"prompt_tokens": 9.0}, {}, 1.0, {}),
        ({"prompt_tokens": 1.0}, {"prompt_tokens": 2.0}, 0.0, {}),
    ],
)
def test_rates(before, after, elapsed_s, rates):
    unknown = dict.fromkeys(Rates.__struct_fields__)
    found = EngineLoad(**after).rates_since(EngineLoad(**before), elapsed_s)
    assert found == Rates(**unknown | rates)


def test_every_kind_has_what_the_gateway_asks_for():
    for name, kind in KINDS.items():
        assert kind.name == name
        assert kind.health_path.startswith("/")
        assert kind.keep_alive_s > 0
        assert all(100 <= status < 600 and piece for status, piece in kind.dying_answers)
