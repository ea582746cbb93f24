"""Plain data into typed structs, collecting every error on the way. Knows no key by name."""

import difflib
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec

from gateway.config.secret import Secret, read_secret

__all__ = ["Reader", "leaf_type", "takes_text"]


class Reader:
    """Reads data of one source; `errors` grows by a line for each thing that is wrong."""

    def __init__(self, source: str, env: Mapping[str, str]) -> None:
        self.source = source
        self.errors: list[str] = []
        self._env = env

    def read(self, wanted: Any, data: Any, path: str = "") -> Any:
        """`data` as a `wanted`; where it is wrong, an error is noted and a default returned."""
        options = _options(wanted)
        if data is None and type(None) in options:
            return None
        for option in options:
            if isinstance(option, type) and issubclass(option, msgspec.Struct):
                return self._read_struct(option, data, path)
            if option is Secret:
                return self._read_secret(data, path)
            if get_origin(option) is list:
                return self._read_list(option, data, path)
            if get_origin(option) is dict:
                return self._read_dict(option, data, path)
        return self._read_leaf(wanted, data, path)

    def _read_struct(self, wanted: type[msgspec.Struct], data: Any, path: str) -> Any:
        if not isinstance(data, dict):
            self._wrong(path, "a mapping", data)
            return None
        hints = get_type_hints(wanted, include_extras=True)
        for key in data:
            if key not in hints:
                self._unknown(path, key, list(hints))
        fields = {}
        for field in msgspec.structs.fields(wanted):
            value = data.get(field.name)
            if value is not None:  # `key:` with nothing behind it leaves the default
                at = _join(path, field.name)
                errors = len(self.errors)
                read = self.read(hints[field.name], value, at)
                if len(self.errors) == errors or not field.required:
                    fields[field.name] = read
            if field.required and field.name not in fields:
                if value is None:
                    self._say(_join(path, field.name), f"missing; {_describe(hints[field.name])}")
                fields[field.name] = None
        return wanted(**fields)

    def _read_list(self, wanted: Any, data: Any, path: str) -> list[Any]:
        if not isinstance(data, list):
            self._wrong(path, "a list", data)
            return []
        (item,) = get_args(wanted)
        return [self.read(item, value, f"{path}[{index}]") for index, value in enumerate(data)]

    def _read_dict(self, wanted: Any, data: Any, path: str) -> dict[str, Any]:
        if not isinstance(data, dict):
            self._wrong(path, "a mapping", data)
            return {}
        found = {}
        for key, value in data.items():
            if not isinstance(key, str):
                self._say(_join(path, str(key)), "the key is not text; put it in quotes")
                continue
            read = {} if value is None else value
            found[key] = self.read(get_args(wanted)[1], read, _join(path, key))
        return found

    def _read_secret(self, data: Any, path: str) -> Secret:
        if not isinstance(data, str):
            self._say(path, "expected text, env:NAME or file:PATH (put a number in quotes)")
            return Secret()
        try:
            return read_secret(data, self._env)
        except ValueError as error:
            self._say(path, str(error))
            return Secret()

    def _read_leaf(self, wanted: Any, data: Any, path: str) -> Any:
        try:
            value = msgspec.convert(data, wanted)
        except msgspec.ValidationError:
            if isinstance(data, int | float) and _is_free_text(wanted):  # YAML read it so
                self._wrong(path, "text in quotes", data)
            else:
                self._wrong(path, _describe(wanted).removeprefix("expected "), data)
            return None
        if isinstance(value, float) and value - value != 0:
            self._wrong(path, "a finite number", data)
        return value

    def _unknown(self, path: str, key: Any, known: list[str]) -> None:
        near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
        hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
        self._say(_join(path, str(key)), f"unknown key; {hint}")

    def _wrong(self, path: str, expected: str, data: Any) -> None:
        shown = repr(data) if len(repr(data)) <= 60 else repr(data)[:57] + "..."
        self._say(path, f"expected {expected}, got {shown}")

    def _say(self, path: str, text: str) -> None:
        self.errors.append(f"{self.source}: {path}: {text}" if path else f"{self.source}: {text}")


def leaf_type(root: type[msgspec.Struct], path: list[str]) -> Any:
    """The type at a path of field names below `root`. KeyError: there is no such field."""
    wanted: Any = root
    for name in path:
        if not (isinstance(wanted, type) and issubclass(wanted, msgspec.Struct)):
            raise KeyError(name)
        wanted = get_type_hints(wanted, include_extras=True)[name]
    return wanted


def takes_text(wanted: Any) -> bool:
    """Whether a value of this type is text as it stands, though it may look like a number."""
    (base,) = [option for option in _options(wanted) if option is not type(None)]
    if get_origin(base) is Annotated:
        base = get_args(base)[0]
    return base in (str, Secret) or get_origin(base) is Literal


def _is_free_text(wanted: Any) -> bool:
    return takes_text(wanted) and not any(get_origin(one) is Literal for one in _options(wanted))


def _options(wanted: Any) -> tuple[Any, ...]:
    if get_origin(wanted) in (Union, types.UnionType):
        return get_args(wanted)
    return (wanted,)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


_NOUNS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _describe(wanted: Any) -> str:
    """What was expected, in words."""
    (wanted,) = [option for option in _options(wanted) if option is not type(None)]
    if get_origin(wanted) is Literal:
        return f"expected one of {', '.join(get_args(wanted))}"
    if get_origin(wanted) is Annotated:
        base, meta = get_args(wanted)
        return f"expected {_NOUNS[base]}{_bounds(meta)}"
    return f"expected {_NOUNS.get(wanted, 'a mapping')}"


def _bounds(meta: msgspec.Meta) -> str:
    if meta.pattern is not None:
        return f" like {meta.pattern}"
    if meta.ge is not None and meta.le is not None:
        return f" from {meta.ge} to {meta.le}"
    if meta.gt is not None:
        return f" above {meta.gt}" + (f" and at most {meta.le}" if meta.le is not None else "")
    return f", {meta.ge} or more"
