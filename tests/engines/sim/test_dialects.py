"""Responses, Messages, pooling and audio; the real OpenAI client reads what is sent."""

from __future__ import annotations

import json

import openai

HELLO = [{"role": "user", "content": "Hello, how are you?"}]


def named_events(text: str) -> list[tuple[str, dict]]:
    out = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n") if "\n" in block else ("event: ", block)
        body = data.removeprefix("data: ")
        out.append((name.removeprefix("event: "), {} if body == "[DONE]" else json.loads(body)))
    return out


def test_messages(sim):
    async def scenario(engine, client):
        body = {"model": "sim", "max_tokens": 5, "system": "Be brief.", "messages": HELLO}
        whole = (await client.post("/v1/messages", json=body)).json()
        assert (whole["type"], whole["role"]) == ("message", "assistant")
        assert whole["stop_reason"] == "max_tokens"
        assert whole["usage"]["output_tokens"] == 5
        counted = await client.post("/v1/messages/count_tokens", json=body)
        assert counted.json() == {"input_tokens": whole["usage"]["input_tokens"]}
        stream = (await client.post("/v1/messages", json={**body, "stream": True})).text
        events = named_events(stream)
        names = [name for name, _ in events]
        assert names[:2] == ["message_start", "content_block_start"]
        assert names[2:-4] == ["content_block_delta"] * 5
        assert names[-4:] == ["content_block_stop", "message_delta", "message_stop", ""]
        assert stream.endswith("data: [DONE]\n\n")
        text = "".join(event["delta"]["text"] for _, event in events[2:-4])
        assert text == whole["content"][0]["text"]

    sim(scenario)


def test_messages_refuse_in_their_own_shape(sim):
    async def scenario(engine, client):
        body = {"model": "nope", "max_tokens": 5, "messages": HELLO}
        refused = await client.post("/v1/messages", json=body)
        assert refused.status_code == 404
        assert refused.json()["type"] == "error"
        assert refused.json()["error"]["type"] == "NotFoundError"
        del body["max_tokens"]
        assert (await client.post("/v1/messages", json=body)).status_code == 400

    sim(scenario)


def test_responses_and_their_successors(sim):
    async def scenario(engine, client):
        body = {"input": "Tell me about rivers", "instructions": "Be brief."}
        first = (await client.post("/v1/responses", json={**body, "max_output_tokens": 9})).json()
        assert (first["object"], first["status"]) == ("response", "incomplete")
        assert first["incomplete_details"] == {"reason": "max_output_tokens"}
        assert (await client.get(f"/v1/responses/{first['id']}")).json() == first
        follow_up = {**body, "input": "And lakes?", "previous_response_id": first["id"]}
        second = (await client.post("/v1/responses", json=follow_up)).json()
        assert second["previous_response_id"] == first["id"]
        assert second["usage"]["input_tokens"] > first["usage"]["total_tokens"]
        assert second["usage"]["input_tokens_details"]["cached_tokens"] > 0
        lost = await client.post("/v1/responses", json={**body, "previous_response_id": "resp_x"})
        assert (lost.status_code, lost.json()["error"]["param"]) == (404, "response_id")
        assert (await client.get("/v1/responses/resp_x")).status_code == 404
        assert (await client.get("/v1/responses/x")).status_code == 400

    sim(scenario)


def test_responses_stream(sim):
    async def scenario(engine, client):
        body = {"input": "Tell me about rivers", "max_output_tokens": 4, "stream": True}
        events = named_events((await client.post("/v1/responses", json=body)).text)
        names = [name for name, _ in events]
        assert names[:4] == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
        ]
        assert names[4:8] == ["response.output_text.delta"] * 4
        assert names[-1] == "response.completed"
        assert [event["sequence_number"] for _, event in events] == list(range(len(events)))
        assert all(event["type"] == name for name, event in events)
        text = "".join(event["delta"] for _, event in events[4:8])
        assert events[-1][1]["response"]["output"][0]["content"][0]["text"] == text

    sim(scenario)


def test_a_background_response_is_asked_for_later_or_cancelled(sim, until):
    async def scenario(engine, client):
        body = {"input": "Tell me about rivers", "background": True, "max_output_tokens": 4}
        queued = (await client.post("/v1/responses", json=body)).json()
        assert queued["status"] == "queued"
        await until(lambda: engine.state()["core_finished"] == 1)
        done = (await client.get(f"/v1/responses/{queued['id']}")).json()
        assert done["output"][0]["content"][0]["text"]
        engine.fault("freeze")
        queued = (await client.post("/v1/responses", json=body)).json()
        path = f"/v1/responses/{queued['id']}"
        assert (await client.post(f"{path}/cancel")).json()["status"] == "cancelled"
        assert (await client.get(path)).json()["status"] == "cancelled"
        engine.heal()
        assert engine.state()["core_aborted"] == 1
        body["background"] = False
        foreground = (await client.post("/v1/responses", json=body)).json()
        refused = await client.post(f"/v1/responses/{foreground['id']}/cancel")
        assert refused.status_code == 400

    sim(scenario)


def test_pooling(sim):
    async def scenario(engine, client):
        body = {"input": ["rivers and lakes", "rivers"], "dimensions": 8}
        vectors = (await client.post("/v1/embeddings", json=body)).json()
        assert [len(item["embedding"]) for item in vectors["data"]] == [8, 8]
        assert vectors["usage"]["completion_tokens"] == 0
        coded = await client.post("/v1/embeddings", json={**body, "encoding_format": "base64"})
        assert isinstance(coded.json()["data"][0]["embedding"], str)
        documents = {"query": "deep lakes", "documents": ["dry sand", "deep cold lakes"]}
        ranked = (await client.post("/v1/rerank", json={**documents, "top_n": 1})).json()
        assert [result["index"] for result in ranked["results"]] == [1]
        pairs = {"text_1": "deep lakes", "text_2": ["deep lakes", "sand"]}
        scored = (await client.post("/v1/score", json=pairs)).json()["data"]
        assert [round(item["score"]) for item in scored] == [1, 0]

    sim(scenario)


def test_a_generating_engine_may_lack_pooling(sim):
    async def scenario(engine, client):
        refused = await client.post("/v1/embeddings", json={"input": "x"})
        assert (refused.status_code, refused.json()) == (404, {"detail": "Not Found"})

    sim(scenario, pooling=False)


def test_transcription(sim):
    async def scenario(engine, client):
        sound = {"file": ("a.wav", bytes(range(256)) * 40)}
        path = "/v1/audio/transcriptions"
        one = await client.post(path, files=sound, data={"model": "sim"})
        assert list(one.json()) == ["text", "usage"]
        plain = await client.post(path, files=sound, data={"response_format": "text"})
        assert plain.text == one.json()["text"]
        other = await client.post(path, files={"file": ("a.wav", b"else")})
        assert other.json()["text"] != one.json()["text"]
        assert (await client.post(path, json={})).status_code == 400

    sim(scenario)


def test_the_openai_client_understands_it(sim):
    async def scenario(engine, client):
        async with openai.AsyncOpenAI(base_url=f"{engine.url}/v1", api_key="k") as ai:
            models = [model.id async for model in await ai.models.list()]
            assert models == ["sim"]
            whole = await ai.chat.completions.create(model="sim", messages=HELLO, max_tokens=6)
            stream = await ai.chat.completions.create(
                model="sim",
                messages=HELLO,
                max_tokens=6,
                stream=True,
                stream_options={"include_usage": True},
            )
            chunks = [chunk async for chunk in stream]
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            assert text == whole.choices[0].message.content
            assert chunks[-1].usage.completion_tokens == 6
            answer = await ai.responses.create(model="sim", input="Hi", max_output_tokens=5)
            assert (await ai.responses.retrieve(answer.id)).output_text == answer.output_text
            vectors = await ai.embeddings.create(model="sim", input="Hi", dimensions=4)
            assert len(vectors.data[0].embedding) == 4

    sim(scenario)
