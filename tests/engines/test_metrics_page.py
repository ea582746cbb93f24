"""The scanner of metrics pages against a parser in plain Python, and what it makes of bad pages."""

import math
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engines._metrics_page import PageScanner

LABEL = re.compile(
    rb'[ \t\r]*([A-Za-z0-9_]+)[ \t\r]*=[ \t\r]*"((?:[^"\\]|\\.)*)"[ \t\r]*(?:,|(?=\}))', re.S
)
CLOSE = re.compile(rb"[ \t\r]*\}")
NUMBER = re.compile(rb"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")


def labels_of(rest):
    """(labels, what stands behind them), or None if they are malformed."""
    if not rest.startswith(b"{"):
        return [], rest
    labels, at = [], 1
    while found := LABEL.match(rest, at):
        labels.append((found[1].decode(), found[2]))
        at = found.end()
    closed = CLOSE.match(rest, at)
    return None if closed is None else (labels, rest[closed.end() :])


def plain(value):
    """Without its escapes."""
    return re.sub(rb"\\(.)", lambda found: {b"n": b"\n"}.get(found[1], found[1]), value).decode()


def number(text):
    if len(text) > 64 or not NUMBER.fullmatch(text):
        return None
    value = float(text)
    return value if math.isfinite(value) and value >= 0 else None


def samples_of(page, name, having, label):
    """Values of the samples, None for a bad one."""
    for line in page.split(b"\n")[:-1]:
        line = line.lstrip(b" \t\r") if not line.startswith(b"#") else b""
        found = re.match(rb"([^ \t\r{]*)[ \t\r]*", line)
        if found[1] != name.encode() or line == found[1]:
            continue
        parsed = labels_of(line[found.end() :])
        if parsed is None:
            yield None
            continue
        labels, rest = parsed
        met = [(key, plain(value)) for key, value in labels]
        if sum(met.count(pair) for pair in having) < len(having):
            continue
        if not label:
            yield number((re.split(rb"[ \t\r]+", rest.lstrip(b" \t\r")) or [b""])[0])
        elif label in dict(labels):
            yield number(dict(labels)[label])


def reference(page, name, having, label, how):
    values = list(samples_of(page, name, having, label))
    if not values or None in values:
        return None
    if how == "same":
        return values[0] if len(set(values)) == 1 else None
    made = {"sum": sum, "max": max, "mean": lambda v: sum(v) / len(v)}[how](values)
    return made if math.isfinite(made) else None


WANTED = [
    ("vllm:num_requests_running", (), "", "sum"),
    ("vllm:num_requests_running", (("engine", "1"),), "", "max"),
    ("vllm:num_requests_waiting", (), "", "mean"),
    ("vllm:cache_config_info", (), "block_size", "same"),
    ("vllm:cache_config_info", (("engine", "1"), ("mode", 'a"b\\')), "num_gpu_blocks", "sum"),
]
SCANNER = PageScanner(WANTED)
SHORT = [("up", (), "", "sum"), ("vllm:num_requests_running", (), "", "sum")]

names = st.sampled_from(
    [
        b"vllm:num_requests_running",
        b"vllm:num_requests_waiting",
        b"vllm:num_requests_waiting_by_reason",
        b"vllm:num_requests_runninf",
        b"vllm:cache_config_info",
        b"up",
        b"# HELP vllm:num_requests_running",
        b"# EOF",
        b"",
    ]
)
pairs = st.sampled_from(
    [
        b'engine="0"',
        b'engine="1"',
        b'mode="a\\"b\\\\"',
        b'model_name="a b} c, d=\\"1\\""',
        b'block_size="16"',
        b'block_size="None"',
        b'block_size = "16" ',
        b'num_gpu_blocks="512"',
        b'num_gpu_blocks="1e999"',
        b'broken="',
        b'x="y"z="1"',
        b"=",
    ]
)
labels = st.lists(pairs, max_size=4).map(b",".join)
braces = st.one_of(
    st.just(b""), labels.map(lambda s: b"{" + s + b"}"), labels.map(lambda s: b" {" + s + b",} ")
)
values = st.sampled_from(
    [
        *b"0 1 2.5 1e3 1.7952203521234567e+09 NaN +Inf -Inf -1 -0 1_0 0x10 1e999".split(),
        *[b"x", b".", b"1e", b"12abc", b"", b"9" * 64, b"9" * 65, b"\xff", b"\x00"],
    ]
)
tails = st.sampled_from(
    [b"", b"\r", b" 1795220352", b' # {trace_id="x"} 1.0 1795220352', b"\t", b" \r"]
)
lines = st.builds(
    lambda name, braced, gap, value, tail: name + braced + gap + value + tail,
    names,
    braces,
    st.sampled_from([b" ", b"  ", b"\t", b""]),
    values,
    tails,
)
pages = st.one_of(
    st.binary(max_size=200),
    st.lists(lines, max_size=12).map(b"\n".join),
    st.lists(lines, max_size=12).map(lambda found: b"\n".join(found) + b"\n"),
)


@given(pages, st.sampled_from([WANTED, SHORT]))
@example(b"vllm:num_requests_running 1", WANTED)
@example(b"vllm:num_requests_running{\\\n", WANTED)
@example(b"vllm:num_requests_running\n", WANTED)
def test_says_what_a_plain_parser_says(page, wanted):
    scanner = SCANNER if wanted is WANTED else PageScanner(wanted)
    found = scanner.scan(page)
    expected = [reference(page, *one) for one in wanted]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == (theirs if theirs is None else pytest.approx(theirs, rel=1e-15))


@given(pages, st.integers(0, 200))
def test_a_page_that_is_cut_off_tells_what_its_whole_lines_tell(page, size):
    cut = page[:size]
    assert SCANNER.scan(cut) == SCANNER.scan(cut[: cut.rfind(b"\n") + 1])


@pytest.mark.parametrize(
    ("how", "figure"), [("sum", 9.0), ("max", 4.0), ("mean", 3.0), ("same", None)]
)
def test_several_samples_of_one_name(how, figure):
    page = b'queue{model="a"} 4\nqueue{model="b"} 2\nqueue{model="c"} 3\n'
    assert PageScanner([("queue", (), "", how)]).scan(page) == [figure]


def test_the_newest_tells_its_labels():
    scanner = PageScanner([("info", (), "", "newest")])
    page = (
        b'info{name="old"} 1.0\n'
        b'info{name="a\\"b\\\\n\\nc",other="\xc3\xa4\xff"} 3.0\n'
        b'info{name="mid"} 2.0\n'
    )
    assert scanner.scan(page) == [(3.0, {"name": 'a"b\\n\nc', "other": "ä�"})]
    assert scanner.scan(b"info 1\n") == [(1.0, {})]
    assert scanner.scan(page + b"info{ 5\n") == [None]


def test_a_huge_page_costs_no_more_than_its_bytes():
    page = b"".join(b'queue{model="%d"} 1\n' % index for index in range(100_000))
    assert PageScanner([("queue", (), "", "sum")]).scan(page) == [100_000.0]
    assert PageScanner([("queue", (), "", "sum")]).scan(b"queue " + b"9" * 10**6 + b"\n") == [None]


def test_nothing_wanted_and_what_cannot_be_wanted():
    assert PageScanner([]).scan(b"queue 1\n") == []
    with pytest.raises(ValueError, match="''"):
        PageScanner([("", (), "", "sum")])
