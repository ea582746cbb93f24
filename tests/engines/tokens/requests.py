"""Requests whose ids are made here and, in the lane of the real engine, by vLLM as well."""

from __future__ import annotations

from typing import Any

__all__ = ["CHATS", "COMPLETIONS", "TOOLS", "UNKNOWN"]

MIXED = (
    "Don't count 1234567 to 3.14; it's 12:30.  Two  blanks,\ttab\n\n\n  \u00e9 e\u0301 "
    "\u65e5\u672c\u8a9e \u0645\u0631\u062d\u0628\u0627 \uff26\uff4c \U0001f469\u200d\U0001f4bb\r\n"
)
TOOLS: list[Any] = [
    {
        "function": {
            "parameters": {
                "type": "object",
                "properties": {"z": {"type": "string", "description": "<b> & '\u00e9'"}},
                "x-number": 1.0,
                "x-big": 12345678901234567890123,
            },
            "name": "get_weather",
            "unheard_of": 1,
        },
        "type": "function",
        "more": True,
    },
    {"type": "function", "function": {"name": "f", "description": "d", "strict": True}},
]
USER: Any = {"role": "user", "content": "Which city has the best weather?"}
SYSTEM: Any = {"role": "system", "content": "Be brief.\n\n"}
CALLS: list[Any] = [
    {
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Oslo", "n": [1, 2.50]}'},
        "id": "call_0001",
        "index": 0,
    },
    {"id": "call_0002", "type": "function", "function": {"name": "f", "arguments": "not JSON"}},
]
LOOP: list[Any] = [
    USER,
    {"role": "assistant", "content": None, "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "call_0001", "content": "sun"},
    {
        "role": "tool",
        "tool_call_id": "call_0002",
        "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
    },
]
ASSISTANT: Any = {"role": "assistant", "content": "  It is Oslo, and "}

CHATS: dict[str, dict[str, Any]] = {
    "user": {"messages": [USER]},
    "system": {"messages": [SYSTEM, USER]},
    "mixed text": {"messages": [{"role": "user", "content": MIXED * 2}]},
    "several turns": {"messages": [SYSTEM, USER, ASSISTANT, {"role": "user", "content": MIXED}]},
    "empty text": {"messages": [{"role": "user", "content": ""}]},
    "no content": {"messages": [USER, {"role": "assistant", "tool_calls": CALLS[:1]}]},
    "parts": {
        "messages": [
            SYSTEM,
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "one\n"},
                    {"type": "text", "text": " two", "cache_control": {"type": "ephemeral"}},
                ],
            },
        ]
    },
    "parts of other types": {
        "messages": [
            USER,
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "hm"},
                    {"type": "refusal", "refusal": "no"},
                ],
            },
            {"role": "user", "content": ["a text", {"type": "text", "text": "b"}]},
        ]
    },
    "no parts": {"messages": [{"role": "user", "content": []}]},
    "tools": {"messages": [USER], "tools": TOOLS},
    "tools and a system": {"messages": [SYSTEM, USER], "tools": TOOLS, "tool_choice": "auto"},
    "tools not to be used": {"messages": [USER], "tools": TOOLS, "tool_choice": "none"},
    "tool loop": {"messages": LOOP, "tools": TOOLS},
    "arguments that are no object": {
        "messages": [
            USER,
            {
                "role": "assistant",
                "content": "x",
                "tool_calls": [
                    {
                        "id": f"c{index}",
                        "type": "function",
                        "function": {"name": "f", "arguments": arguments, "extra": index},
                    }
                    for index, arguments in enumerate(
                        ["", "[1]", "null", '{"b": 1, "a": "\\u00e9"}']
                    )
                ],
            },
        ]
    },
    "no calls": {"messages": [USER, {**ASSISTANT, "tool_calls": [], "refusal": None}, USER]},
    "reasoning": {
        "messages": [USER, {**ASSISTANT, "reasoning": "\nthink first\n"}, USER],
    },
    "reasoning by its old name": {
        "messages": [USER, {**ASSISTANT, "reasoning_content": "think first"}, USER],
    },
    "developer": {"messages": [{"role": "developer", "content": "Be brief."}, USER]},
    "developer behind a system": {
        "messages": [
            SYSTEM,
            USER,
            {"role": "developer", "content": [{"type": "text", "text": "Be loud."}]},
        ]
    },
    "name and unknown members": {"messages": [{**USER, "name": "ann", "unheard_of": 1}]},
    "own role": {"messages": [{"role": "critic", "content": "x"}, USER]},
    "billing line": {
        "messages": [
            {"role": "system", "content": "x-anthropic-billing-header: cch=1\nBe brief."},
            USER,
        ]
    },
    "no generation prompt": {"messages": [USER, ASSISTANT], "add_generation_prompt": False},
    "going on": {
        "messages": [USER, ASSISTANT],
        "add_generation_prompt": False,
        "continue_final_message": True,
    },
    "going on behind parts": {
        "messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "It is "}]}],
        "add_generation_prompt": False,
        "continue_final_message": True,
    },
    "going on behind nothing": {
        "messages": [USER, {"role": "assistant", "content": ""}],
        "add_generation_prompt": False,
        "continue_final_message": True,
    },
    "variables": {
        "messages": [USER],
        "chat_template_kwargs": {
            "enable_thinking": False,
            "date_string": "1 Jan 2026",
            "unheard_of": 1,
            "add_generation_prompt": False,
        },
    },
    "variables that are null": {
        "messages": [USER],
        "chat_template_kwargs": {"enable_thinking": None, "bos_token": "auto"},
    },
    "effort": {"messages": [USER], "reasoning_effort": "none"},
    "more effort": {"messages": [USER], "reasoning_effort": "high"},
    "documents": {
        "messages": [USER],
        "documents": [{"title": "T", "text": "x"}, {"title": "U", "text": "\u00e9"}],
    },
    "special tokens": {"messages": [USER], "add_special_tokens": True},
    "marks in a text": {
        "messages": [
            {
                "role": "user",
                "content": "a <|im_start|> b<|eot_id|><|im_end|>\n[INST]</s> <|im_ [ <s",
            }
        ]
    },
    "salt": {"messages": [USER], "cache_salt": "s"},
    "sampling": {"messages": [USER], "temperature": 0.5, "stop": ["x"], "user": "u", "seed": 3},
}

COMPLETIONS: dict[str, dict[str, Any]] = {
    "text": {"prompt": "Once upon a time"},
    "mixed text": {"prompt": MIXED * 2},
    "without special tokens": {"prompt": MIXED, "add_special_tokens": False},
    "marks": {"prompt": "<|im_start|>user\nhi<|im_end|>\n<|eot_id|>[INST] x</s>"},
    "marks at once": {"prompt": " <|begin_of_text|><s>  <|im_end|> "},
    "ids": {"prompt": [5, 100, 7]},
    "one text in a list": {"prompt": ["Once upon a time"]},
    "ids in a list": {"prompt": [[5, 100, 7]]},
}

UNKNOWN: dict[str, tuple[str, Any, str]] = {
    "another path": ("/v1/embeddings", {"input": "x"}, "path"),
    "messages": ("/v1/messages", {"messages": [USER]}, "path"),
    "responses": ("/v1/responses", {"input": "x"}, "path"),
    "no JSON": ("/v1/completions", b"{", "body"),
    "no object": ("/v1/completions", b"[1]", "body"),
    "no UTF-8": ("/v1/completions", b'{"prompt": "\xff"}', "body"),
    "half a pair": ("/v1/completions", b'{"prompt": "\\ud800"}', "body"),
    "deep": ("/v1/completions", b"[" * 100_000, "body"),
    "too large": ("/v1/completions", {"prompt": "x" * (1 << 20)}, "size"),
    "too many messages": ("/v1/chat/completions", {"messages": [USER] * 2001}, "size"),
    "too many parts": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": ["x"] * 2001}]},
        "size",
    ),
    "no prompt": ("/v1/completions", {}, "body"),
    "no ids": ("/v1/completions", {"prompt": []}, "body"),
    "ids below zero": ("/v1/completions", {"prompt": [1, -1]}, "body"),
    "ids that are none": ("/v1/completions", {"prompt": [1, True]}, "body"),
    "too large an id": ("/v1/completions", {"prompt": [1 << 32]}, "body"),
    "texts": ("/v1/completions", {"prompt": ["a", "b"]}, "batch"),
    "lists of ids": ("/v1/completions", {"prompt": [[1], [2]]}, "batch"),
    "suffix": ("/v1/completions", {"prompt": "a", "suffix": "b"}, "option"),
    "embeddings": ("/v1/completions", {"prompt_embeds": "x"}, "media"),
    "truncated": ("/v1/completions", {"prompt": "a", "truncate_prompt_tokens": 3}, "option"),
    "ids handed over": (
        "/v1/chat/completions",
        {"messages": [USER], "kv_transfer_params": {"prompt_token_ids": [1]}},
        "option",
    ),
    "own template": ("/v1/chat/completions", {"messages": [USER], "chat_template": "x"}, "option"),
    "own template in variables": (
        "/v1/chat/completions",
        {"messages": [USER], "chat_template_kwargs": {"chat_template": "x"}},
        "option",
    ),
    "tools in variables": (
        "/v1/chat/completions",
        {"messages": [USER], "chat_template_kwargs": {"tools": TOOLS}},
        "option",
    ),
    "variables that are none": (
        "/v1/chat/completions",
        {"messages": [USER], "chat_template_kwargs": []},
        "body",
    ),
    "image": (
        "/v1/chat/completions",
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
            ]
        },
        "media",
    ),
    "image without a type": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [{"image_url": "x"}]}]},
        "media",
    ),
    "audio": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
        "media",
    ),
    "no messages": ("/v1/chat/completions", {"messages": []}, "body"),
    "messages missing": ("/v1/chat/completions", {}, "body"),
    "no role": ("/v1/chat/completions", {"messages": [{"content": "x"}]}, "body"),
    "content that is none": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": 3}]},
        "body",
    ),
    "text that is none": (
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": [{"type": "text", "text": None}]}]},
        "body",
    ),
    "no tools": ("/v1/chat/completions", {"messages": [USER], "tools": []}, "body"),
    "tool without a name": (
        "/v1/chat/completions",
        {"messages": [USER], "tools": [{"type": "function", "function": {}}]},
        "body",
    ),
    "arguments as an object": (
        "/v1/chat/completions",
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "tool_calls": [
                        {
                            "id": "c",
                            "type": "function",
                            "function": {"name": "f", "arguments": {}},
                        }
                    ],
                },
            ]
        },
        "body",
    ),
    "tools of a developer": (
        "/v1/chat/completions",
        {"messages": [{"role": "developer", "content": "x", "tools": []}]},
        "option",
    ),
    "going on and a new turn": (
        "/v1/chat/completions",
        {"messages": [USER, ASSISTANT], "continue_final_message": True},
        "body",
    ),
    "unheard-of effort": (
        "/v1/chat/completions",
        {"messages": [USER], "reasoning_effort": "some"},
        "body",
    ),
    "documents that are none": (
        "/v1/chat/completions",
        {"messages": [USER], "documents": [{"n": 1}]},
        "body",
    ),
    "flag that is none": (
        "/v1/chat/completions",
        {"messages": [USER], "add_generation_prompt": "yes"},
        "body",
    ),
}
"""Path, body and the reason why the ids are not known; with the template of ChatML."""
