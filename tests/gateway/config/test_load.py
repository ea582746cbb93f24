"""Reading the configuration: what is right, and the exact words for what is wrong."""

import hashlib
from pathlib import Path
from typing import get_args

import msgspec
import pytest
import trustme
import yaml

from engines.kind import AUTO, KINDS
from gateway.config import Config, ConfigError, Engine, Secret, load, show
from gateway.config.schema import Kind
from gateway.messages import Choice, Key, Settings
from router import POLICIES

DIGEST = hashlib.sha256(b"hg-x").hexdigest()


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    """Write the file, read it back by its bare name, so that error texts are the same anywhere."""
    monkeypatch.chdir(tmp_path)

    def read(text, env=None, flags=None):
        Path("h.yaml").write_text(text, encoding="utf-8")
        return load("h.yaml", env or {}, flags)

    return read


def test_every_kind_of_engine_can_be_configured():
    assert set(get_args(Kind)) == {AUTO, *KINDS}


def test_nothing_configured_is_the_defaults():
    assert load(None, {}) == Config()
    assert Config().to_settings() == Settings()


def test_the_queue_takes_half_of_the_memory_for_bodies(in_folder):
    assert in_folder("limits: {buffered_bytes: 1000}").to_settings().hold_bytes == 500


def test_an_empty_file_and_empty_keys_are_the_defaults(in_folder):
    assert in_folder("") == Config()
    assert in_folder("listen:\nengines:\nmodels:\nadmin:\n  token:\n") == Config()


def test_every_key_reaches_its_place(in_folder):
    config = in_folder(
        f"""
        engines: [{{url: "https://a/x/v1", kind: sglang, name: a, api_key: env:KEY}}]
        models:
          fast: {{alias_of: small}}
          split: {{split: {{small: 9, large: 1}}, usage: exact}}
        keys:
          - {{name: team, digest: "sha256:{DIGEST.upper()}", models: [fast], usage: exact}}
          - {{name: batch, digest: "{DIGEST[::-1]}", priority: 3}}
        limits: {{body_bytes: 1000}}
        timeouts: {{event_s: 7}}
        hold: {{wait_s: 2, requests: 9, bytes: 8, time_s: 7, no_engine_s: 6}}
        """,
        {"KEY": "s3cret"},
    )
    assert config.engines[0].api_key == Secret("s3cret")
    assert config.aliases() == {"fast": {"small": 1.0}, "split": {"small": 9, "large": 1}}
    assert config.to_keys() == [
        Key("team", bytes.fromhex(DIGEST), ["fast"], "exact"),
        Key("batch", bytes.fromhex(DIGEST[::-1]), [], "", priority=3),
    ]
    settings = config.to_settings("127.0.0.1:1")
    assert (settings.body_bytes, settings.event_s) == (1000, 7.0)
    assert settings.usage_by_model == {"split": "exact"}
    held = {n: getattr(settings, n) for n in settings.__struct_fields__ if n.startswith("hold_")}
    assert list(held.values()) == [2.0, 9, 8, 7.0, 6.0]
    assert settings.admin_address == "127.0.0.1:1"
    assert Choice("small").weight == 1.0


def test_flags_win_over_environment_over_file(in_folder):
    env = {
        "HEADGATE_PORT": "2",
        "HEADGATE_ADMIN_PORT": "3",
        "HEADGATE_LIMITS__BODY_BYTES": "5",
        "HEADGATE_DECISION_HEADER": "true",
        "HEADGATE_ENGINES": "sglang=http://a:1, http://b",
        "HEADGATE_ADMIN_TOKEN": "12345",
        "HEADGATE_POLICY": "",
    }
    config = in_folder("listen: {port: 1, host: '::1'}\n", env, {"--port": ("listen.port", 4)})
    assert (config.listen.port, config.listen.host, config.admin.port) == (4, "::1", 3)
    assert config.limits.body_bytes == 5
    assert config.decision_header is True
    assert [(e.kind, e.url) for e in config.engines] == [
        ("sglang", "http://a:1"),
        ("auto", "http://b"),
    ]
    assert config.admin.token.reveal() == "12345"


def test_an_engine_may_be_a_mere_url(in_folder):
    config = in_folder("engines: [http://a, 'sglang=http://b', {url: 'http://c'}]")
    assert [engine.kind for engine in config.engines] == ["auto", "sglang", "auto"]


def test_a_service_variable_of_kubernetes_is_no_port():
    assert load(None, {"HEADGATE_PORT": "tcp://10.0.0.1:8080"}).listen.port == 8080
    assert load(None, {"HEADGATE_ADMIN_PORT": "tcp://10.0.0.1:8080"}).admin.port == 9180


def test_secrets_come_from_files_and_are_never_shown(in_folder, tmp_path):
    (tmp_path / "token").write_text("abc\n")
    config = in_folder("admin: {token: 'file:token'}\nengines: [{url: 'http://a', api_key: k}]")
    assert config.admin.token.reveal() == "abc"
    assert show(config)["admin"]["token"] == "***"
    assert show(config)["engines"][0]["api_key"] == "***"
    assert show(Config())["admin"]["token"] == ""
    assert "abc" not in repr(config)


def test_the_bus_and_its_password(in_folder):
    url = "rediss://me:x9%40y8@redis.svc:6380/2"
    config = in_folder("bus: {url: env:BUS, name: pod-a, gateways: 3}", {"BUS": url})
    assert config.bus.url.reveal() == url
    assert (config.bus.name, config.bus.gateways) == ("pod-a", 3)
    assert show(config)["bus"] == {"url": "***", "name": "pod-a", "gateways": 3}
    assert "y8" not in repr(config)
    assert load(None, {"HEADGATE_BUS__URL": url}).bus.url.reveal() == url


@pytest.mark.parametrize(
    "url",
    [
        "http://:s3cret@a",
        "redis.svc:6379",
        "redis://:s3cret@/0",
        "redis://:s3cret@a:70000",
        "redis://:s3cret@a:0",
        "redis://:s3/cret@a",
        "redis://:s3#cret@a",
        "redis://:s3cret@a/one",
        "redis://:s3cret@a/0?socket_timeout=9",
        "redis://:s3 cret@a",
        "redis://:s3cret@[a",
    ],
)
def test_a_bus_url_that_is_none_is_not_quoted(in_folder, url):
    with pytest.raises(ConfigError) as caught:
        in_folder("", {"HEADGATE_BUS__URL": url})
    (line,) = caught.value.errors
    assert line.startswith("h.yaml: bus.url: expected redis[s]://")
    assert "cret" not in line


WRONG = [
    ("listen: {prot: 1}", "listen.prot: unknown key; did you mean 'port'?"),
    (
        "drain: {xyzzy: 1}",
        "drain.xyzzy: unknown key; known here: pre_stop_s, grace_s",
    ),
    ("enginez: []", "enginez: unknown key; did you mean 'engines'?"),
    ("listen: {port: 70000}", "listen.port: expected a whole number from 0 to 65535, got 70000"),
    ("listen: {port: '80'}", "listen.port: expected a whole number from 0 to 65535, got '80'"),
    ("listen: {port: yes}", "listen.port: expected a whole number from 0 to 65535, got True"),
    ("listen: 5", "listen: expected a mapping, got 5"),
    ("engines: http://a", "engines: expected a list, got 'http://a'"),
    ("engines: [{}]", "engines[0].url: missing; expected text"),
    ("engines: [5]", "engines[0]: expected a mapping, got 5"),
    (
        "engines: [{url: 'http://a', kind: vlm}]",
        "engines[0].kind: expected one of auto, vllm, sglang, trtllm, nim, ollama, llamacpp, tgi, "
        "triton, openai, got 'vlm'",
    ),
    (
        "engines: [{url: 'ftp://a'}]",
        "engines[0].url: expected http[s]://host[:port][/prefix], got 'ftp://a'",
    ),
    (
        "engines: [{url: 'http://a:99999'}]",
        "engines[0].url: expected http[s]://host[:port][/prefix], got 'http://a:99999': "
        "Port out of range 0-65535",
    ),
    (
        "engines: [{url: 'http://u:p@a'}]",
        "engines[0].url: expected http[s]://host[:port][/prefix], got 'http://u:p@a': "
        "no user, query, fragment or port 0 (give `api_key` instead)",
    ),
    (
        "engines: [{url: 'http://a'}, {url: 'http://a/v1'}]",
        "engines: two are called 'a:80'; give each its own `name`",
    ),
    (
        "engines: [{url: 'https://a', ca_file: nope.pem}]",
        "engines[0].ca_file: there is no file nope.pem",
    ),
    (
        "engines: [{url: 'http://a', api_key: env:NOPE}]",
        "engines[0].api_key: the environment variable NOPE is not set",
    ),
    (
        "admin: {token: file:nope}",
        "admin.token: the file nope cannot be read: No such file or directory",
    ),
    (
        "admin: {token: 5}",
        "admin.token: expected text, env:NAME or file:PATH (put a number in quotes)",
    ),
    ("workers: 0", "workers: expected a whole number from 1 to 64, got 0"),
    ("health: {interval_s: 0}", "health.interval_s: expected a number above 0, got 0"),
    ("health: {interval_s: .inf}", "health.interval_s: expected a finite number, got inf"),
    ("limits: {body_bytes: 0}", "limits.body_bytes: expected a whole number, 1 or more, got 0"),
    ("decision_header: 1", "decision_header: expected true or false, got 1"),
    ("usage: exakt", "usage: expected one of observe, exact, got 'exakt'"),
    (
        "policy: best",
        f"policy: expected one of {', '.join(POLICIES)}, got 'best'",
    ),
    ("paths: [x]", "paths[0]: expected text like ^/, got 'x'"),
    ("models: {5: {}}", "models.5: the key is not text; put it in quotes"),
    ("models: {a: {split: {b: 0}}}", "models.a.split.b: expected a number above 0, got 0"),
    ("models: {a: {split: {}}}", "models.a.split: names no model"),
    (
        "models: {a: {split: {b: 1}, alias_of: b}}",
        "models.a: has both `split` and `alias_of`; keep one",
    ),
    (
        "models: {a: {alias_of: a}}",
        "models.a: points to itself; an alias names real models",
    ),
    (
        "models: {a: {alias_of: b}, b: {alias_of: c}}",
        "models.a: points to the alias 'b'; an alias names real models",
    ),
    (
        "keys: [{name: a, digest: abc}]",
        "keys[0].digest: expected text like ^(sha256:)?[0-9a-fA-F]{64}$, got 'abc'",
    ),
    (
        f"keys: [{{name: a, digest: {DIGEST}}}, {{name: b, digest: {DIGEST.upper()}}}]",
        f"keys: two have the digest {DIGEST[:12]}...",
    ),
    (
        "listen: {tls_cert: h.yaml}",
        "listen.tls_key: missing; HTTPS needs both tls_cert and tls_key",
    ),
    ("bus: {gateways: -1}", "bus.gateways: expected a whole number from 0 to 256, got -1"),
    (
        "bus: {name: 'a b'}",
        "bus.name: expected text like ^[A-Za-z0-9][A-Za-z0-9._:\\[\\]-]*$, got 'a b'",
    ),
    ("bus: {url: env:NOPE}", "bus.url: the environment variable NOPE is not set"),
    ("affinity: {mode: sticky}", "affinity.mode: expected one of soft, hard, off, got 'sticky'"),
    ("affinity: {modes: hard}", "affinity.modes: unknown key; did you mean 'mode'?"),
    (
        "affinity: {headers: ['x session']}",
        "affinity.headers[0]: expected text like ^[A-Za-z0-9-]+$, got 'x session'",
    ),
    ("affinity: {headers: x-user}", "affinity.headers: expected a list, got 'x-user'"),
    ("affinity: {weight_s: -1}", "affinity.weight_s: expected a number, 0 or more, got -1"),
    (
        "affinity: {idle_s: 20000}",
        "affinity.idle_s: expected a number above 0 and at most 14400, got 20000",
    ),
    (
        "hold: {bytes: 1000}\nlimits: {buffered_bytes: 1000}",
        "hold.bytes: 1000 is not below limits.buffered_bytes (1000), so what waits could stop what "
        "runs; leave it out to have half of that",
    ),
    (
        "hold: {wait_s: 60}",
        "hold.wait_s: 60 is not below hold.time_s (60): who is held back for so long a wait is not "
        "waited for; lower it, to 1 to 5, or raise time_s",
    ),
    (
        "affinity: {cookie: 'a=b'}",
        "affinity.cookie: expected text like ^[A-Za-z0-9._-]*$, got 'a=b'",
    ),
    ("adapter_load_s: fast", "adapter_load_s: expected a number, 0 or more, got 'fast'"),
    (
        "engines: [{url: 'http://a', role: prefil}]",
        "engines[0].role: expected one of both, prefill, decode, got 'prefil'",
    ),
    (
        "engines: [{url: 'http://a', lables: {}}]",
        "engines[0].lables: unknown key; did you mean 'labels'?",
    ),
    (
        "engines: [{url: 'http://a', labels: {gpu: 'h 100'}}]",
        "engines[0].labels.gpu: expected text like ^[A-Za-z0-9][A-Za-z0-9._/-]*$, got 'h 100'",
    ),
    (
        "engines: [{url: 'http://a', labels: {'g pu': x}}]",
        "engines[0].labels.g pu: expected a name like [A-Za-z0-9][A-Za-z0-9._/-]{0,62}",
    ),
    (
        "engines: [{url: 'http://a', labels: {role: decode}}]",
        "engines[0].labels.role: the role is no label; give the engine's `role`",
    ),
    (
        "models: {a: {labels: {role: both}}}",
        "models.a.labels.role: expected one of prefill, decode, got 'both'",
    ),
    (
        "models: {a: {labels: {'=': b}}}",
        "models.a.labels.=: expected a name like [A-Za-z0-9][A-Za-z0-9._/-]{0,62}",
    ),
    (
        f"keys: [{{name: a, digest: {DIGEST}, labels: {{',': b}}}}]",
        "keys[0].labels.,: expected a name like [A-Za-z0-9][A-Za-z0-9._/-]{0,62}",
    ),
    ("admin: {port: 8080}", "admin.port: 8080 is listen.port already; choose another"),
    ("listen: {grpc_port: 9180}", "listen.grpc_port: 9180 is admin.port already; choose another"),
    (
        "engines: [{url: 'http://a', kind: vllm, grpc_port: 8001}]",
        "engines[0].grpc_port: is of use only with `kind: triton`",
    ),
    (
        "engines: ['triton=http://a:65534']",
        "engines[0].metrics_port: missing; 65534 + 2, the default, is no port",
    ),
    (
        "engines: [{url: 'http://a', kind: triton, data_parallel: 2}]",
        "engines[0].data_parallel: Triton has no ranks; give each server its own entry",
    ),
]


@pytest.mark.parametrize(("text", "error"), WRONG)
def test_what_is_wrong_is_said(in_folder, text, error):
    with pytest.raises(ConfigError) as caught:
        in_folder(text)
    assert caught.value.errors == [f"h.yaml: {error}"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("a: [", "h.yaml: is not YAML: "),
        ("workers: 1\nworkers: 2", "h.yaml: is not YAML: the key 'workers' is given twice"),
        ("- a", "h.yaml: expected a mapping at the top, got list"),
    ],
)
def test_a_file_that_is_none(in_folder, text, error):
    with pytest.raises(ConfigError) as caught:
        in_folder(text)
    assert caught.value.errors[0].startswith(error)


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match=r"/none: cannot be read: No such file or directory"):
        load(f"{tmp_path}/none", {})


def test_every_key_at_the_top_has_a_variable():
    assert load(None, {"HEADGATE_CLIENT_LABELS": "true"}).client_labels
    assert load(None, {"HEADGATE_INDEX_BLOCKS": "4096"}).index_blocks == 4096
    with pytest.raises(ConfigError, match="HEADGATE_KEYS: expected a list, got 'a'"):
        load(None, {"HEADGATE_KEYS": "a"})


def test_a_number_where_text_belongs_wants_quotes(in_folder):
    with pytest.raises(ConfigError, match=r"labels.gpu: expected text in quotes, got 4$"):
        in_folder("engines: [{url: 'http://a', labels: {gpu: 4}}]")


def test_everything_wrong_is_told_at_once(in_folder):
    env = {"HEADGATE_WORKERS": "two", "HEADGATE_NO__SUCH": "1"}
    with pytest.raises(ConfigError) as caught:
        in_folder("usage: x\nhealth: {stall: 1}\n", env, {"--port": ("listen.port", -1)})
    assert caught.value.errors == [
        "HEADGATE_NO__SUCH: there is no key no.such",
        "HEADGATE_WORKERS: expected a whole number from 1 to 64, got 'two'",
        "--port: expected a whole number from 0 to 65535, got -1",
        "h.yaml: usage: expected one of observe, exact, got 'x'",
        "h.yaml: health.stall: unknown key; did you mean 'stall_s'?",
    ]


def test_a_certificate_is_tried_with_its_key(in_folder, tmp_path):
    one, other = trustme.CA().issue_cert("a"), trustme.CA().issue_cert("b")
    one.cert_chain_pems[0].write_to_path("cert.pem")
    one.private_key_pem.write_to_path("key.pem")
    other.private_key_pem.write_to_path("wrong.pem")
    assert in_folder("listen: {tls_cert: cert.pem, tls_key: key.pem}").listen.tls_key == "key.pem"
    with pytest.raises(ConfigError, match="cannot be used with tls_key"):
        in_folder("listen: {tls_cert: cert.pem, tls_key: wrong.pem}")


def test_the_example_has_every_key_with_its_default(in_folder):
    text = (Path(__file__).parent / "example.yaml").read_text()
    text = text.replace("file:/run/secrets/pod-a", "env:HEADGATE_ADMIN_TOKEN")
    config, defaults = in_folder(text, {"HEADGATE_ADMIN_TOKEN": "t"}), Config()
    given = yaml.safe_load(text)
    assert set(given) == set(Config.__struct_fields__)
    for name in Config.__struct_fields__:
        default = getattr(defaults, name)
        if isinstance(default, msgspec.Struct):
            assert set(given[name]) == set(default.__struct_fields__), name
        if name not in ("admin", "engines", "models", "keys"):
            assert getattr(config, name) == default, name
    assert set(given["engines"][2]) == set(Engine.__struct_fields__)
    assert set(given["keys"][0]) == set(config.keys[0].__struct_fields__)
