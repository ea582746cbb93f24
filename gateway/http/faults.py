"""What a peer is told of each `Fault`: one table, and the only place with these words.

The status is what a client gets for a fault in its request. The same fault in an engine's
response is never the client's doing: the caller answers 502 and logs the reason.
"""

from typing import NamedTuple

from gateway.http._head import Fault

__all__ = ["REFUSALS", "Refusal"]


class Refusal(NamedTuple):
    """HTTP status, the error's `code`, and one sentence: what is wrong and what to do."""

    status: int
    code: str
    message: str


# RFC 9110 15.5 and 15.6; 431: RFC 6585 5.
REFUSALS: dict[Fault, Refusal] = {
    Fault.HEAD_TOO_LARGE: Refusal(
        431, "head_too_large", "The head is larger than 32768 bytes: send fewer or shorter headers."
    ),
    Fault.TOO_MANY_FIELDS: Refusal(
        431, "too_many_headers", "There are more than 100 headers: send fewer."
    ),
    Fault.BAD_REQUEST_LINE: Refusal(
        400,
        "bad_request_line",
        "The first line is not 'METHOD /path HTTP/1.1': send those three words, one space between.",
    ),
    Fault.BAD_METHOD: Refusal(
        400,
        "bad_method",
        "The method is CONNECT, longer than 24 bytes or not a token: use one like GET or POST.",
    ),
    Fault.BAD_TARGET: Refusal(
        400,
        "bad_target",
        "The target is not a path in visible ASCII: send '/path?query', percent-encoded, without "
        "scheme, host or fragment.",
    ),
    Fault.TARGET_TOO_LONG: Refusal(
        414, "target_too_long", "The target is longer than 8192 bytes: send the data in the body."
    ),
    Fault.BAD_VERSION: Refusal(
        505, "bad_version", "The protocol is neither HTTP/1.1 nor HTTP/1.0: use one of them."
    ),
    Fault.BAD_STATUS_LINE: Refusal(
        400,
        "bad_status_line",
        "The first line of the response is not 'HTTP/1.1 200 OK': send a version and three digits.",
    ),
    Fault.BAD_FIELD_NAME: Refusal(
        400,
        "bad_header_name",
        "A header's name is empty, is no token or is not followed at once by a colon: send "
        "'Name: value'.",
    ),
    Fault.BAD_FIELD_VALUE: Refusal(
        400,
        "bad_header_value",
        "A header's value holds a control character, or Connection lists more than 32 options: "
        "remove them.",
    ),
    Fault.OBSOLETE_FOLD: Refusal(
        400,
        "folded_header",
        "A header line begins with white space: send each header on a single line.",
    ),
    Fault.BARE_LF: Refusal(
        400,
        "bare_lf",
        "A line ends in a line feed without a carriage return before it: end lines in CRLF.",
    ),
    Fault.BARE_CR: Refusal(
        400,
        "bare_cr",
        "A carriage return is not followed by a line feed: end lines in CRLF and send it nowhere "
        "else.",
    ),
    Fault.NO_HOST: Refusal(
        400, "no_host", "An HTTP/1.1 request needs a Host header: send exactly one."
    ),
    Fault.TWO_HOSTS: Refusal(
        400, "two_hosts", "There is more than one Host header: send exactly one."
    ),
    Fault.BAD_HOST: Refusal(
        400,
        "bad_host",
        "The Host header is not a name or an address, with or without a port: send 'host:port'.",
    ),
    Fault.BAD_CONTENT_LENGTH: Refusal(
        400,
        "bad_content_length",
        "Content-Length is not a plain decimal number of at most 18 digits: send the body's size.",
    ),
    Fault.TWO_CONTENT_LENGTHS: Refusal(
        400,
        "two_content_lengths",
        "There is more than one Content-Length header: send exactly one.",
    ),
    Fault.LENGTH_AND_CHUNKED: Refusal(
        400,
        "length_and_chunked",
        "Both Content-Length and Transfer-Encoding are present: send only one of them.",
    ),
    Fault.BAD_TRANSFER_ENCODING: Refusal(
        501,
        "bad_transfer_encoding",
        "Transfer-Encoding is not exactly one 'chunked': send no other coding.",
    ),
    Fault.CHUNKED_IN_HTTP_1_0: Refusal(
        400,
        "chunked_in_http_1_0",
        "Transfer-Encoding does not exist in HTTP/1.0: send Content-Length or use HTTP/1.1.",
    ),
    Fault.BAD_CHUNK_SIZE: Refusal(
        400,
        "bad_chunk_size",
        "A chunk's size line is not 1 to 8 hexadecimal digits and CRLF: send nothing else there.",
    ),
    Fault.CHUNK_EXTENSION: Refusal(
        400, "chunk_extension", "A chunk's size line has an extension: send the bare size."
    ),
    Fault.BAD_CHUNK_END: Refusal(
        400,
        "bad_chunk_end",
        "A chunk's data is not followed by CRLF: make its size match and end it in CRLF.",
    ),
    Fault.BAD_TRAILER: Refusal(
        400,
        "bad_trailer",
        "The trailers are malformed or larger than 8192 bytes: leave them out, they are dropped.",
    ),
    Fault.BAD_EXPECTATION: Refusal(
        417, "bad_expectation", "Expect is not '100-continue': send no other expectation."
    ),
}
