"""Two other parsers read what this one accepts in the same way; where it is stricter is listed.

A proxy is smuggled through where it and its neighbour disagree. So nothing may be accepted here
that a neighbour reads differently, and everything refused here alone must be refused on purpose.
"""

from dataclasses import dataclass, field

import h11
import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.http import _window
from gateway.http._head import Fault

BOUNDED = settings(max_examples=500, derandomize=True, deadline=None, database=None)


@dataclass
class Message:
    """What any of the parsers makes of one request."""

    method: bytes = b""
    target: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    size: int = field(default=0, compare=False)  # ours alone says where the message ends


def normal(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """As h11 states it; that its value of Transfer-Encoding is in lower case is h11's own."""
    name = name.lower()
    return name, value.lower() if name == b"transfer-encoding" else value


def ours(data: bytes) -> Message | Fault | None:
    head = _window.request(data)
    if not isinstance(head, _window.Head):
        return head
    body = _window.body([data[head.size :]], data[: head.size], True)
    if body.fault is not None:
        return body.fault
    if not body.ended:
        return None
    headers = [normal(name, value) for name, value, _ in head.fields]
    size = len(data) - len(body.leftover)
    return Message(head.method, head.target, headers, body.payload, size)


def by_h11(data: bytes) -> Message | str | None:
    """A message, the reason of a refusal, or None for an incomplete request."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=65536)
    connection.receive_data(data)
    message = Message()
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                return None
            if isinstance(event, h11.Request):
                message.method, message.target = event.method, event.target
                message.headers = [(bytes(name), bytes(value)) for name, value in event.headers]
            elif isinstance(event, h11.Data):
                message.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return message
    except h11.RemoteProtocolError as error:
        return str(error)


class Collector:
    """httptools' callbacks."""

    def __init__(self) -> None:
        self.message = Message()
        self.in_body = False
        self.ended = False

    def on_headers_complete(self) -> None:
        self.in_body = True

    def on_url(self, url: bytes) -> None:
        self.message.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.in_body:  # trailers come the same way
            self.message.headers.append(normal(name, value.rstrip(b" \t")))

    def on_body(self, body: bytes) -> None:
        self.message.body += body

    def on_message_complete(self) -> None:
        self.ended = True


def by_httptools(data: bytes) -> Message | str | None:
    collector = Collector()
    parser = httptools.HttpRequestParser(collector)
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        return str(error)
    collector.message.method = parser.get_method()
    return collector.message if collector.ended else None


# Requests that are nearly right: each part is mostly proper, sometimes one of the known tricks

PROPER_TARGETS = ["/", "/v1/completions", "/a?b=c&d", "/%41/..//x"]
ODD_TARGETS = ["*", "x", "/a#b", "/\x80", "/a|b", "http://a.example/", "/a b", ""]
ODD_LINES = [
    "Content-Length: 5",
    "Content-Length: 05",
    "Content-Length: +5",
    "Content-Length: 5, 5",
    "Content-Length: 5 5",
    "Content-Length:",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding:\tCHUNKED ",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: \x0bchunked",
    "Transfer-Encoding : chunked",
    "Host: b",
    "Host:",
    "Host: a/b",
    "Expect: 100-continue",
    "Expect: 200-ok",
    "Connection: close, x",
    "Connection: upgrade",
    "Upgrade: h2c",
    "A: b\rc",
    "A: b\nc",
    "A: \x00",
    "A: \x7f",
    " folded",
    "no colon",
    ": empty",
    "A\x80: b",
]
TOKENS = st.text("abcXYZ019-_!~.", min_size=1, max_size=12)
VALUES = st.text('abc XYZ019,;=\t\x80\xff"()', max_size=20)


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    proper = [
        f"{name}:{value}" for name, value in draw(st.lists(st.tuples(TOKENS, VALUES), max_size=4))
    ]
    odd = draw(st.lists(st.sampled_from(ODD_LINES), max_size=2))
    host = draw(st.sampled_from([["Host: a.example"]] * 6 + [["host:\ta:80 "], []]))
    return draw(st.permutations(host + proper + odd))


SIZES = st.sampled_from(["5"] * 6 + ["05", "5 ", "5;a=b", "0x5", "", "6", "4", "g"])
ENDS = st.sampled_from(["\r\n"] * 8 + ["\n", "\r", ""])


@st.composite
def bodies(draw: st.DrawFn) -> str:
    kind = draw(st.sampled_from(["none", "plain", "chunked", "chunked"]))
    if kind != "chunked":
        return "hello" if kind == "plain" else ""
    chunks = [f"{draw(SIZES)}{draw(ENDS)}hello{draw(ENDS)}" for _ in range(draw(st.integers(0, 2)))]
    trailer = draw(st.sampled_from([""] * 4 + ["A: b\r\n", "A\r\n", "A: b\n", " A: b\r\n"]))
    return "".join(chunks) + "0\r\n" + trailer + draw(ENDS)


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    method = draw(st.sampled_from(["GET", "POST", "POST", "HEAD", "OPTIONS", "CONNECT", "G T"]))
    target = draw(st.sampled_from(PROPER_TARGETS * 4 + ODD_TARGETS))
    version = draw(st.sampled_from(["HTTP/1.1"] * 8 + ["HTTP/1.0", "HTTP/1.2", "http/1.1"]))
    fields = draw(lines())
    body = draw(bodies())
    if draw(st.booleans()):
        framing = {"": [], "hello": ["Content-Length: 5"]}.get(body, ["Transfer-Encoding: chunked"])
        fields = fields + framing
    head = [f"{method} {target} {version}", *fields]
    return ("\r\n".join(head) + "\r\n\r\n" + body).encode("latin-1")


def get(*fields: bytes, line: bytes = b"GET / HTTP/1.1", host: bytes = b"Host: a") -> bytes:
    return b"\r\n".join([line, host, *fields]) + b"\r\n\r\n"


CHUNKED = b"Transfer-Encoding: chunked"

# The only faults for which h11 may accept a request: why we do not, and one that shows it.
STRICTER_THAN_H11 = {
    Fault.BAD_METHOD: (
        "CONNECT asks for a tunnel; and no method has more than 24 bytes",
        get(line=b"CONNECT / HTTP/1.1"),
    ),
    Fault.BAD_TARGET: (
        "absolute-form, relative targets, fragments: this is no forward proxy",
        get(line=b"GET http://a/ HTTP/1.1"),
    ),
    Fault.BAD_VERSION: ("h11 takes any minor version", get(line=b"GET / HTTP/1.2")),
    Fault.BAD_HOST: (
        "an empty Host, or one that is no host[:port], names nobody",
        get(host=b"Host:"),
    ),
    Fault.BAD_FIELD_VALUE: (
        "RFC 9110 5.5: other controls are invalid (h11 takes all but NUL and white space); more "
        "than 32 Connection options cost more than they say",
        get(b"A: \x7f"),
    ),
    Fault.OBSOLETE_FOLD: ("RFC 9112 5.2 allows to unfold and h11 does", get(b"A: b", b" c")),
    Fault.BARE_LF: (
        "RFC 9112 2.2 allows LF alone as the end of a line and h11 takes it",
        get().replace(b"\r\n", b"\n"),
    ),
    Fault.BAD_CONTENT_LENGTH: (
        "RFC 9110 8.6 allows to read a list of equal lengths as one; 19 and 20 digits",
        get(b"Content-Length: 0, 0"),
    ),
    Fault.TWO_CONTENT_LENGTHS: (
        "likewise equal lengths in several fields",
        get(b"Content-Length: 0", b"Content-Length: 0"),
    ),
    Fault.LENGTH_AND_CHUNKED: (
        "RFC 9112 6.1 allows to let Transfer-Encoding win",
        get(CHUNKED, b"Content-Length: 0") + b"0\r\n\r\n",
    ),
    Fault.CHUNKED_IN_HTTP_1_0: (
        "RFC 9112 6.1: such framing is to be treated as faulty",
        get(CHUNKED, line=b"POST / HTTP/1.0") + b"0\r\n\r\n",
    ),
    Fault.BAD_EXPECTATION: (
        "RFC 9110 10.1.1 allows the 417; h11 leaves it to its user",
        get(b"Expect: 200-ok"),
    ),
    Fault.CHUNK_EXTENSION: (
        "nobody uses them, and parsers differ on where they end",
        get(CHUNKED) + b"0;a\r\n\r\n",
    ),
    Fault.BAD_CHUNK_SIZE: (
        "blanks after the size; 9 digits and more (h11: 20)",
        get(CHUNKED) + b"0 \r\n\r\n",
    ),
}


@pytest.mark.parametrize("fault", STRICTER_THAN_H11)
def test_stricter_than_h11(fault: Fault) -> None:
    _, data = STRICTER_THAN_H11[fault]
    assert ours(data) == fault
    assert isinstance(by_h11(data), Message)


@BOUNDED
@given(requests())
def test_what_we_accept_h11_reads_the_same(data: bytes) -> None:
    mine = ours(data)
    if isinstance(mine, Message):
        assert by_h11(data[: mine.size]) == mine


@BOUNDED
@given(requests())
def test_what_we_accept_httptools_reads_the_same(data: bytes) -> None:
    mine = ours(data)
    if isinstance(mine, Message):
        assert by_httptools(data[: mine.size]) == mine


@BOUNDED
@given(requests())
def test_what_we_alone_refuse_is_on_the_list(data: bytes) -> None:
    mine = ours(data)
    if isinstance(mine, Fault) and isinstance(by_h11(data), Message):
        assert mine in STRICTER_THAN_H11
