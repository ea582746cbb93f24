"""The one part of a multipart form (RFC 7578) that routing needs.

Engines read forms leniently, and of two parts with one name the last: so whatever could be read in
two ways is refused, or a key could name one model to us and another to the engine.
"""

from email.message import Message

__all__ = ["model_part"]

# An upload has a handful of parts with heads of some hundred bytes; reading them holds up every
# stream of the worker.
MAX_PARTS = 64
MAX_PART_HEAD_BYTES = 4096


def model_part(body: bytes, content_type: str) -> tuple[bytes, int] | None:
    """The value of the form part named `model`, and where it begins; None if there is none.

    ValueError if the body is no multipart form, or could be read in two ways.
    """
    kind, boundary = _parameter("Content-Type", content_type, "boundary")
    if kind != "multipart/form-data" or not boundary:
        raise ValueError("a multipart/form-data body with a boundary is expected here")
    mark = b"\r\n--" + boundary.encode("latin-1")
    found = None
    if body and not body.startswith(mark[2:]):
        raise ValueError("the form does not begin with its boundary")
    start = len(mark) - 2
    for _ in range(MAX_PARTS):
        if not body or body.startswith(b"--", start):
            return found
        at = body.find(mark, start)
        head_end = body.find(b"\r\n\r\n", start, start + MAX_PART_HEAD_BYTES)
        if not start <= head_end <= at:
            raise ValueError(
                "the form has a part without an end, or with a head of more than "
                f"{MAX_PART_HEAD_BYTES} bytes"
            )
        if _name(body[start:head_end]) == "model":
            if found is not None:
                raise ValueError("the form has two parts named 'model'")
            found = body[head_end + 4 : at], head_end + 4
        start = at + len(mark)
    raise ValueError(f"the form has more than {MAX_PARTS} parts")


def _name(head: bytes) -> str:
    """What a part's head calls it."""
    names = []
    first, *lines = head.split(b"\r\n")
    if first.strip(b" \t"):
        raise ValueError("the form has something behind a boundary")
    for line in lines:
        if b"\n" in line or b"\r" in line or line[:1] in (b" ", b"\t"):
            raise ValueError("the form has a part whose head is folded, or has bare line ends")
        key, _, value = line.partition(b":")
        if key.strip().lower() == b"content-disposition":
            names.append(_parameter("Content-Disposition", value.decode("latin-1"), "name")[1])
    if len(names) > 1:
        raise ValueError("the form has a part with two Content-Disposition lines")
    return names[0] if names else ""


def _parameter(header: str, value: str, name: str) -> tuple[str, str]:
    """(the value before the first ';' in lower case, a parameter or '')."""
    message = Message()
    message[header] = value.strip()
    found = [value for key, value in message.get_params([], header) if key.lower() == name]
    if len(found) > 1:
        raise ValueError(f"the form names '{name}' twice in one {header}")
    if found and not isinstance(found[0], str):
        raise ValueError(f"the form has a '{name}*' in the encoding of RFC 2231")
    first = value.partition(";")[0].strip().lower()
    return first, found[0] if found else ""
