"""What is read of KServe's v2 protocol: paths, prompts in JSON and in tensors, protobuf fields."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.kserve import Tensors, asks_for_ready, infer_tensors, read_model_path
from engines.kserve import read_repository_path as read_repository
from engines.kserve_wire import (
    Infer,
    is_decoupled,
    read_infer,
    read_name,
    read_repository_request,
    read_stream_error,
    renamed,
    write_index,
    write_stream_error,
)
from tests.e2e.kserve import config, failure, infer, message, part

PATHS = {
    "/v2/models/m": ("m", "", ""),
    "/v2/models/m/ready": ("m", "ready", "/ready"),
    "/v2/models/m/versions/3": ("m", "", "/versions/3"),
    "/v2/models/m/versions/3/infer": ("m", "infer", "/versions/3/infer"),
    "/v2/models/a%20b/generate": ("a b", "generate", "/generate"),
    "/v2/models/stats/config": ("stats", "config", "/config"),
    "/v2/models/stats": None,
    "/v2/models/m/": None,
    "/v2/models//infer": None,
    "/v2/models/m/infer/x": None,
    "/v2/models/m/trace/setting": None,
    "/v2/models/m/unknown": None,
    "/v2/models/m/versions/3/versions/4": None,
}


@pytest.mark.parametrize("path", PATHS)
def test_model_path(path):
    found = read_model_path(path)
    assert (found and (found.model, found.verb, found.tail)) == PATHS[path]


def test_model_path_for_another_model():
    found = read_model_path("/v2/models/alias/versions/1/infer")
    assert found.target("its name", "?x=1") == "/v2/models/its%20name/versions/1/infer?x=1"


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("/v2/repository/models/m/load", ("m", "load")),
        ("/v2/repository/models/a%20b/unload", ("a b", "unload")),
        ("/v2/repository/models/m/reload", None),
        ("/v2/repository/models/load", None),
    ],
)
def test_repository_path(path, found):
    assert read_repository(path) == found


@pytest.mark.parametrize(
    ("body", "wants"),
    [(None, False), (b"", False), (b"{}", False), (b'{"ready":true}', True), (b"[", False)],
)
def test_index_of_ready_models(body, wants):
    assert asks_for_ready(body) is wants


def raw(text):
    return len(text).to_bytes(4, "little") + text


def json_infer(*inputs, tail=b""):
    header = json.dumps({"inputs": inputs}).encode()
    return header + tail, len(header) if tail else None


BODIES = {
    "data": (json_infer({"name": "text_input", "data": ["Grüße"]}), Tensors("Grüße".encode())),
    "brackets": (json_infer({"name": "text_input", "data": [["a"], ["b"]]}), Tensors(b"a")),
    "others": (
        json_infer(
            {"name": "max_tokens", "data": [[7]]},
            {"name": "text_input", "data": ["a"]},
            {"name": "stream", "data": [True]},
        ),
        Tensors(b"a", 7, True),
    ),
    "binary": (
        json_infer(
            {"name": "other", "parameters": {"binary_data_size": 3}},
            {"name": "text_input", "parameters": {"binary_data_size": 5}},
            {"name": "request_output_len", "parameters": {"binary_data_size": 4}},
            tail=b"xyz" + raw(b"a") + b"\x09\0\0\0",
        ),
        Tensors(b"a", 9),
    ),
    "no prompt": (json_infer({"name": "A", "data": [1.0]}), Tensors()),
    "sequence": ((b'{"parameters":{"sequence_id":"s"}}', None), Tensors(sequence="s")),
    "no JSON": ((b'{"text_input', None), Tensors()),
    "no inputs": ((b'{"text_input": 1}', None), Tensors()),
    "wrong types": (json_infer({"name": "text_input", "data": {"a": 1}}), Tensors()),
    "negative": (json_infer({"name": "max_tokens", "data": [-1]}), Tensors()),
    "cut off": (
        json_infer({"name": "text_input", "parameters": {"binary_data_size": 99}}, tail=raw(b"a")),
        Tensors(b"a"),
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_prompt_of_infer(name):
    (body, header_bytes), found = BODIES[name]
    assert infer_tensors(body, header_bytes) == found
    assert infer_tensors(memoryview(body), header_bytes) == found


@given(st.binary(), st.none() | st.integers(0, 100))
def test_no_body_breaks_the_reader(body, header_bytes):
    infer_tensors(b'{"inputs":[{"name":"text_input",' + body, header_bytes)


CONTENTS = message(
    (1, "m"),
    (5, message((1, "text_input"), (5, message((8, "prompt"))))),
    (5, message((1, "stream"), (5, message((1, b"\x01"))))),
    (5, message((1, "max_tokens"), (5, message((2, b"\x80\x01"))))),
)

MESSAGES = {
    "empty": (b"", Infer()),
    "raw": (
        infer("m", "prompt", "id", 7),
        Infer("m", "id", Tensors(b"prompt", is_stream=True, sequence=7)),
    ),
    "contents": (CONTENTS, Infer("m", tensors=Tensors(b"prompt", 128, True))),
    "another name": (renamed(infer("m"), "n"), Infer("n", tensors=Tensors(is_stream=True))),
    "shared memory": (
        message((1, "m"), (5, message((1, "text_input")))),
        Infer("m"),
    ),
    "unknown fields": (message((1, "m"), (99, "x"), (98, 5)), Infer("m")),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_infer_request(name):
    request, found = MESSAGES[name]
    assert read_infer(request) == found


@pytest.mark.parametrize("request_", [b"\xff", b"\x0a\x05ab", b"\x0b", b"\x0a\xff\xff\xff\xff\xff"])
def test_no_protobuf(request_):
    with pytest.raises(ValueError, match=r"a (field|number) "):
        read_infer(request_)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    for read in (read_infer, read_name, read_repository_request, is_decoupled):
        with contextlib.suppress(ValueError):
            read(data)


@given(st.text(), st.text(), st.text(), st.integers(0, 1 << 62))
def test_what_is_written_is_read(model, text, id, sequence):
    found = read_infer(infer(model, text, id, sequence))
    assert (found.model, found.id, found.tensors.sequence) == (model, id, sequence)
    assert found.tensors.text == text.encode()


def test_stream_errors():
    assert read_stream_error(part("a", "text")) == ""
    assert read_stream_error(failure("words", "a")) == "words"
    assert write_stream_error("words", "a") == failure("words", "a")
    assert write_stream_error("words", "") == failure("words")


def test_config_and_index():
    assert [is_decoupled(config(value)) for value in (True, False)] == [True, False]
    assert is_decoupled(message((1, message((1, "m"), (15, b"")))))
    entry = {"name": "m", "version": "1", "state": "READY"}
    assert write_index([entry, {"name": "n"}]) == message(
        (1, message((1, "m"), (2, "1"), (3, "READY"))), (1, message((1, "n")))
    )


def test_repository_request():
    config = message((1, "config"), (2, message((3, '{"backend":"x"}'))))
    file = message((1, "file:1/model.json"), (2, message((4, b"\x00\x01"))))
    flag = message((1, "unload_dependents"), (2, message((1, 1))))
    request = message((2, "m"), (3, config), (3, file), (3, flag))
    assert read_repository_request(request) == (
        "m",
        {"config": '{"backend":"x"}', "file:1/model.json": "AAE=", "unload_dependents": True},
    )
