"""What a parsed head says, and the limits of heads."""

import random

import pytest

from gateway.http import _window
from gateway.http._head import Fault, FieldId

REQUEST = b"POST /v1/completions?x=1 HTTP/1.1\r\nHost: a.example\r\n"
MAX_FIELDS = 100
MAX_HEAD_BYTES = 32768
MAX_TARGET_BYTES = 8192


def request(*lines: bytes, minor: int = 1) -> _window.Head:
    head = _window.request(
        b"POST /v1/completions?x=1 HTTP/1.%d\r\nHost: a.example\r\n" % minor
        + b"".join(line + b"\r\n" for line in lines)
        + b"\r\n"
    )
    assert isinstance(head, _window.Head), head
    return head


def response(*lines: bytes, status: bytes = b"200 OK", minor: int = 1) -> _window.Head:
    head = _window.response(
        b"HTTP/1.%d %s\r\n" % (minor, status) + b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    )
    assert isinstance(head, _window.Head), head
    return head


def ids(head: _window.Head) -> dict[bytes, FieldId]:
    return {name: field_id for name, _, field_id in head.fields}


def test_a_request() -> None:
    head = request(
        b"content-TYPE:application/json", b"A: \t b c\t ", b"B:", b"Content-Length: 1234"
    )
    assert (head.method, head.target, head.path) == (
        b"POST",
        b"/v1/completions?x=1",
        b"/v1/completions",
    )
    assert (head.minor, head.status, head.content_length, head.chunked) == (1, 0, 1234, False)
    assert head.fields == [
        (b"Host", b"a.example", FieldId.HOST),
        (b"content-TYPE", b"application/json", FieldId.CONTENT_TYPE),
        (b"A", b"b c", FieldId.OTHER),
        (b"B", b"", FieldId.OTHER),
        (b"Content-Length", b"1234", FieldId.CONTENT_LENGTH),
    ]
    assert head.indices == {"host": 0, "content_type": 1}


def test_a_response() -> None:
    head = response(
        b"Server: uvicorn", b"Transfer-Encoding: chunked", status=b"503 Service Unavailable"
    )
    assert (head.status, head.minor, head.chunked, head.content_length) == (503, 1, True, None)
    assert (head.method, head.target, head.path) == (b"", b"", b"")
    assert ids(head) == {b"Server": FieldId.SERVER, b"Transfer-Encoding": FieldId.TRANSFER_ENCODING}


def test_fields_for_requests_mean_nothing_in_a_response() -> None:
    head = response(b"Host: /", b"Host: b", b"Expect: x", b"Connection: upgrade", b"Upgrade: a")
    assert (head.indices, head.expect_continue, head.upgrade) == ({}, False, False)


KNOWN = {
    b"Content-Encoding": FieldId.CONTENT_ENCODING,
    b"Authorization": FieldId.AUTHORIZATION,
    b"X-API-Key": FieldId.X_API_KEY,
    b"X-Request-Id": FieldId.X_REQUEST_ID,
    b"Origin": FieldId.ORIGIN,
    b"Date": FieldId.DATE,
    b"Server": FieldId.SERVER,
    b"Cookie": FieldId.COOKIE,
    b"Keep-Alive": FieldId.KEEP_ALIVE,
    b"Proxy-Connection": FieldId.PROXY_CONNECTION,
    b"Proxy-Authenticate": FieldId.PROXY_AUTHENTICATE,
    b"Proxy-Authorization": FieldId.PROXY_AUTHORIZATION,
    b"TE": FieldId.TE,
    b"Trailer": FieldId.TRAILER,
    b"Upgrade": FieldId.UPGRADE,
    b"HTTP2-Settings": FieldId.HTTP2_SETTINGS,
    b"X-Headgate-": FieldId.X_HEADGATE,
    b"X-Headgate-Endpoint": FieldId.X_HEADGATE,
    b"X-Headgate-Priority": FieldId.X_HEADGATE_PRIORITY,
    b"X-data-parallel-rank": FieldId.X_DATA_PARALLEL_RANK,
    b"X-Vllm-Priority": FieldId.X_VLLM_PRIORITY,
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_names_in_any_case(name: bytes) -> None:
    for spelling in (name, name.lower(), name.upper(), name.swapcase()):
        assert ids(request(spelling + b": a"))[spelling] == KNOWN[name]


@pytest.mark.parametrize(
    "name", [*(k for k in KNOWN if not k.startswith(b"X-Headgate-")), b"Expect", b"Connection"]
)
def test_names_one_byte_off_are_other_names(name: bytes) -> None:
    near = [name + b"s", name[:-1], b"z" + name[1:], name[:-1] + b"0", name.replace(b"-", b"_")]
    middle = len(name) // 2
    near.append(name[:middle] + b"~" + name[middle + 1 :])
    for other in near:
        if other and other != name:
            assert ids(request(other + b": a"))[other] == FieldId.OTHER, other


def test_the_first_of_several_is_indexed() -> None:
    head = request(b"X-API-Key: 1", b"Authorization: a", b"authorization: b", b"x-api-key: 2")
    assert head.indices == {"host": 0, "api_key": 1, "authorization": 2}


@pytest.mark.parametrize(
    ("lines", "minor", "close"),
    [
        ([], 1, False),
        ([], 0, True),
        ([b"Connection: close"], 1, True),
        ([b"connection: CLOSE"], 1, True),
        ([b"Connection: keep-alive"], 1, False),
        ([b"Connection: Keep-Alive"], 0, False),
        ([b"Connection: keep-alive, close"], 1, True),
        ([b"Connection: keep-alive, close"], 0, True),
        ([b"Connection: close", b"Connection: keep-alive"], 0, True),
        ([b"Connection: ,, a ,\tclose"], 1, True),
        ([b"Connection: closed, xclose, clos"], 1, False),
        ([b"Connection: close x"], 1, False),
        ([b"Connection: "], 1, False),
        ([b"Connection: a", b"Connection: b,close"], 1, True),
        ([b"Proxy-Connection: close", b"Keep-Alive: timeout=5"], 1, False),
    ],
)
def test_close(lines: list[bytes], minor: int, close: bool) -> None:
    assert request(*lines, minor=minor).close is close
    assert response(*lines, minor=minor).close is close


@pytest.mark.parametrize(
    ("lines", "minor", "upgrade"),
    [
        ([b"Connection: upgrade", b"Upgrade: websocket"], 1, True),
        ([b"Upgrade: websocket", b"Connection: keep-alive, Upgrade"], 1, True),
        ([b"Upgrade: websocket"], 1, False),
        ([b"Connection: upgrade"], 1, False),
        ([b"Connection: upgrade", b"Upgrade:"], 1, False),
        ([b"Connection: upgrade", b"Upgrade: h2c"], 1, False),
        ([b"Connection: upgrade", b"Upgrade: H2C , h2c"], 1, False),
        ([b"Connection: upgrade", b"Upgrade: h2c, websocket"], 1, True),
        ([b"Connection: upgrade", b"Upgrade: h2c", b"Upgrade: websocket"], 1, True),
        ([b"Connection: upgrade", b"Upgrade: h2"], 1, True),
        ([b"Connection: upgrade", b"Upgrade: websocket"], 0, False),
    ],
)
def test_upgrade(lines: list[bytes], minor: int, upgrade: bool) -> None:
    assert request(*lines, minor=minor).upgrade is upgrade


@pytest.mark.parametrize(
    ("line", "minor", "expected"),
    [
        (b"Expect: 100-continue", 1, True),
        (b"Expect: 100-CONTINUE", 1, True),
        (b"Expect: 100-continue", 0, False),
        (b"Expect: x", 0, False),
        (b"A: 100-continue", 1, False),
    ],
)
def test_expect(line: bytes, minor: int, expected: bool) -> None:
    assert request(line, minor=minor).expect_continue is expected


def test_connection_names_fields() -> None:
    head = request(
        b"X-Secret: 1",
        b"Connection: x-SECRET, TE, Host, Content-Length, Content-Type, Authorization, absent",
        b"x-secret: 2",
        b"TE: trailers",
        b"Content-Length: 3",
        b"Content-Type: a/b",
        b"Authorization: c",
        b"Cookie: d",
        b"X-Secrets: 3",
        b"Connection: cookie",
    )
    assert [field_id for *_, field_id in head.fields] == [
        FieldId.HOST,
        FieldId.NAMED_BY_CONNECTION,
        FieldId.CONNECTION,
        FieldId.NAMED_BY_CONNECTION,
        FieldId.TE,
        FieldId.CONTENT_LENGTH,
        FieldId.CONTENT_TYPE,
        FieldId.AUTHORIZATION,
        FieldId.NAMED_BY_CONNECTION,
        FieldId.OTHER,
        FieldId.CONNECTION,
    ]


def test_connection_cannot_unchunk() -> None:
    head = request(b"Connection: transfer-encoding", b"Transfer-Encoding: chunked")
    assert head.chunked
    assert ids(head)[b"Transfer-Encoding"] == FieldId.TRANSFER_ENCODING


def test_connection_options_are_counted() -> None:
    assert request(b"Connection: " + b",".join([b"a"] * 32))
    lines = b"Connection: a,b\r\n" * 16
    assert isinstance(_window.request(REQUEST + lines + b"\r\n"), _window.Head)
    assert _window.request(REQUEST + lines + b"Connection: c\r\n\r\n") == Fault.BAD_FIELD_VALUE


# Limits: the last that passes and the first that does not


def sized(size: int) -> bytes:
    head = REQUEST + b"A: " + b"x" * (size - len(REQUEST) - 7) + b"\r\n\r\n"
    assert len(head) == size
    return head


def test_head_bytes() -> None:
    head = _window.request(sized(MAX_HEAD_BYTES) + b"body")
    assert isinstance(head, _window.Head)
    assert head.size == MAX_HEAD_BYTES
    assert _window.request(sized(MAX_HEAD_BYTES + 1)) == Fault.HEAD_TOO_LARGE
    assert _window.request(sized(200_000)) == Fault.HEAD_TOO_LARGE


def test_an_endless_head_is_refused_as_soon_as_it_cannot_fit() -> None:
    assert _window.head_end(b"x" * (MAX_HEAD_BYTES - 1)) == 0
    assert _window.head_end(b"x" * MAX_HEAD_BYTES) == Fault.HEAD_TOO_LARGE
    assert _window.head_end(b"x" * MAX_HEAD_BYTES, MAX_HEAD_BYTES - 1) == Fault.HEAD_TOO_LARGE


def test_fields() -> None:
    line = b"A: b\r\n"
    head = _window.request(REQUEST + line * (MAX_FIELDS - 1) + b"\r\n")
    assert isinstance(head, _window.Head)
    assert len(head.fields) == MAX_FIELDS
    assert _window.request(REQUEST + line * MAX_FIELDS + b"\r\n") == Fault.TOO_MANY_FIELDS
    assert _window.request(REQUEST + line * 6000 + b"\r\n") == Fault.HEAD_TOO_LARGE


def test_target_bytes() -> None:
    def get(size: int) -> _window.Head | Fault | None:
        return _window.request(
            b"GET /" + b"x" * (size - 1) + b" HTTP/1.1\r\nHost: a.example\r\n\r\n"
        )

    head = get(MAX_TARGET_BYTES)
    assert isinstance(head, _window.Head)
    assert len(head.target) == MAX_TARGET_BYTES
    assert get(MAX_TARGET_BYTES + 1) == Fault.TARGET_TOO_LONG


@pytest.mark.parametrize("code", range(256))
def test_every_octet_in_every_place(code: int) -> None:
    """The classes of octets, at each distance from the words that are read eight at a time."""
    octet = bytes([code])
    is_text = (code >= 0x20 and code != 0x7F) or code == 9
    is_token = octet.isalnum() or octet in b"!#$%&'*+-.^_`|~"
    for before in range(18):
        for after in (0, 1, 7, 9):
            padding, rest = b"x" * before, b"y" * after
            value = padding + octet + rest
            head = _window.request(REQUEST + b"A: " + value + b"\r\n\r\n")
            assert isinstance(head, _window.Head) is is_text
            if isinstance(head, _window.Head):
                assert head.fields[1][1] == value.strip(b" \t")
            head = _window.request(REQUEST + padding + octet + rest + b": b\r\n\r\n")
            if octet == b":" and before:
                assert isinstance(head, _window.Head)
            else:
                assert isinstance(head, _window.Head) is is_token
            target = b"/" + padding + octet + rest
            head = _window.request(b"GET " + target + b" HTTP/1.1\r\nHost: a\r\n\r\n")
            assert isinstance(head, _window.Head) is (0x20 < code < 0x7F and octet != b"#")


# Whatever the bytes, the parsers answer


def test_mutated_heads_never_break_the_parsers() -> None:
    rng = random.Random(1)
    seeds = [
        REQUEST + b"Connection: close, a\r\nTransfer-Encoding: chunked\r\nA: b\r\n\r\n",
        REQUEST + b"Content-Length: 12\r\nExpect: 100-continue\r\nX-Api-Key: k\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 5\r\n\r\n",
    ]
    alphabet = b"\r\n :\t\0,;aZ09\x7f\x80\xff"
    for _ in range(20_000):
        data = bytearray(rng.choice(seeds))
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(len(data))
            data[at : at + rng.randint(0, 3)] = bytes(rng.choices(alphabet, k=rng.randint(0, 3)))
        text = bytes(data)
        for parse in (_window.parse_request_unmeasured, _window.parse_response_unmeasured):
            result = parse(text)
            assert isinstance(result, _window.Head | Fault)
            if isinstance(result, _window.Head):
                assert result.size <= len(text)


def test_a_parser_that_is_given_no_whole_head_refuses() -> None:
    for size in range(len(REQUEST) + 2):
        assert _window.parse_request_unmeasured(REQUEST[:size]) == Fault.BAD_REQUEST_LINE
        assert _window.parse_response_unmeasured(REQUEST[:size]) == Fault.BAD_STATUS_LINE
