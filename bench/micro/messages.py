"""Messages as clients and engines send them, for all micro-benchmarks."""

import json

__all__ = [
    "ANSWER",
    "ANSWER_HEAD",
    "EVENTS",
    "REQUEST_BODIES",
    "REQUEST_HEAD",
    "STREAM_HEAD",
    "chunk",
]

REQUEST_HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: 10.0.0.7:8080\r\nAccept-Encoding: gzip, deflate"
    b"\r\nConnection: keep-alive\r\nAccept: application/json\r\nContent-Type: application/json\r\n"
    b"User-Agent: AsyncOpenAI/Python 3.52.0\r\nX-Stainless-Lang: python\r\n"
    b"X-Stainless-Package-Version: 3.52.0\r\nX-Stainless-OS: Linux\r\nX-Stainless-Arch: x64\r\n"
    b"X-Stainless-Runtime: CPython\r\nX-Stainless-Runtime-Version: 3.12.4\r\n"
    b"Authorization: Bearer sk-test-0123456789abcdef0123456789abcdef\r\n"
    b"X-Stainless-Async: async:asyncio\r\nx-stainless-retry-count: 0\r\n"
    b"x-stainless-read-timeout: 600\r\nContent-Length: 2048\r\n\r\n"
)
"""What the openai client for Python sends."""

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Thu, 20 Nov 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)

EVENTS = [
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1763650000,'
    b'"model":"mock","choices":[{"index":0,"delta":{"content":" tok%d"},"logprobs":null,'
    b'"finish_reason":null}]}\n\n' % index
    for index in range(32)
] + [b"data: [DONE]\n\n"]

ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1763650000,
        "model": "mock",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "word " * 200, "tool_calls": []},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 12, "total_tokens": 212, "completion_tokens": 200},
    }
).encode()

ANSWER_HEAD = (
    b"HTTP/1.1 200 OK\r\ndate: Thu, 20 Nov 2026 00:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-length: %d\r\ncontent-type: application/json\r\n\r\n" % len(ANSWER)
)


def _request_body(prompt: str) -> bytes:
    return json.dumps(
        {
            "model": "mock",
            "messages": [
                {"role": "system", "content": prompt},
                {"role": "user", "content": 'Say "hello".'},
            ],
            "max_tokens": 32,
            "stream": True,
        }
    ).encode()


REQUEST_BODIES = {
    "200 B": _request_body("Be brief."),
    "4 KB": _request_body("lorem ipsum dolor " * 220),
    "220 KB": _request_body("lorem ipsum dolor " * 12500),
    "220 KB, quotes inside": _request_body('{"name": "lorem", "value": "ipsum"} ' * 5000),
}


def chunk(payload: bytes) -> bytes:
    """As one HTTP chunk."""
    return b"%x\r\n%s\r\n" % (len(payload), payload)
