"""The HTTP server beneath: heads and chunks as uvicorn writes them, connections, disconnects."""

from __future__ import annotations

import asyncio
import json

STREAM = {"prompt": "The quick brown", "max_tokens": 3, "stream": True}


def request(path: str, body: object = None, method: str = "POST", extra: str = "") -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(data)}\r\n{extra}\r\n".encode() + data


async def one_response(reader: asyncio.StreamReader) -> tuple[list[str], list[bytes]]:
    """Head lines and chunks (one chunk: the body, if it has a length)."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")[:-2]
    fields = dict(line.split(": ", 1) for line in head[1:])
    if "content-length" in fields:
        return head, [await reader.readexactly(int(fields["content-length"]))]
    chunks = []
    while True:
        size = int(await reader.readline(), 16)
        data = await reader.readexactly(size)
        await reader.readexactly(2)
        if not size:
            return head, chunks
        chunks.append(data)


def test_heads_and_chunks(sim, dial):
    async def scenario(engine, client):
        reader, writer = await dial(engine)
        writer.write(request("/v1/completions", STREAM))
        head, chunks = await one_response(reader)
        assert head[0] == "HTTP/1.1 200 OK"
        assert [line.split(":")[0] for line in head[1:]] == [
            "date",
            "server",
            "content-type",
            "vary",
            "transfer-encoding",
        ]
        assert "server: uvicorn" in head
        assert len(chunks) == 4
        assert all(c.startswith(b"data: ") and c.endswith(b"\n\n") for c in chunks)
        writer.write(request("/health", method="GET"))
        head, chunks = await one_response(reader)
        assert [line.split(":")[0] for line in head[1:]] == [
            "date",
            "server",
            "content-length",
            "vary",
        ]
        assert chunks == [b""]
        writer.close()

    sim(scenario)


def test_pipelined_requests_are_answered_in_order(sim, dial):
    async def scenario(engine, client):
        reader, writer = await dial(engine)
        writer.write(request("/v1/completions", STREAM) + request("/version", method="GET"))
        _, chunks = await one_response(reader)
        assert chunks[-1] == b"data: [DONE]\n\n"
        _, chunks = await one_response(reader)
        assert json.loads(chunks[0]) == {"version": "0.32.0"}
        writer.close()

    sim(scenario)


def test_a_request_may_come_byte_by_byte_and_chunked(sim, dial):
    async def scenario(engine, client):
        reader, writer = await dial(engine)
        body = json.dumps({"prompt": "abc"}).encode()
        data = b"POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
        data += b"content-type: application/json\r\n\r\n"
        data += b"%x\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (3, body[:3], len(body) - 3, body[3:])
        for at in range(len(data)):
            writer.write(data[at : at + 1])
            await asyncio.sleep(0)
        _, chunks = await one_response(reader)
        assert json.loads(chunks[0])["count"] == 1
        writer.close()

    sim(scenario)


def test_connection_close_is_honoured(sim, dial):
    async def scenario(engine, client):
        reader, writer = await dial(engine)
        writer.write(request("/version", method="GET", extra="connection: close\r\n"))
        head, _ = await one_response(reader)
        assert "connection: close" in head
        assert await reader.read() == b""
        writer.close()

    sim(scenario)


def test_an_idle_connection_is_closed_after_the_keep_alive(sim, dial):
    async def scenario(engine, client):
        reader, writer = await dial(engine)
        writer.write(request("/version", method="GET"))
        await one_response(reader)
        assert await reader.read() == b""
        writer.close()

    sim(scenario, keep_alive_s=0.05)


def test_expect_continue(sim, dial):
    async def scenario(engine, client):
        reader, writer = await dial(engine)
        data = request("/tokenize", {"prompt": "abc"}, extra="expect: 100-continue\r\n")
        head, _, body = data.partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await one_response(reader))[0][0] == "HTTP/1.1 200 OK"
        writer.close()

    sim(scenario)


def test_bytes_that_are_no_http(sim, dial):
    async def scenario(engine, client):
        reader, writer = await dial(engine)
        writer.write(b"hello\r\n\r\n")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert answer.endswith(b"Invalid HTTP request received.")
        writer.close()

    sim(scenario)


def test_request_ids(sim):
    async def scenario(engine, client):
        body = {"prompt": "abc", "max_tokens": 1}
        response = await client.post(
            "/v1/completions", json=body, headers={"X-Request-Id": "my-req-1"}
        )
        assert response.json()["id"] == "cmpl-my-req-1"
        assert response.headers["x-request-id"] == "my-req-1"

    sim(scenario, request_id_headers=True)


def test_a_client_that_leaves_frees_its_blocks(sim, dial, until):
    async def scenario(engine, client):
        for body in ({**STREAM, "max_tokens": 20000}, {"prompt": "x", "max_tokens": 20000}):
            _, writer = await dial(engine)
            writer.write(request("/v1/completions", body))
            await until(lambda: engine.state()["running"] == 1)
            assert engine.state()["kv_blocks_held"] > 0
            writer.close()
            await until(lambda: engine.state()["kv_blocks_held"] == 0)
        await until(lambda: engine.state()["requests_aborted"] == 2)
        # Nobody but the accounts tells of it: the real metrics do not count clients that leave.
        page = (await client.get("/metrics")).text
        assert 'finished_reason="abort",model_name="sim"} 0.0' in page

    sim(scenario, profile="demo")


def test_a_half_closed_client_counts_as_gone(sim, dial, until):
    async def scenario(engine, client):
        _, writer = await dial(engine)
        writer.write(request("/v1/completions", {**STREAM, "max_tokens": 20000}))
        await until(lambda: engine.state()["running"] == 1)
        writer.write_eof()
        await until(lambda: engine.state()["requests_aborted"] == 1)
        writer.close()

    sim(scenario, profile="demo")


def test_a_client_that_does_not_read_gets_merged_events(sim, until):
    async def scenario(engine, client):
        tokens = 30000
        reader, writer = await asyncio.open_connection("127.0.0.1", engine.port, limit=2**16)
        writer.write(request("/v1/completions", {**STREAM, "max_tokens": tokens}))
        await until(lambda: engine.state()["output_tokens"] == tokens)
        _, chunks = await one_response(reader)
        assert len(chunks) < tokens
        text = "".join(json.loads(c[6:])["choices"][0]["text"] for c in chunks[:-1])
        whole = await client.post(
            "/v1/completions", json={**STREAM, "max_tokens": tokens, "stream": False}
        )
        assert whole.json()["choices"][0]["text"] == text
        writer.close()

    sim(scenario)


def test_many_streams_at_once(sim, dial):
    async def scenario(engine, client):
        async def stream(at: int) -> int:
            reader, writer = await dial(engine)
            writer.write(
                request("/v1/completions", {**STREAM, "prompt": f"p {at}", "max_tokens": 9})
            )
            _, chunks = await one_response(reader)
            writer.close()
            return len(chunks)

        assert await asyncio.gather(*(stream(at) for at in range(300))) == [10] * 300
        state = engine.state()
        assert (state["requests_finished"], state["output_tokens"]) == (300, 2700)

    sim(scenario, profile="demo", time_scale=0.1)
