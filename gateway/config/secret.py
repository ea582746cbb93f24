"""Values that are never shown: given inline, as `env:NAME` or as `file:PATH`."""

from collections.abc import Mapping
from pathlib import Path

__all__ = ["Secret", "read_secret"]


class Secret:
    """A value that prints as dots. False when there is none."""

    __slots__ = ("_value",)

    def __init__(self, value: str = "") -> None:
        self._value = value

    def reveal(self) -> str:
        """The value itself; for the wire, never for a log."""
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "Secret(***)" if self._value else "Secret()"


def read_secret(text: str, env: Mapping[str, str]) -> Secret:
    """Follow `env:` and `file:`; blanks and the line end are stripped off a file's content.

    ValueError says what is missing, without the value.
    """
    source, _, rest = text.partition(":")
    if source == "env":
        if not env.get(rest):
            raise ValueError(f"the environment variable {rest} is not set")
        return Secret(env[rest])
    if source == "file":
        try:
            value = Path(rest).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise ValueError(f"the file {rest} cannot be read: {reason}") from None
        if not value:
            raise ValueError(f"the file {rest} is empty")
        return Secret(value)
    return Secret(text)
