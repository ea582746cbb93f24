"""The one part of a multipart form (RFC 7578) that routing needs."""

__all__ = ["model_part"]


def model_part(body: bytes, content_type: str) -> str | None:
    """The value of the form part named `model`; None if there is none.

    ValueError if the body is no multipart form.
    """
    boundary = _parameter(content_type, "boundary")
    if not content_type.lower().startswith("multipart/form-data") or not boundary:
        raise ValueError("a multipart/form-data body with a boundary is expected here")
    for part in body.split(b"--" + boundary.encode("latin-1"))[1:]:
        head, found, value = part.partition(b"\r\n\r\n")
        if not found:
            continue
        for line in head.split(b"\r\n"):
            name, _, rest = line.partition(b":")
            if (
                name.strip().lower() == b"content-disposition"
                and _parameter(rest.decode("latin-1"), "name") == "model"
            ):
                return value.removesuffix(b"\r\n").decode("utf-8", "replace")
    return None


def _parameter(value: str, name: str) -> str:
    for piece in value.split(";")[1:]:
        key, _, content = piece.strip().partition("=")
        if key.strip().lower() == name:
            return content.strip().strip('"')
    return ""
