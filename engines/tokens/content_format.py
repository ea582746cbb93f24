"""Does a template walk through the parts of a message, or does it want one text? vLLM's rule.

vLLM hands messages over in one of two forms and chooses by the template's syntax tree alone; what
it overlooks has to be overlooked here too. The tree holds a loop over the content of a message,
where messages are the targets of loops over `messages` (or over a variable assigned from it, whole,
sliced or filtered): parts. Also parts: a loop over a variable named `content` outside macros, and a
loop in a macro over a parameter that some call gives a message's content. Everything else: text.
"""

from collections.abc import Iterator
from enum import StrEnum

from jinja2 import nodes

__all__ = ["ContentFormat", "find_content_format"]


class ContentFormat(StrEnum):
    """How a template gets the content of a message; the values are vLLM's."""

    TEXT = "string"
    PARTS = "openai"


class _OddError(Exception):
    """vLLM's search gives up here, and takes text."""


def find_content_format(tree: nodes.Template) -> ContentFormat:
    """The form vLLM chooses for a template; never raises."""
    try:
        messages = set(_loop_targets(tree, _aliases(tree)))
        has_loop = _loops_over_content(tree, messages)
    except _OddError:
        return ContentFormat.TEXT
    return ContentFormat.PARTS if has_loop else ContentFormat.TEXT


def _aliases(tree: nodes.Template) -> list[str]:
    """`messages`, and what is assigned from it or from another alias."""
    found = ["messages"]
    for name in found:  # grows while it is walked
        for assign in tree.find_all(nodes.Assign):
            if _is_of(assign.node, name):
                target = _name(assign.target)
                if target not in found:
                    found.append(target)
    return found


def _loop_targets(tree: nodes.Template, lists: list[str]) -> Iterator[str]:
    for loop in tree.find_all(nodes.For):
        if any(_is_of(loop.iter, name) for name in lists):
            yield _name(loop.target)


def _loops_over_content(tree: nodes.Template, messages: set[str]) -> bool:
    parameters: dict[int, set[str]] = {}
    """Of the macro a loop stands in: those that are given a message's content."""
    for macro in tree.find_all(nodes.Macro):
        given = _given_content(tree, macro, messages)
        for loop in macro.find_all(nodes.For):
            parameters[id(loop)] = given or parameters.get(id(loop), set())
    for loop in tree.find_all(nodes.For):
        over = loop.iter.name if isinstance(loop.iter, nodes.Name) else None
        inside = parameters.get(id(loop))
        if (
            any(_is_of(loop.iter, name, "content") for name in messages)
            or (inside is not None and over in inside)
            or (inside is None and over == "content")
        ):
            _name(loop.target)
            return True
    return False


def _given_content(tree: nodes.Template, macro: nodes.Macro, messages: set[str]) -> set[str]:
    names = [argument.name for argument in macro.args]
    found = set()
    for call in tree.find_all(nodes.Call):
        if not isinstance(call.node, nodes.Name) or call.node.name != macro.name:
            continue
        pairs = [
            *zip(names, call.args, strict=False),
            *((one.key, one.value) for one in call.kwargs if isinstance(one, nodes.Keyword)),
        ]
        for name, value in pairs:
            if name in names and any(_is_of(value, one, "content") for one in messages):
                found.add(name)
    return found


def _is_of(node: nodes.Node | None, name: str, key: str | None = None) -> bool:
    """Is it the variable, or its member `key`, through any filters, tests and slices?"""
    while True:
        if isinstance(node, nodes.Filter | nodes.Test) or (
            isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
        ):
            node = node.node
            continue
        if key is None:
            return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == name
        if isinstance(node, nodes.Getattr) and node.attr == key:
            return _is_of_name(node.node, name)
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
            return node.arg.value == key and _is_of_name(node.node, name)
        return False


def _is_of_name(node: nodes.Node, name: str) -> bool:
    return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == name


def _name(target: nodes.Node) -> str:
    if not isinstance(target, nodes.Name):
        raise _OddError
    return target.name
