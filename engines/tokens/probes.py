"""Requests that tell whether ids made here are an engine's: ask it for the same, and compare.

What goes wrong goes wrong for whole classes of prompts: an engine with another template or another
file of the tokenizer, a tokenizer class of transformers with rules of its own. Each probe is rich
in what such classes differ in, so a handful tells.
"""

import json
from typing import Any

__all__ = ["PROBES"]

# Digits, contractions, blanks and line ends in a row, a composed and a decomposed letter, scripts
# without blanks, an emoji of several code points, text that looks like a mark but is none.
_TEXT = (
    "Don't count 1234567 to 3.14159; it's 12:30.  Two  blanks,\ttab\n\n\n  and \u00e9 or e\u0301, "
    "\u65e5\u672c\u8a9e\u306e\u6587, \u0645\u0631\u062d\u0628\u0627, \uff26\uff55\uff4c\uff4c, "
    "\U0001f469\u200d\U0001f4bb <|x|> [X] </x> def f(x):\r\n    return {'a': [x]} "
)


def _chat(*messages: dict[str, Any], **more: Any) -> tuple[str, bytes]:
    return "/v1/chat/completions", json.dumps({"messages": messages, **more}).encode()


PROBES: tuple[tuple[str, bytes], ...] = (
    ("/v1/completions", json.dumps({"prompt": _TEXT}).encode()),
    ("/v1/completions", json.dumps({"prompt": "a", "add_special_tokens": False}).encode()),
    _chat({"role": "user", "content": _TEXT}),
    _chat({"role": "user", "content": [{"type": "text", "text": _TEXT}] * 2}),
    _chat(
        {"role": "user", "content": " a "},
        {"role": "assistant", "content": " b\n"},
        {"role": "user", "content": _TEXT},
        tools=[
            {
                "type": "function",
                "function": {"name": "f", "parameters": {"type": "object", "properties": {}}},
            }
        ],
    ),
)
"""Paths and bodies, without `model`. An engine may refuse one, which then says nothing."""
