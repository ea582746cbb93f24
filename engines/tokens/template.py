"""A chat template: jinja2, set up as transformers does it, in a sandbox.

The template comes from the operator's own model folder; what clients send reaches it as data. It
cannot be interrupted, so what it is given is bounded before.
"""

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from datetime import datetime
from threading import Lock
from typing import Any

import jinja2
import jinja2.meta
from jinja2 import ext, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from engines.tokens.content_format import find_content_format
from engines.tokens.why import UnknownError, Why

__all__ = ["ChatTemplate"]

# Where the last message is to go on: nothing a conversation is likely to hold. The blank at its
# end tells whether the template trims. Both are transformers' own, which a template might look at.
_MARK = "CONTINUE_FINAL_MESSAGE_TAG "

# Of strftime: what does not change within a day. A day's turn in the engine's time zone can still
# fall between its look at the clock and ours.
_DAY = frozenset("aAwdbBmyYjUWxGuVDFehCg%")

_DICT_ATTRIBUTES = frozenset(dir(dict))
_PRETTY = 64


class _Generator(CodeGenerator):
    """Writes the short way to a variable's member into the template's code."""

    def visit_Getattr(self, node: nodes.Getattr, frame: Frame) -> None:
        if not isinstance(node.node, nodes.Name) or node.attr in _DICT_ATTRIBUTES:
            super().visit_Getattr(node, frame)
            return
        name, attribute = frame.symbols.ref(node.node.name), repr(node.attr)
        is_there = f"{name}.__class__ is dict and {attribute} in {name}"
        self.write(f"({name}[{attribute}] if {is_there} else ")
        super().visit_Getattr(node, frame)
        self.write(")")


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with a short way to members of plain dicts: most of what a template does."""

    code_generator_class = _Generator

    def getattr(self, obj: Any, attribute: str) -> Any:
        # The sandbox tries the attribute first, and a dict has no others than these.
        if type(obj) is dict and attribute not in _DICT_ATTRIBUTES:
            if attribute in obj:
                return obj[attribute]
            return self.undefined(obj=obj, name=attribute)
        return super().getattr(obj, attribute)


class _Generation(ext.Extension):
    """`{% generation %}..{% endgeneration %}` marks what a model wrote: here it is only text."""

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self.tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_text"), [], [], body).set_lineno(line)

    def _text(self, caller: Callable[[], str]) -> str:
        return caller()


class ChatTemplate:
    """Renders conversations to text. May be used by several threads at once.

    jinja2.TemplateError if `source` is no template.
    """

    def __init__(self, source: str, names: Mapping[str, str], now: Callable[[], datetime]) -> None:
        self._now = now
        self._names = dict(names)
        self._pretty: OrderedDict[tuple[object, ...], str] = OrderedDict()
        self._lock = Lock()
        environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, ext.loopcontrols]
        )
        environment.filters["tojson"] = self._tojson
        tree = environment.parse(source)
        self.content_format = find_content_format(tree)
        # Before the globals are set, as vLLM does: one that is asked for hides a global.
        self.variables = frozenset(jinja2.meta.find_undeclared_variables(tree))
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = self._strftime_now
        self.knows_developer = '"developer"' in source or "'developer'" in source
        self._names_content = "content" in source
        self._template = environment.from_string(source)

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None,
        documents: list[dict[str, Any]] | None,
        variables: Mapping[str, Any],
        add_generation_prompt: bool,
        continue_final_message: bool,
    ) -> str:
        """The prompt. UnknownError if the template refuses; `messages` may be changed."""
        final = self._open_final(messages[-1]) if continue_final_message else None
        given = {name: value for name, value in variables.items() if name in self.variables}
        try:
            text = self._template.render(
                {**self._names, **given},
                messages=messages,
                tools=tools,
                documents=documents,
                add_generation_prompt=add_generation_prompt,
            )
        except UnknownError:
            raise
        except Exception as error:  # templates compute: TypeError and all the others
            raise UnknownError(Why.TEMPLATE) from error
        return text if final is None else _cut(text, final)

    def _open_final(self, message: dict[str, Any]) -> str:
        """Put the mark behind the last text; that text."""
        content = message.get("content")
        if self._names_content and isinstance(content, str):
            message["content"] = content + _MARK
            return content
        if self._names_content and isinstance(content, list):
            for part in reversed(content):
                if "text" in part:
                    text: str = part["text"]
                    part["text"] = text + _MARK
                    return text
        raise UnknownError(Why.BODY)

    def _tojson(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | str | None = None,
        separators: tuple[str, str] | None = None,
        sort_keys: bool = False,
    ) -> str:
        # Positions and defaults are transformers'. Not jinja2's filter: that one escapes for HTML.
        if indent is None:
            return json.dumps(
                value, ensure_ascii=ensure_ascii, separators=separators, sort_keys=sort_keys
            )
        # With an indent Python's encoder is 30 times as slow as its C one, for tools that hardly
        # ever change. The compact text says all that the other can say.
        key = (json.dumps(value), ensure_ascii, indent, separators, sort_keys)
        with self._lock:
            text = self._pretty.get(key)
        if text is None:
            text = json.dumps(
                value,
                ensure_ascii=ensure_ascii,
                indent=indent,
                separators=separators,
                sort_keys=sort_keys,
            )
            with self._lock:
                self._pretty[key] = text
                if len(self._pretty) > _PRETTY:
                    self._pretty.popitem(last=False)
        return text

    def _strftime_now(self, format: str) -> str:
        rest = iter(format)
        for letter in rest:
            if letter == "%":
                letter = next(rest, "")
                if letter == "-":
                    letter = next(rest, "")
                if letter not in _DAY:
                    raise UnknownError(Why.CLOCK)
        return self._now().strftime(format)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _cut(text: str, final: str) -> str:
    mark = _MARK.strip()
    at = text.rfind(mark)
    if at < 0 or final.strip() not in text:
        raise UnknownError(Why.TEMPLATE)
    if text.startswith(_MARK, at):
        return text[:at]
    return text[:at].rstrip()  # the template trims: the text it ends with is trimmed too
