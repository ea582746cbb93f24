"""What is said to each kind of engine, and what is made of its answers: whole conversations."""

import json

import pytest

from engines.control import (
    Call,
    Done,
    ListedModel,
    ModelState,
    Pause,
    Refused,
    Reply,
    Unable,
    driver_of,
)

NOT_FOUND = (404, {"detail": "Not Found"})
WRONG_METHOD = (405, {"detail": "Method Not Allowed"})
EMPTY = (200, b"")
NO_OPTION = Refused(400, "no options are known here, but a was given")


def play(talk, script):
    """What the talk comes to with an engine that answers as the script says; each entry is
    ("METHOD path" and the JSON body, if any, behind it; (status, answer)), or a pause."""
    left = list(script)
    reply = None
    try:
        while True:
            step = next(talk) if reply is None else talk.send(reply)
            assert left, f"asked for more: {step}"
            line, answer = left.pop(0)
            assert shown(step) == line
            status, body = answer
            reply = Reply(status, body if isinstance(body, bytes) else json.dumps(body).encode())
    except StopIteration as end:
        assert not left, f"not asked for: {left}"
        return end.value


def shown(step):
    if isinstance(step, Pause):
        return "pause"
    assert isinstance(step, Call)
    body = "" if step.body is None else " " + json.dumps(step.body)
    return f"{step.method} {step.path}{body}"


PAUSE = ("pause", EMPTY)


def models(*entries):
    return ("GET /v1/models", (200, {"object": "list", "data": list(entries)}))


BASE = {"id": "m", "root": "m", "parent": None}
POET = {"id": "poet", "root": "/a/poet", "parent": "m"}


def sleeps(state):
    return ("GET /is_sleeping", (200, {"is_sleeping": state}))


AWAKE, ASLEEP = sleeps(False), sleeps(True)
NO_DEV = ("GET /is_sleeping", NOT_FOUND)
MAY_LOAD = ("GET /v1/load_lora_adapter", WRONG_METHOD)
MAY_UNLOAD = ("GET /v1/unload_lora_adapter", WRONG_METHOD)


def level(name):
    states = ("awake", "weights_offloaded", "discard_all")
    page = "".join(
        f'vllm:engine_sleep_state{{engine="0",model_name="m",sleep_state="{state}"}} '
        f"{float(state == name)}\n"
        for state in states
    )
    return ("GET /metrics", (200, page.encode()))


def load_poet(path="/a/poet", **more):
    body = {"lora_name": "poet", "lora_path": path, **more}
    return "POST /v1/load_lora_adapter " + json.dumps(body)


ADDED = (200, b"Success: LoRA adapter 'poet' added successfully.")

VLLM = [
    (
        "a new adapter",
        lambda driver: driver.load_adapter("poet", "/a/poet"),
        [models(BASE), NO_DEV, MAY_LOAD, (load_poet(), ADDED)],
        Done(True, "Success: LoRA adapter 'poet' added successfully."),
    ),
    (
        "an adapter that is there",
        lambda driver: driver.load_adapter("poet", "/a/poet"),
        [models(BASE, POET), AWAKE],
        Done(False, "adapter 'poet' is loaded already, from /a/poet"),
    ),
    (
        "another adapter of the same name",
        lambda driver: driver.load_adapter("poet", "/b"),
        [models(BASE, POET), AWAKE, MAY_LOAD, (load_poet("/b", load_inplace=True), ADDED)],
        Done(True, "Success: LoRA adapter 'poet' added successfully.", forgets=True),
    ),
    (
        "started without adapters",
        lambda driver: driver.load_adapter("poet", "/a/poet"),
        [models(BASE), NO_DEV, ("GET /v1/load_lora_adapter", NOT_FOUND)],
        Unable("VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
    ),
    (
        "an adapter that is not on its disk",
        lambda driver: driver.load_adapter("poet", "/a/poet"),
        [
            models(BASE),
            NO_DEV,
            MAY_LOAD,
            (load_poet(), (404, {"error": {"message": "No adapter found for /a/poet"}})),
        ],
        Refused(404, "adapter 'poet' is not loaded", "No adapter found for /a/poet"),
    ),
    (
        "a base model's name",
        lambda driver: driver.load_adapter("m", "/a"),
        [models(BASE), AWAKE],
        Refused(409, "'m' is a base model there, and no adapter"),
    ),
    (
        "an adapter while it sleeps",
        lambda driver: driver.load_adapter("poet", "/a"),
        [models(BASE), ASLEEP],
        Refused(409, "it sleeps: wake it first"),
    ),
    (
        "away with an adapter",
        lambda driver: driver.unload_adapter("poet"),
        [
            models(BASE, POET),
            AWAKE,
            MAY_UNLOAD,
            ('POST /v1/unload_lora_adapter {"lora_name": "poet"}', (200, b"removed.")),
        ],
        Done(True, "removed."),
    ),
    (
        "away with what is not there",
        lambda driver: driver.unload_adapter("poet"),
        [models(BASE), AWAKE],
        Done(False, "adapter 'poet' is not loaded"),
    ),
    (
        "the wrong key",
        lambda driver: driver.load_adapter("poet", "/a"),
        [("GET /v1/models", (401, {"error": "Unauthorized"}))],
        Refused(401, "it does not list its models", "Unauthorized"),
    ),
    (
        "to sleep",
        lambda driver: driver.sleep(1),
        [AWAKE, ("POST /sleep?level=1", (200, {"status": "sleeping", "level": 1}))],
        Done(True, "it sleeps at level 1", forgets=True),
    ),
    (
        "only to stop",
        lambda driver: driver.sleep(0),
        [AWAKE, ("POST /sleep?level=0", (200, {"status": "sleeping", "level": 0}))],
        Done(True, "it sleeps at level 0"),
    ),
    (
        "asleep as deep",
        lambda driver: driver.sleep(1),
        [ASLEEP, level("discard_all")],
        Done(False, "it sleeps already, at level 2"),
    ),
    (
        "asleep and not as deep",
        lambda driver: driver.sleep(2),
        [ASLEEP, level("weights_offloaded")],
        Refused(409, "it sleeps at level 1: wake it, then ask for 2"),
    ),
    ("no dev mode", lambda driver: driver.sleep(1), [NO_DEV], Unable("VLLM_SERVER_DEV_MODE")),
    ("no dev mode either", lambda driver: driver.wake(), [NO_DEV], Unable("VLLM_SERVER_DEV_MODE")),
    (
        "up",
        lambda driver: driver.wake(),
        [ASLEEP, level("weights_offloaded"), ("POST /wake_up", (200, {})), AWAKE],
        Done(True, "it is awake"),
    ),
    (
        "up, with weights from disk",
        lambda driver: driver.wake(),
        [
            ASLEEP,
            level("discard_all"),
            ("POST /wake_up?tags=weights", (200, {})),
            ('POST /collective_rpc {"method": "reload_weights"}', (200, {"results": [None]})),
            ("POST /wake_up?tags=kv_cache", (200, {})),
            AWAKE,
        ],
        Done(True, "it is awake"),
    ),
    (
        "up, and the weights are gone",
        lambda driver: driver.wake(),
        [
            ASLEEP,
            level("discard_all"),
            ("POST /wake_up?tags=weights", (200, {})),
            (
                'POST /collective_rpc {"method": "reload_weights"}',
                (500, {"error": {"message": "No such file"}}),
            ),
        ],
        Refused(500, "it does not wake (/collective_rpc)", "No such file"),
    ),
    ("awake", lambda driver: driver.wake(), [AWAKE], Done(False, "it is awake already")),
    (
        "its model",
        lambda driver: driver.load("m", {}),
        [models(BASE), NO_DEV],
        Done(False, "'m' is loaded already"),
    ),
    (
        "another model",
        lambda driver: driver.load("n", {}),
        [models(BASE), NO_DEV, MAY_LOAD, NO_DEV],
        Unable("vLLM serves the model it was started with"),
    ),
    (
        "listed asleep",
        lambda driver: driver.list_models(),
        [models(BASE, POET), ASLEEP],
        [
            ListedModel("m", ModelState.ASLEEP),
            ListedModel("poet", ModelState.ASLEEP, parent="m", path="/a/poet"),
        ],
    ),
    ("ready", lambda driver: driver.is_ready("m"), [models(BASE), AWAKE], True),
    ("not ready, asleep", lambda driver: driver.is_ready("m"), [models(BASE), ASLEEP], False),
]


def index(*entries):
    listed = [
        dict(zip(("name", "version", "state", "reason"), entry, strict=False)) for entry in entries
    ]
    return ("POST /v2/repository/index", (200, listed))


READY = ("m", "1", "READY")
BROKEN = ("m", "1", "UNAVAILABLE", "Internal: out of memory\n")
LOAD = "POST /v2/repository/models/m/load"
MAY_IT = "POST /v2/repository/models/headgate-asks-whether-it-may/unload"
MAY = [index(READY), (MAY_IT, EMPTY)]
UNLOAD = "POST /v2/repository/models/m/unload"
NO_MODE = (503, {"error": "explicit model load / unload is not allowed if polling is enabled"})
RESTRICTED = (403, {"error": "This API is restricted, expecting header 'admin-key'"})

TRITON = [
    (
        "a model",
        lambda driver: driver.load("m", {}),
        [index(("m",), ("n",)), (LOAD, EMPTY), index(READY)],
        Done(True, "'m' is loaded", forgets=True),
    ),
    (
        "loaded",
        lambda driver: driver.load("m", {}),
        [index(READY)],
        Done(False, "'m' is"),
    ),
    (
        "being loaded by others",
        lambda driver: driver.load("m", {}),
        [index(("m", "1", "LOADING")), PAUSE, index(READY)],
        Done(False, "'m' is loaded already"),
    ),
    (
        "loaded, with another configuration",
        lambda driver: driver.load("m", {"config": {"max_batch_size": 4}, "file:1/a": "Zg=="}),
        [
            index(READY),
            (
                LOAD
                + ' {"parameters": {"config": "{\\"max_batch_size\\": 4}", "file:1/a": "Zg=="}}',
                EMPTY,
            ),
            index(READY),
        ],
        Done(True, "'m' is loaded", forgets=True),
    ),
    (
        "loaded, and maybe changed on disk",
        lambda driver: driver.load("m", {"reload": True}),
        [index(READY), (LOAD, EMPTY), index(READY)],
        Done(True, "'m' is loaded", forgets=True),
    ),
    (
        "broken",
        lambda driver: driver.load("m", {}),
        [index(("m",)), (LOAD, (400, {"error": "load failed for model 'm': out of memory"}))],
        Refused(400, "'m' could not be loaded", "load failed for model 'm': out of memory"),
    ),
    (
        "not there",
        lambda driver: driver.load("m", {}),
        [index(("n",))],
        Refused(404, "there is no model 'm' in its repository"),
    ),
    (
        "mode none",
        lambda driver: driver.load("m", {}),
        [index(("m",)), (LOAD, NO_MODE)],
        Unable("--model-control-mode=explicit"),
    ),
    (
        "mode none, and there",
        lambda driver: driver.load("m", {}),
        [index(READY)],
        Done(False, "'m' is loaded already"),
    ),
    (
        "restricted",
        lambda driver: driver.load("m", {}),
        [("POST /v2/repository/index", RESTRICTED)],
        Unable('control_header: "admin-key: ..."'),
    ),
    (
        "an option that is none",
        lambda driver: driver.load("m", {"cfg": 1}),
        [],
        Refused(
            400,
            "option 'cfg' is not taken so; there are config, file:PATH (base64) and reload (true "
            "or false)",
        ),
    ),
    (
        "away",
        lambda driver: driver.unload("m", {}),
        [
            index(READY),
            (UNLOAD, EMPTY),
            index(("m", "1", "UNLOADING")),
            PAUSE,
            index(("m", "1", "UNAVAILABLE", "unloaded")),
        ],
        Done(True, "'m' is unloaded", forgets=True),
    ),
    (
        "away with its steps",
        lambda driver: driver.unload("m", {"dependents": True}),
        [
            index(READY),
            (UNLOAD + ' {"parameters": {"unload_dependents": true}}', EMPTY),
            index(("m", "1", "UNAVAILABLE", "unloaded")),
        ],
        Done(True, "'m' is unloaded", forgets=True),
    ),
    (
        "away already",
        lambda driver: driver.unload("m", {}),
        [index(BROKEN)],
        Done(False, "'m' is not loaded"),
    ),
    (
        "away, and never there",
        lambda driver: driver.unload("m", {}),
        [index(("n",))],
        Done(False, "there is no model 'm' in its repository"),
    ),
    (
        "a name with a slash",
        lambda driver: driver.is_ready("org/m"),
        [("GET /v2/models/org%2Fm/ready", (400, {"error": "no"}))],
        False,
    ),
    (
        "all of them",
        lambda driver: driver.list_models(),
        [index(READY, ("m", "2", "UNAVAILABLE", "unloaded"), ("n",), ("b", *BROKEN[1:]))],
        [
            ListedModel("m", ModelState.READY),
            ListedModel("n", ModelState.UNLOADED),
            ListedModel("b", ModelState.FAILED, "Internal: out of memory"),
        ],
    ),
    (
        "new in its repository, or not at all",
        lambda driver: driver.load("m", {"reload": True}),
        [index(("n",)), (LOAD, (500, {"error": "failed to load 'm'"}))],
        Refused(500, "'m' could not be loaded", "failed to load 'm'"),
    ),
    ("no sleep", lambda driver: driver.sleep(1), MAY, Unable("unload its models")),
    ("no waking", lambda driver: driver.wake(), MAY, Unable("unload its models")),
    ("no adapters", lambda driver: driver.load_adapter("a", "/a"), MAY, Unable("adapters")),
    ("none to unload", lambda driver: driver.unload_adapter("a"), MAY, Unable("adapters")),
]

ARGS = {"enable_lora": True, "enable_memory_saver": True, "model_path": "/m"}


def told(**more):
    return ("GET /server_info", (200, {**ARGS, **more}))


def release(status=200, answer=None):
    return ("POST /release_memory_occupation {}", (status, answer))


def resume(what):
    return (f'POST /resume_memory_occupation {{"tags": ["{what}"]}}', (200, None))


SGLANG = [
    (
        "an adapter",
        lambda driver: driver.load_adapter("poet", "/a/poet"),
        [
            told(),
            models(BASE),
            (
                'POST /load_lora_adapter {"lora_name": "poet", "lora_path": "/a/poet"}',
                (200, {"success": True}),
            ),
        ],
        Done(True, "adapter 'poet' is loaded"),
    ),
    (
        "no room for it",
        lambda driver: driver.load_adapter("poet", "/a/poet"),
        [
            told(),
            models(BASE),
            (
                'POST /load_lora_adapter {"lora_name": "poet", "lora_path": "/a/poet"}',
                (400, {"success": False, "error_message": "rank is too large"}),
            ),
        ],
        Refused(400, "adapter 'poet' is not loaded", "rank is too large"),
    ),
    (
        "another of the same name",
        lambda driver: driver.load_adapter("poet", "/b"),
        [
            told(),
            models(BASE, POET),
            ('POST /unload_lora_adapter {"lora_name": "poet"}', (200, {"success": True})),
            (
                'POST /load_lora_adapter {"lora_name": "poet", "lora_path": "/b"}',
                (200, {"success": True}),
            ),
        ],
        Done(True, "adapter 'poet' is loaded", forgets=True),
    ),
    (
        "started without",
        lambda driver: driver.load_adapter("poet", "/a"),
        [told(enable_lora=False)],
        Unable("--enable-lora"),
    ),
    (
        "to sleep, without its weights",
        lambda driver: driver.sleep(2),
        [told(), release()],
        Done(True, "its memory is released", forgets=True),
    ),
    (
        "weights are not kept",
        lambda driver: driver.sleep(1),
        [told()],
        Unable("--enable-weights-cpu-backup"),
    ),
    (
        "to sleep, its weights in host memory",
        lambda driver: driver.sleep(1),
        [told(enable_weights_cpu_backup=True), release()],
        Done(True, "its memory is released", forgets=True),
    ),
    (
        "up, and its weights from disk",
        lambda driver: driver.wake(),
        [
            told(),
            resume("weights"),
            ('POST /update_weights_from_disk {"model_path": "/m"}', (200, {"success": True})),
            resume("kv_cache"),
        ],
        Done(True, "it is awake"),
    ),
    (
        "up",
        lambda driver: driver.wake(),
        [told(enable_weights_cpu_backup=True), resume("weights"), resume("kv_cache")],
        Done(True, "it is awake"),
    ),
    (
        "an older one",
        lambda driver: driver.sleep(1),
        [
            ("GET /server_info", NOT_FOUND),
            ("GET /get_server_info", (200, {"enable_memory_saver": False})),
        ],
        Unable("--enable-memory-saver"),
    ),
]


def names(path, *found):
    return (f"GET {path}", (200, {"models": [{"name": name} for name in found]}))


TAGS = names("/api/tags", "m:latest", "n:8b")


def touch(keep, name="m:latest"):
    body = {"model": name, "keep_alive": keep, "stream": False}
    return "POST /api/generate " + json.dumps(body)


OLLAMA = [
    (
        "a model",
        lambda driver: driver.load("m", {}),
        [TAGS, names("/api/ps"), (touch(-1), (200, {"done": True}))],
        Done(True, "'m:latest' is loaded", forgets=True),
    ),
    (
        "for a time",
        lambda driver: driver.load("n:8b", {"keep_alive": "5m"}),
        [TAGS, names("/api/ps", "n:8b"), (touch("5m", "n:8b"), (200, {"done": True}))],
        Done(True, "'n:8b' is loaded"),
    ),
    (
        "one that embeds",
        lambda driver: driver.load("m", {}),
        [
            TAGS,
            names("/api/ps"),
            (touch(-1), (400, {"error": '"m" does not support generate'})),
            ('POST /api/embed {"model": "m:latest", "keep_alive": -1, "input": []}', (200, {})),
        ],
        Done(True, "'m:latest' is loaded", forgets=True),
    ),
    (
        "loaded",
        lambda driver: driver.load("m", {}),
        [TAGS, names("/api/ps", "m:latest")],
        Done(False, "'m:latest' is loaded already"),
    ),
    (
        "not there",
        lambda driver: driver.load("x", {}),
        [TAGS],
        Refused(404, "it has no model 'x:latest': `ollama pull x` gets it"),
    ),
    (
        "away",
        lambda driver: driver.unload("m", {}),
        [
            TAGS,
            names("/api/ps", "m:latest"),
            (touch(0), (200, {"done_reason": "unload"})),
            names("/api/ps", "m:latest"),
            PAUSE,
            names("/api/ps"),
        ],
        Done(True, "'m:latest' is unloaded", forgets=True),
    ),
    ("an option to unload", lambda driver: driver.unload("m", {"a": 1}), [], NO_OPTION),
    ("no sleep", lambda driver: driver.sleep(1), [], Unable("unload its models")),
    ("no adapters", lambda driver: driver.load_adapter("a", "/a"), [], Unable("ollama create")),
]


def router(**states):
    data = [{"id": name, "status": status} for name, status in states.items()]
    return ("GET /models", (200, {"data": data}))


LOADED, UNLOADED = {"value": "loaded"}, {"value": "unloaded"}

LLAMACPP = [
    (
        "a model",
        lambda driver: driver.load("m", {}),
        [
            router(m=UNLOADED),
            ('POST /models/load {"model": "m"}', (200, {"success": True})),
            PAUSE,
            router(m={"value": "loading"}),
            PAUSE,
            router(m=LOADED),
        ],
        Done(True, "'m' is loaded", forgets=True),
    ),
    (
        "broken",
        lambda driver: driver.load("m", {}),
        [
            router(m=UNLOADED),
            ('POST /models/load {"model": "m"}', (200, {"success": True})),
            PAUSE,
            router(m={"value": "unloaded", "failed": True, "exit_code": 1}),
        ],
        Refused(502, "'m' was to be loaded and is not ready", "exit code 1"),
    ),
    (
        "no router",
        lambda driver: driver.load("m", {}),
        [("GET /models", (200, {"data": [{"id": "m"}]}))],
        Unable("router mode"),
    ),
    (
        "away",
        lambda driver: driver.unload("m", {}),
        [router(m=LOADED), ('POST /models/unload {"model": "m"}', (200, {"success": True}))],
        Done(True, "'m' is unloaded", forgets=True),
    ),
    ("an option", lambda driver: driver.load("m", {"a": 1}), [], NO_OPTION),
    ("an option to unload", lambda driver: driver.unload("m", {"a": 1}), [], NO_OPTION),
]

OTHERS = [
    (
        "loaded",
        lambda driver: driver.load("m", {}),
        [models(BASE)],
        Done(False, "'m' is"),
    ),
    ("cannot", lambda driver: driver.load("n", {}), [models(BASE)], Unable("no way to do that")),
    ("no adapters", lambda driver: driver.load_adapter("a", "/a"), [], Unable("no way to do that")),
    ("no sleep", lambda driver: driver.sleep(1), [], Unable("no way to do that")),
    (
        "no list",
        lambda driver: driver.list_models(),
        [("GET /v1/models", (200, b"<html>"))],
        Refused(502, "/v1/models answers something that is no model list"),
    ),
    ("an option", lambda driver: driver.load("m", {"a": 1}), [], NO_OPTION),
]

CASES = [
    pytest.param(kind, *case[1:], id=f"{kind}: {case[0]}")
    for kind, cases in {
        "vllm": VLLM,
        "triton": TRITON,
        "sglang": SGLANG,
        "ollama": OLLAMA,
        "llamacpp": LLAMACPP,
        "openai": OTHERS,
    }.items()
    for case in cases
]


@pytest.mark.parametrize(("kind", "order", "script", "outcome"), CASES)
def test_conversations(kind, order, script, outcome):
    talk = order(driver_of(kind))
    if isinstance(outcome, Unable):
        with pytest.raises(Unable, match=str(outcome).replace("(", r"\(")):
            play(talk, script)
    elif isinstance(outcome, Refused):
        with pytest.raises(Refused) as raised:
            play(talk, script)
        assert vars(raised.value) == vars(outcome)
    elif isinstance(outcome, Done):
        done = play(talk, script)
        assert (done.changed, done.forgets) == (outcome.changed, outcome.forgets)
        assert done.message.startswith(outcome.message)
    else:
        assert play(talk, script) == outcome


CAPABLE = [
    ("vllm", [MAY_LOAD, AWAKE], {"load_adapter", "unload_adapter", "sleep", "wake"}, (0, 1, 2)),
    ("vllm", [MAY_LOAD, NO_DEV], {"load_adapter", "unload_adapter"}, ()),
    ("vllm", [("GET /v1/load_lora_adapter", NOT_FOUND), ASLEEP], {"sleep", "wake"}, (0, 1, 2)),
    ("sglang", [told()], {"load_adapter", "unload_adapter", "sleep", "wake"}, (2,)),
    ("sglang", [told(enable_weights_cpu_backup=1, enable_lora=0)], {"sleep", "wake"}, (1,)),
    ("sglang", [told(enable_memory_saver=0)], {"load_adapter", "unload_adapter"}, ()),
    ("ollama", [], {"load", "unload"}, ()),
    ("llamacpp", [router(m=UNLOADED)], {"load", "unload"}, ()),
    ("llamacpp", [("GET /models", NOT_FOUND)], set(), ()),
    ("openai", [], set(), ()),
    ("triton", [index(("m", "1", "LOADING"))], {"load", "unload"}, ()),
    ("triton", [index(READY), (MAY_IT, EMPTY)], {"load", "unload"}, ()),
    ("triton", [index(READY), (MAY_IT, NO_MODE)], set(), ()),
    ("triton", [("POST /v2/repository/index", RESTRICTED), (MAY_IT, RESTRICTED)], set(), ()),
]


@pytest.mark.parametrize(("kind", "script", "able", "levels"), CAPABLE)
def test_what_an_engine_can_do_is_found_out(kind, script, able, levels):
    found = play(driver_of(kind).discover(), script).described()
    assert found.pop("sleep_levels") == list(levels)
    assert {name for name, one in found.items() if one["yes"]} == able | {"cancel"}
    assert all(one["why"] for one in found.values() if not one["yes"])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"1",
        b'"no"',
        b'{"data": 1}',
        b'{"models": 1}',
        b"\xff",
        b"[[[1]]]",
    ],
)
@pytest.mark.parametrize("kind", ["vllm", "triton", "sglang", "ollama", "llamacpp", "openai"])
def test_nonsense_is_refused_or_nothing(kind, body):
    """Whatever an engine answers, only ControlErrors come of it."""
    driver = driver_of(kind)
    orders = (
        driver.discover,
        driver.list_models,
        lambda: driver.load("m", {}),
        lambda: driver.unload("m", {}),
        lambda: driver.load_adapter("a", "/a"),
        lambda: driver.sleep(2),
        driver.wake,
        lambda: driver.is_ready("m"),
    )
    for order in orders:
        for status in (200, 400, 404, 500):
            talk = order()
            try:
                next(talk)
                for _ in range(20):
                    talk.send(Reply(status, body))
            except (StopIteration, Refused, Unable):
                pass
