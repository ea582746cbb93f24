"""Wire shapes: keys, their order and their places, as captured from vLLM 0.32."""

from __future__ import annotations

import json
from typing import Any

HELLO = {"messages": [{"role": "user", "content": "Hello, how are you?"}]}
SALT = {"content-type": "application/json"}

USAGE = ["prompt_tokens", "total_tokens", "completion_tokens"]
WHOLE_USAGE = [*USAGE, "prompt_tokens_details", "completion_tokens_details"]
CHAT = ["id", "object", "created", "model", "choices", "service_tier", "system_fingerprint"]
CHAT += ["usage", "prompt_logprobs", "prompt_token_ids", "prompt_text", "kv_transfer_params"]
CHAT += ["ec_transfer_params", "metrics"]
CHAT_CHOICE = ["index", "message", "logprobs", "finish_reason", "stop_reason", "token_ids"]
CHAT_CHOICE += ["routed_experts"]
MESSAGE = ["role", "content", "refusal", "annotations", "audio", "function_call", "reasoning"]
COMPLETION = ["id", "object", "created", "model", "choices", "service_tier", "system_fingerprint"]
COMPLETION += ["usage", "kv_transfer_params", "ec_transfer_params", "metrics"]
COMPLETION_CHOICE = ["index", "text", "logprobs", "finish_reason", "stop_reason", "token_ids"]
COMPLETION_CHOICE += ["prompt_logprobs", "prompt_token_ids", "routed_experts"]
CHUNK = ["id", "object", "created", "model", "choices"]
COMPLETION_DELTA = ["index", "text", "logprobs", "finish_reason", "stop_reason"]
COMPLETION_DELTA += ["prompt_token_ids", "token_ids"]


def events(text: str) -> list[Any]:
    """The data of each event; the last one must be [DONE]."""
    blocks = text.split("\n\n")
    assert blocks[-2:] == ["data: [DONE]", ""]
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-2]]


def ask(sim: Any, path: str, body: dict[str, Any], **config: Any) -> Any:
    async def scenario(engine, client):
        response = await client.post(path, json=body)
        assert response.status_code == 200, response.text
        return response

    return sim(scenario, **config)


def test_chat(sim):
    body = ask(sim, "/v1/chat/completions", {**HELLO, "max_tokens": 8}).json()
    assert list(body) == CHAT
    (choice,) = body["choices"]
    assert (list(choice), list(choice["message"])) == (CHAT_CHOICE, MESSAGE)
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", None)
    assert list(body["usage"]) == WHOLE_USAGE
    assert body["usage"]["completion_tokens"] == 8
    assert body["usage"]["prompt_tokens_details"] == {
        "cached_tokens": 0,
        "created_cache_tokens": None,
        "multimodal_tokens": None,
    }
    assert body["id"].startswith("chatcmpl-")
    assert body["object"] == "chat.completion"


def test_chat_stream(sim):
    response = ask(sim, "/v1/chat/completions", {**HELLO, "max_tokens": 3, "stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["transfer-encoding"] == "chunked"
    assert "cache-control" not in response.headers
    role, *deltas = events(response.text)
    assert list(role) == [*CHUNK, "prompt_token_ids", "prompt_text"]
    assert role["choices"] == [
        {
            "index": 0,
            "delta": {"role": "assistant", "content": ""},
            "logprobs": None,
            "finish_reason": None,
        }
    ]
    assert len(deltas) == 3
    for delta in deltas[:-1]:
        assert list(delta) == CHUNK
        (choice,) = delta["choices"]
        assert list(choice) == ["index", "delta", "logprobs", "finish_reason", "token_ids"]
        assert choice["delta"]["content"]
    last = deltas[-1]
    assert list(last) == [*CHUNK, "system_fingerprint"]
    (choice,) = last["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["delta"]["content"]
    assert list(choice)[-3:] == ["finish_reason", "stop_reason", "token_ids"]


def test_chat_stream_with_usage_moves_the_fingerprint(sim):
    ask_usage = {**HELLO, "max_tokens": 3, "stream": True, "stream_options": {"include_usage": 1}}
    *others, usage = events(ask(sim, "/v1/chat/completions", ask_usage).text)
    assert all("system_fingerprint" not in event for event in others)
    assert list(usage) == [*CHUNK, "usage", "system_fingerprint"]
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 3
    assert usage["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}


def test_usage_details_can_be_off(sim):
    body = {**HELLO, "max_tokens": 3, "stream": True, "stream_options": {"include_usage": True}}
    *_, usage = events(ask(sim, "/v1/chat/completions", body, prompt_tokens_details=False).text)
    assert list(usage["usage"]) == USAGE


def test_usage_can_be_forced(sim):
    body = {**HELLO, "max_tokens": 3, "stream": True}
    *_, usage = events(ask(sim, "/v1/chat/completions", body, force_include_usage=True).text)
    assert usage["choices"] == []


def test_continuous_usage_counts_up(sim):
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {**HELLO, "max_tokens": 3, "stream": True, "stream_options": options}
    role, *deltas, last = events(ask(sim, "/v1/chat/completions", body).text)
    assert list(role) == [*CHUNK, "usage", "prompt_token_ids", "prompt_text"]
    assert [d["usage"]["completion_tokens"] for d in (role, *deltas)] == [0, 1, 2, 3]
    assert list(role["usage"]) == [*USAGE, "completion_tokens_details"]
    assert last["usage"]["completion_tokens"] == 3


def test_completion(sim):
    body = ask(sim, "/v1/completions", {"prompt": "The quick brown", "max_tokens": 6}).json()
    assert list(body) == COMPLETION
    assert list(body["choices"][0]) == COMPLETION_CHOICE
    assert (body["object"], body["id"][:5]) == ("text_completion", "cmpl-")


def test_completion_stream(sim):
    body = {"prompt": "The quick brown", "max_tokens": 3, "stream": True}
    deltas = events(ask(sim, "/v1/completions", body).text)
    assert len(deltas) == 3
    assert all(list(delta["choices"][0]) == COMPLETION_DELTA for delta in deltas)
    assert [d["choices"][0]["finish_reason"] for d in deltas] == [None, None, "length"]


def test_stream_and_whole_say_the_same(sim):
    async def scenario(engine, client):
        whole = await client.post("/v1/chat/completions", json={**HELLO, "max_tokens": 40})
        stream = await client.post(
            "/v1/chat/completions", json={**HELLO, "max_tokens": 40, "stream": True}
        )
        text = "".join(e["choices"][0]["delta"]["content"] for e in events(stream.text))
        assert text == whole.json()["choices"][0]["message"]["content"]

    sim(scenario)


def test_a_text_that_needs_escapes_survives(sim):
    async def scenario(engine, client):
        prompt = "\u6771\u4eac\u90fd \U0001d4b3 caf\u00e9s 'quoted' " * 20
        body = {"prompt": prompt, "max_tokens": 80}
        whole = await client.post("/v1/completions", json=body)
        stream = await client.post("/v1/completions", json={**body, "stream": True})
        text = "".join(e["choices"][0]["text"] for e in events(stream.text))
        assert text == whole.json()["choices"][0]["text"]
        assert not text.isascii()

    sim(scenario)


def test_several_prompts_and_copies_are_numbered_prompt_by_prompt(sim):
    async def scenario(engine, client):
        body = {"prompt": ["one two", "three four five"], "n": 2, "max_tokens": 4}
        whole = (await client.post("/v1/completions", json=body)).json()
        assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3]
        sizes = [
            (await client.post("/tokenize", json={"prompt": prompt})).json()["count"]
            for prompt in body["prompt"]
        ]
        assert whole["usage"]["prompt_tokens"] == sum(sizes)
        assert whole["usage"]["completion_tokens"] == 16
        stream = events((await client.post("/v1/completions", json={**body, "stream": True})).text)
        for choice in whole["choices"]:
            pieces = [
                event["choices"][0]["text"]
                for event in stream
                if event["choices"][0]["index"] == choice["index"]
            ]
            assert "".join(pieces) == choice["text"]

    sim(scenario)


def test_a_stop_string_is_named(sim):
    async def scenario(engine, client):
        body = {"prompt": "The quick brown fox", "max_tokens": 40}
        text = (await client.post("/v1/completions", json=body)).json()["choices"][0]["text"]
        word = text.split()[4]
        body["stop"] = [word]
        (choice,) = (await client.post("/v1/completions", json=body)).json()["choices"]
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", word)
        assert word not in choice["text"]
        stream = events((await client.post("/v1/completions", json={**body, "stream": True})).text)
        assert stream[-1]["choices"][0]["stop_reason"] == word
        assert "".join(event["choices"][0]["text"] for event in stream) == choice["text"]

    sim(scenario)


def test_token_ids_and_logprobs_on_request(sim):
    async def scenario(engine, client):
        body = {"prompt": [350, 327, 600], "max_tokens": 3, "return_token_ids": True, "logprobs": 1}
        (choice,) = (await client.post("/v1/completions", json=body)).json()["choices"]
        assert choice["prompt_token_ids"] == [350, 327, 600]
        ids = choice["token_ids"]
        back = (await client.post("/detokenize", json={"tokens": ids})).json()
        assert back == {"prompt": choice["text"]}
        logprobs = choice["logprobs"]
        assert list(logprobs) == ["text_offset", "token_logprobs", "tokens", "top_logprobs"]
        assert "".join(logprobs["tokens"]) == choice["text"]
        chat = {**HELLO, "max_tokens": 2, "logprobs": True, "top_logprobs": 1}
        (choice,) = (await client.post("/v1/chat/completions", json=chat)).json()["choices"]
        assert list(choice["logprobs"]["content"][0]) == [
            "token",
            "logprob",
            "bytes",
            "top_logprobs",
        ]

    sim(scenario)


def test_tokenize(sim):
    async def scenario(engine, client):
        text = {"prompt": "Hello, how are you?"}
        body = (await client.post("/tokenize", json=text)).json()
        assert list(body) == ["count", "max_model_len", "tokens", "token_strs"]
        assert body["count"] == len(body["tokens"])
        back = await client.post("/detokenize", json={"tokens": body["tokens"]})
        assert back.json() == text
        chat = (await client.post("/tokenize", json=HELLO)).json()
        answer = await client.post("/v1/chat/completions", json={**HELLO, "max_tokens": 1})
        assert answer.json()["usage"]["prompt_tokens"] == chat["count"]

    sim(scenario)


def test_models(sim):
    async def scenario(engine, client):
        body = (await client.get("/v1/models")).json()
        assert [card["id"] for card in body["data"]] == ["sim", "chat", "poet"]
        base, _, adapter = body["data"]
        assert list(base) == [
            "id",
            "object",
            "created",
            "owned_by",
            "root",
            "parent",
            "max_model_len",
            "permission",
        ]
        assert (base["parent"], base["max_model_len"]) == (None, 32768)
        assert (adapter["parent"], adapter["max_model_len"]) == ("sim", None)
        assert (await client.get("/v1/models/poet")).json()["id"] == "poet"
        assert (await client.get("/v1/models/none")).status_code == 404

    sim(scenario, aliases=("chat",), adapters=("poet",))


def test_an_adapter_comes_and_goes(sim):
    async def scenario(engine, client):
        body = {"prompt": "The quick brown", "max_tokens": 4}
        load = {"lora_name": "poet", "lora_path": "/adapters/poet"}
        assert (await client.post("/v1/completions", json={**body, "model": "poet"})).is_error
        done = await client.post("/v1/load_lora_adapter", json=load)
        assert done.text == "Success: LoRA adapter 'poet' added successfully."
        again = await client.post("/v1/load_lora_adapter", json=load)
        assert (again.status_code, again.json()["error"]["type"]) == (400, "InvalidUserInput")
        plain = (await client.post("/v1/completions", json=body)).json()
        other = (await client.post("/v1/completions", json={**body, "model": "poet"})).json()
        assert other["model"] == "poet"
        assert other["choices"][0]["text"] != plain["choices"][0]["text"]
        gone = await client.post("/v1/unload_lora_adapter", json={"lora_name": "poet"})
        assert gone.text == "Success: LoRA adapter 'poet' removed successfully."
        assert (await client.post("/v1/completions", json={**body, "model": "poet"})).is_error

    sim(scenario)
