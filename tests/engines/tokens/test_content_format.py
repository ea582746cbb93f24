"""Text or parts: the answers are those of vLLM 0.32 for the same templates."""

from __future__ import annotations

import jinja2
import pytest

from engines.tokens.content_format import ContentFormat, find_content_format
from tests.engines.tokens.models import TEMPLATES

LOOP = "{% for message in messages %}"
END = "{% endfor %}"
PARTS = "{% for part in %s %}{{ part.text }}{% endfor %}"

CASES = {
    "text": (LOOP + "{{ message.content }}" + END, "string"),
    "member": (LOOP + PARTS.replace("%s", "message.content") + END, "openai"),
    "item": (LOOP + PARTS.replace("%s", "message['content']") + END, "openai"),
    "filter": (LOOP + PARTS.replace("%s", "message.content | list") + END, "openai"),
    "slice": (LOOP + PARTS.replace("%s", "message.content[1:]") + END, "openai"),
    "other member": (LOOP + PARTS.replace("%s", "message.tool_calls") + END, "string"),
    "variable": (LOOP + PARTS.replace("%s", "content") + END, "openai"),
    "renamed": (
        "{% set rest = messages[1:] %}{% for m in rest %}" + PARTS.replace("%s", "m.content") + END,
        "openai",
    ),
    "by index": (PARTS.replace("%s", "messages[0].content"), "string"),
    "namespace": (
        "{% set ns = namespace(x=1) %}{% set ns.x = messages %}"
        + LOOP
        + PARTS.replace("%s", "message.content")
        + END,
        "string",
    ),
    "two targets": (
        "{% for a, b in messages %}{% endfor %}"
        + LOOP
        + PARTS.replace("%s", "message.content")
        + END,
        "string",
    ),
    "macro": (
        "{% macro show(c) %}"
        + PARTS.replace("%s", "c")
        + "{% endmacro %}"
        + LOOP
        + "{{ show(message.content) }}"
        + END,
        "openai",
    ),
    "macro by name": (
        "{% macro show(a, c=none) %}"
        + PARTS.replace("%s", "c")
        + "{% endmacro %}"
        + LOOP
        + "{{ show(1, c=message['content'] | list) }}"
        + END,
        "openai",
    ),
    "macro over something else": (
        "{% macro show(content) %}"
        + PARTS.replace("%s", "content")
        + "{% endmacro %}"
        + LOOP
        + "{{ show(message.role) }}{{ message.content }}"
        + END,
        "string",
    ),
    "chatml": (TEMPLATES["chatml"], "string"),
    "mistral": (TEMPLATES["mistral"], "openai"),
}


@pytest.mark.parametrize("name", CASES)
def test_format(name: str) -> None:
    source, wanted = CASES[name]
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    assert find_content_format(environment.parse(source)) is ContentFormat(wanted)
