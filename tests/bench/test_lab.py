"""The lab: traces as they are read, runs that lose nothing and repeat, figures that are right."""

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.lab import wall
from bench.lab.__main__ import ABLATIONS, main
from bench.lab.figures import figures_of
from bench.lab.run import Case, Done, load, run_all, save
from bench.lab.traces import MADE_UP, Arrival, arrivals_of, made_up, read_trace
from bench.lab.wall import prompt_of
from bench.lab.world import Plan, Served, World
from engines.sim.text import tokenize
from router import POLICIES

MOONCAKE = [
    {"timestamp": 3000, "input_length": 1100, "output_length": 7, "hash_ids": [4, 9, 11]},
    {"timestamp": 0, "input_length": 512, "output_length": 0, "hash_ids": [4]},
]
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,1024,44
2023-11-16 18:15:50.9951690,396,109
"""
SMALL = Plan(profile="8b-h100", pods=3, cache_tokens=60_000)


def chat(requests: int = 150, per_s: float = 9.0, seed: int = 1) -> list[Arrival]:
    return [a for a in made_up(requests=requests, per_s=per_s, seed=seed) if a.prompt_tokens < 5e4]


def mooncake(folder: Path, *entries: object) -> Path:
    path = folder / "small.jsonl"
    path.write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
    return path


def azure(folder: Path, text: str) -> Path:
    path = folder / "small.csv"
    path.write_text(text)
    return path


# Traces


def test_mooncake_is_read_in_order_and_only_whole_blocks_count(tmp_path: Path) -> None:
    early, late = read_trace(mooncake(tmp_path, *MOONCAKE))
    assert (early.prompt_tokens, early.output_tokens, early.blocks) == (512, 1, (4,))
    assert (late.prompt_tokens, late.output_tokens, late.blocks) == (1100, 7, (4, 9))
    assert 0 <= early.at_s <= 3 <= late.at_s <= 6


def test_azure_prompts_share_nothing_and_start_at_zero(tmp_path: Path) -> None:
    first, second = read_trace(azure(tmp_path, AZURE), rate=2)
    assert (first.at_s, first.prompt_tokens, first.output_tokens) == (0, 1024, 44)
    assert second.at_s == pytest.approx(4.314579 / 2)
    assert (len(first.blocks), second.blocks) == (2, ())


def test_rate_and_limit(tmp_path: Path) -> None:
    path = mooncake(tmp_path, *MOONCAKE)
    slow, fast = read_trace(path, seed=5), read_trace(path, seed=5, rate=2)
    assert [a.at_s for a in fast] == [a.at_s / 2 for a in slow]
    assert read_trace(path, seed=5, limit=1) == slow[:1]
    assert read_trace(path, seed=6) != slow


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("t.txt", "", "a trace is a .jsonl"),
        ("t.jsonl", "", "no requests"),
        ("t.jsonl", "\n{", "line 2: not a request in Mooncake's format"),
        ("t.jsonl", '{"timestamp": 0}', "'input_length'"),
        ("t.jsonl", "[]", "line 1"),
        ("t.csv", "", "no requests"),
        ("t.csv", "a,b\n1,2\n", "line 2: not a request in Azure's format"),
        ("t.csv", AZURE.replace("396", "many"), "line 3"),
        ("t.csv", AZURE.replace("2023-11-16", "yesterday"), "line 2"),
    ],
)
def test_bad_files_are_told_from_good_ones(tmp_path: Path, name: str, text: str, told: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match="^" + str(path)) as error:
        arrivals_of(str(path))
    assert told in str(error.value)


@pytest.mark.parametrize("kind", MADE_UP)
def test_made_up_requests_need_a_number(kind: str) -> None:
    with pytest.raises(ValueError, match="say how many"):
        arrivals_of(kind)
    found = arrivals_of(kind, limit=50, rate=10, seed=2)
    assert len(found) == 50
    assert found == arrivals_of(kind, limit=50, rate=10, seed=2)
    assert found != arrivals_of(kind, limit=50, rate=10, seed=3)


@given(seed=st.integers(0, 99), conversations=st.floats(0.01, 1), turn=st.integers(1, 9000))
@settings(max_examples=25, deadline=None)
def test_made_up_conversations_only_grow(seed: int, conversations: float, turn: int) -> None:
    made = made_up(requests=60, per_s=5, seed=seed, conversations=conversations, turn_tokens=turn)
    assert [a.at_s for a in made] == sorted(a.at_s for a in made)
    parents: dict[int, int] = {}
    for one in made:
        assert len(one.blocks) == one.prompt_tokens // 512
        assert one.output_tokens > 0
        for before, block in zip((-1, *one.blocks), one.blocks, strict=False):
            assert parents.setdefault(block, before) == before  # a block has one beginning


# Runs


PLANS = {
    **{name: {"policy": name} for name in POLICIES},
    **{label: {**changes} for label, changes in ABLATIONS.items() if label != "marginal-cost"},
}


@pytest.mark.parametrize("label", PLANS)
def test_every_arrival_is_served_once_and_leaves_no_load(label: str) -> None:
    world = World(msgspec.structs.replace(SMALL, **PLANS[label]))
    arrivals = chat()
    served = world.run(arrivals)
    assert [one.arrival for one in served] == arrivals
    for one in served:
        assert one.arrival.at_s < one.first_s <= one.end_s
        assert 0 <= one.cached_tokens < one.arrival.prompt_tokens
        assert 0 <= one.pod < SMALL.pods
    assert sum(core.totals.finished for core in world.cores) == len(arrivals)
    assert sum(core.totals.output_tokens for core in world.cores) == sum(
        one.output_tokens for one in arrivals
    )
    for core in world.cores:
        assert core.idle
        assert core.pool.held == 0
    for gateway in world.gateways:
        for pod in range(SMALL.pods):
            work = gateway.table.work(0, pod)
            in_flight, prefilling, prefill_s, _, _, prefill_tokens, kv_tokens = work
            assert (in_flight, prefilling, prefill_s, prefill_tokens, kv_tokens) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize("changes", [{}, {"policy": "power-of-two"}, {"gateways": 3}])
def test_the_same_seed_gives_the_same_run(changes: dict[str, object]) -> None:
    def run(seed: int) -> list[tuple[int, float, float]]:
        plan = msgspec.structs.replace(SMALL, seed=seed, **changes)
        return [(one.pod, one.first_s, one.end_s) for one in World(plan).run(chat())]

    assert run(1) == run(1)
    if changes:
        assert run(1) != run(2)


def test_assumed_caches_agree_with_the_engines_while_nothing_is_evicted() -> None:
    plan = msgspec.structs.replace(SMALL, cache_tokens=2_000_000)
    arrivals = chat(per_s=1.0)
    for exact in (False, True):
        served = World(msgspec.structs.replace(plan, exact=exact)).run(arrivals)
        found = figures_of(served, plan.pods)
        assert found.hit_ratio > 0.5
        assert found.hit_error < 0.02


def test_what_an_engine_tells_is_what_it_holds() -> None:
    world = World(msgspec.structs.replace(SMALL, exact=True))
    world.run(chat(400))
    assert sum(core.pool.evictions for core in world.cores) > 100
    index = world.gateways[0].index
    for pod, core in enumerate(world.cores):
        assert all(pod in index.holders(key) for key in core.pool.hashes())
    held = {key for core in world.cores for key in core.pool.hashes()}
    assert index.n_blocks == len(held)


def test_gateways_hear_of_each_other_after_the_delay() -> None:
    """Of two gateways without a bus, each knows half of the load."""
    arrivals = chat(300, 20.0)

    def seen(delay_s: float) -> int:
        world = World(msgspec.structs.replace(SMALL, gateways=2, bus_delay_s=delay_s))
        served = world.run(arrivals[:150])
        assert len(served) == 150
        last_s = max(one.end_s for one in served)
        world.run([at(arrivals[150], last_s + 10)])
        return sum(gateway.table.work(1, pod)[0] for gateway in world.gateways for pod in range(3))

    assert seen(0.05) in (0, 1)  # all that ended has been heard of
    assert World(msgspec.structs.replace(SMALL, gateways=2, bus_delay_s=-1)).run(arrivals)


def at(arrival: Arrival, at_s: float) -> Arrival:
    return Arrival(at_s, arrival.prompt_tokens, arrival.output_tokens, arrival.blocks)


def test_a_known_case_on_one_pod() -> None:
    """One request alone: the profile says what it takes, step by step."""
    world = World(Plan(profile="8b-h100", pods=1, cache_tokens=100_000))
    (one,) = world.run([Arrival(5.0, 1000, 3, (1,))])
    prefill_s = 8e-3 + 33e-6 * 1000 + 1.3e-9 * 1000 * 500
    steps_s = sum(8e-3 + 20e-6 + 55e-9 * (1000 + n) for n in (1, 2))
    assert one.ttft_s == pytest.approx(prefill_s)
    assert one.tpot_s == pytest.approx(steps_s / 2)
    assert one.total_s == pytest.approx(prefill_s + steps_s)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"pods": 0}, "1 to 1024 pods"),
        ({"pods": 1025}, "1 to 1024 pods"),
        ({"gateways": 0}, "at least 1 gateway"),
        ({"cache_tokens": 100}, "at least 512"),
        ({"profile": "none"}, "unknown profile"),
        ({"policy": "none"}, "no policy"),
        ({"cache_tokens": 1024}, "needs a larger cache"),
    ],
)
def test_plans_that_cannot_be(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        World(msgspec.structs.replace(SMALL, **changes)).run(chat())


# Figures


def test_figures_of_a_case_by_hand() -> None:
    def one(pod: int, prompt: int, cached: int, hit: float, ttft: float, tpot: float) -> Served:
        arrival = Arrival(10.0, prompt, 11, ())
        first_s = 10.0 + ttft
        return Served(arrival, pod, hit, cached, first_s, first_s + 10 * tpot)

    found = figures_of(
        [
            one(0, 1000, 500, 500, 1.0, 0.05),
            one(0, 1000, 0, 100, 3.0, 0.05),  # late to begin
            one(1, 1000, 250, 250, 1.5, 0.2),  # slow
            one(1, 1000, 250, 150, 0.5, 0.1),
        ],
        pods=2,
    )
    assert found.requests == 4
    assert found.ttft_mean_s == pytest.approx(1.5)
    assert (found.ttft_p50_s, found.ttft_p90_s, found.ttft_p99_s) == pytest.approx((1.0, 3.0, 3.0))
    assert found.tpot_mean_s == pytest.approx(0.1)
    assert (found.tpot_p50_s, found.tpot_p99_s) == pytest.approx((0.05, 0.2))
    assert (found.e2e_p50_s, found.e2e_p99_s) == pytest.approx((1.5, 3.5))
    assert found.goodput in (0.25, 0.5)  # the last one stands on the line, up to rounding
    assert found.hit_ratio == 0.25
    assert found.hit_error == pytest.approx(200 / 4000)
    assert found.imbalance == 1.0
    with pytest.raises(ValueError, match="nothing was served"):
        figures_of([], 2)


def test_an_answer_of_one_token_has_no_time_between() -> None:
    served = Served(Arrival(0.0, 10, 1, ()), 0, first_s=1.0, end_s=1.0)
    assert served.tpot_s == 0
    assert figures_of([served], 1).goodput == 1


# The command


def test_results_are_saved_whole(tmp_path: Path) -> None:
    case = Case("x", SMALL, "chat", 5.0, 30)
    told: list[Done] = []
    done = run_all([case], 1, told.append)
    assert told == done
    assert done[0].figures.requests == 30
    assert done[0].peak_bytes > 1_000_000
    save(done, tmp_path / "new" / "lab.json")
    assert load(tmp_path / "new" / "lab.json") == done


def test_the_command_writes_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["chat", "--limit", "40", "--rates", "4,8", "--seeds", "2", "--pods", "2"]
    words += ["--policies", "marginal-cost,least-requests", "--folder", str(tmp_path)]
    assert main(words) == 0
    assert "written: LAB.md, lab.png, lab.html and lab.json" in capsys.readouterr().out
    assert len(load(tmp_path / "lab.json")) == 8
    text = (tmp_path / "LAB.md").read_text()
    assert "**chat at 8/s**: 40 requests, 2 pods of 70b-h100-tp4" in text
    assert text.count("| least-requests |") == 2
    assert (tmp_path / "lab.png").read_bytes().startswith(b"\x89PNG")
    page = (tmp_path / "lab.html").read_text()
    assert page.count("<table>") == page.count("</table>") == 2
    assert "data:image/png;base64," in page


def test_many_labels_are_drawn_as_bars(tmp_path: Path) -> None:
    words = ["agents", "--limit", "20", "--rates", "4", "--seeds", "1", "--pods", "2", "--ablate"]
    assert main([*words, "--folder", str(tmp_path)]) == 0
    assert (tmp_path / "LAB.md").read_text().count("\n| ") == len(ABLATIONS) + 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nothing.jsonl"], "nothing.jsonl"),
        (["chat"], "say how many"),
        (["chat", "--limit", "9", "--policies", "best"], "no policy is called 'best'"),
        (["chat", "--limit", "9", "--profile", "none"], "unknown profile"),
        (["chat", "--limit", "9", "--rates", "0"], "--rates"),
        (["chat", "--limit", "9", "--rates", "fast"], "fast"),
    ],
)
def test_bad_commands_are_told_so(
    words: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--folder", str(tmp_path)]) == 2
    assert told in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.pyplot", None)
    assert main(["chat", "--limit", "9", "--folder", str(tmp_path)]) == 2
    assert "pip install 'headgate[lab]'" in capsys.readouterr().err


# By the clock


def test_texts_share_what_blocks_share() -> None:
    one = prompt_of(Arrival(0.0, 1100, 1, (3, 4)), 0)
    other = prompt_of(Arrival(0.0, 1030, 1, (3, 5)), 1)
    assert (len(tokenize(one)), len(tokenize(other))) == (1100, 1030)
    assert list(tokenize(one))[:512] == list(tokenize(other))[:512]
    assert list(tokenize(one))[512:1024] != list(tokenize(other))[512:1024]
    assert prompt_of(Arrival(0.0, 1100, 1, (3, 4)), 2)[: 5 * 1024] == one[: 5 * 1024]


def test_a_slice_goes_through_the_product(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["chat", "--limit", "12", "--rate", "12", "--seconds", "2", "--pods", "2"]
    assert wall.main([*words, "--profile", "instant", "--cache-tokens", "100000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| | lab | product |"
    (hits,) = [line for line in lines if line.startswith("| hit ratio")]
    assert float(hits.split("|")[3]) > 0.2
    assert "12 requests" in lines[-1]
