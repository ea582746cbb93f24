"""Finding the model in an upload."""

import re

import pytest

from gateway.proxy.multipart import model_part

FORM = (
    b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n'
    b'Content-Type: audio/wav\r\n\r\n\x00\x01--YY\r\n\r\nname="model"\r\n'
    b"--XX\r\ncontent-disposition: form-data; name=model\r\n\r\nwhisper\r\n--XX--\r\n"
)


@pytest.mark.parametrize(
    ("body", "content_type", "model"),
    [
        (FORM, "multipart/form-data; boundary=XX", "whisper"),
        (FORM, 'Multipart/Form-Data; charset=utf-8; boundary="XX"', "whisper"),
        (FORM.replace(b"name=model", b"name=other"), "multipart/form-data; boundary=XX", None),
        (b"", "multipart/form-data; boundary=XX", None),
    ],
)
def test_model_part(body: bytes, content_type: str, model: str | None) -> None:
    found = model_part(body, content_type)
    if found is None:
        assert model is None
        return
    value, at = found
    assert value.decode() == model
    assert body[at : at + len(value)] == value


def form(*heads: str, mark: str = "--XX") -> bytes:
    parts = [f"{mark}\r\n{head}\r\n\r\nm{n}\r\n" for n, head in enumerate(heads)]
    return ("".join(parts) + f"{mark}--\r\n").encode()


MODEL = "Content-Disposition: form-data; name=model"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (form(MODEL, MODEL), "two parts named 'model'"),
        (form(MODEL, "Content-Disposition: form-data; name*=utf-8''model"), "RFC 2231"),
        (form("Content-Disposition: form-data;\r\n name=model"), "folded"),
        (form("X: y\nContent-Disposition: form-data; name=model"), "bare line ends"),
        (form(MODEL, f"{MODEL}2\r\n{MODEL}"), "two Content-Disposition"),
        (form("X: " + 5000 * "y" + "\r\n" + MODEL), "more than 4096 bytes"),
        (form(*["X: y"] * 65, MODEL), "more than 64 parts"),
        (form(MODEL)[:-12], "without an end"),
        (form(MODEL).replace(b"--XX\r\n", b"--XXX\r\n"), "behind a boundary"),
    ],
)
def test_a_form_that_could_be_read_in_two_ways_is_refused(body: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        model_part(body, "multipart/form-data; boundary=XX")


@pytest.mark.parametrize(
    "head",
    [
        'Content-Disposition: form-data; filename="a; name=other"; name="model"',
        "X: name=other\r\nContent-Disposition: form-data; name = model",
    ],
)
def test_names_are_read_as_servers_read_them(head: str) -> None:
    assert model_part(form(head), "multipart/form-data; boundary=XX") == (
        b"m0",
        form(head).index(b"m0"),
    )


def test_a_boundary_stands_at_the_beginning_of_a_line() -> None:
    body = form("Content-Disposition: form-data; name=file").replace(
        b"m0", b"x--XX\r\n" + MODEL.encode() + b"\r\n\r\nfake\n--XX\r\n"
    )
    assert model_part(body, "multipart/form-data; boundary=XX") is None


@pytest.mark.parametrize("content_type", ["", "application/json", "multipart/form-data"])
def test_what_is_no_form_is_said(content_type: str) -> None:
    with pytest.raises(ValueError, match="multipart/form-data"):
        model_part(FORM, content_type)
