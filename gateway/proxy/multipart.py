"""The one part of a multipart form (RFC 7578) that routing needs."""

__all__ = ["model_part"]

# An upload has a handful of parts with heads of some hundred bytes; reading them holds up every
# stream of the worker.
MAX_PARTS = 64
MAX_PART_HEAD_BYTES = 4096


def model_part(body: bytes, content_type: str) -> tuple[bytes, int] | None:
    """The value of the form part named `model`, and where it begins; None if there is none.

    ValueError if the body is no multipart form.
    """
    boundary = _parameter(content_type, "boundary")
    if not content_type.lower().startswith("multipart/form-data") or not boundary:
        raise ValueError("a multipart/form-data body with a boundary is expected here")
    mark = b"--" + boundary.encode("latin-1")
    at = body.find(mark)
    for _ in range(MAX_PARTS):
        if at < 0:
            return None
        start = at + len(mark)
        at = body.find(mark, start)
        head_end = body.find(b"\r\n\r\n", start, start + MAX_PART_HEAD_BYTES)
        if 0 <= head_end < at and _names_model(body[start:head_end]):
            return body[head_end + 4 : at].removesuffix(b"\r\n"), head_end + 4
    raise ValueError(f"the form has more than {MAX_PARTS} parts before one named 'model'")


def _names_model(head: bytes) -> bool:
    for line in head.split(b"\r\n"):
        name, _, rest = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            return _parameter(rest.decode("latin-1"), "name") == "model"
    return False


def _parameter(value: str, name: str) -> str:
    for piece in value.split(";")[1:]:
        key, _, content = piece.strip().partition("=")
        if key.strip().lower() == name:
            return content.strip().strip('"')
    return ""
