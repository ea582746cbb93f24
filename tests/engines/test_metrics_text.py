"""The few samples read out of an engine's metrics page."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.kind import KINDS
from engines.metrics_text import AdaptersInUse, Scrape, read_metrics

VLLM = KINDS["vllm"].metrics

PAGE = """\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a b} c"} 3.0
vllm:num_requests_running{engine="1",model_name="a b} c"} 4.0
vllm:num_requests_waiting{engine="0"} 2
vllm:num_requests_waiting_by_reason{engine="0",reason="capacity"} 7.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.5
vllm:gpu_cache_usage_perc{engine="0"} 0.9
vllm:generation_tokens_total{engine="0"} 1.5e+06 # {trace_id="x"} 1.0 1795220352
vllm:generation_tokens_created{engine="0"} 1.79e+09
vllm:prompt_tokens_total 12
"""


def test_a_page_of_vllm():
    assert read_metrics(PAGE, VLLM) == Scrape(7.0, 2.0, 0.5, 1.5e6, 12.0)


def test_old_names():
    page = "vllm:gpu_cache_usage_perc 0.9\nvllm:prompt_tokens 4\n"
    assert read_metrics(page, VLLM) == Scrape(kv_usage=0.9, prompt_tokens=4.0)


def test_a_page_of_sglang():
    page = 'sglang:num_running_reqs{model_name="m"} 1.0\nsglang:token_usage{model_name="m"} 0.5\n'
    assert read_metrics(page, KINDS["sglang"].metrics) == Scrape(running=1.0, kv_usage=0.5)


@pytest.mark.parametrize("value", ["", "x", "NaN", "+Inf"])
def test_what_is_no_number_is_unknown_and_not_zero(value):
    assert read_metrics(f"vllm:num_requests_running {value}", VLLM) == Scrape()


@given(st.text() | st.lists(st.sampled_from(PAGE.splitlines())).map("\n".join))
def test_never_raises_and_never_gives_what_is_no_number(text):
    scrape = read_metrics(text, VLLM)
    for name in ("running", "waiting", "kv_usage", "generation_tokens", "prompt_tokens"):
        value = getattr(scrape, name)
        assert value is None or math.isfinite(value)


def test_every_kind_has_what_the_gateway_asks_for():
    for name, kind in KINDS.items():
        assert kind.name == name
        assert kind.health_path.startswith("/")
        assert 0 < kind.keep_alive_s < 5
        assert all(100 <= status < 600 and piece for status, piece in kind.dying_answers)


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
        (f'{LORA}{{max_lora="many",running_lora_adapters="a"}} 5.0', None),
        (f'{LORA}{{running_lora_adapters="a"}} 5.0', None),
        (f"{LORA} 5.0", None),
    ],
)
def test_adapters_in_use(page, found):
    expected = None if found is None else AdaptersInUse(*found)
    assert read_metrics(page, VLLM).adapters == expected
