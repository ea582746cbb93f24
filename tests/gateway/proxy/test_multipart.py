"""Finding the model in an upload."""

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


@pytest.mark.parametrize("content_type", ["", "application/json", "multipart/form-data"])
def test_what_is_no_form_is_said(content_type: str) -> None:
    with pytest.raises(ValueError, match="multipart/form-data"):
        model_part(FORM, content_type)
