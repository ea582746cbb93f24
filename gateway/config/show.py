"""A configuration as plain data for people to see, without its secrets."""

from typing import Any

import msgspec

from gateway.config.secret import Secret

__all__ = ["show"]


def show(value: Any) -> Any:
    """Structs as mappings; a secret as '***', an unset one as ''."""
    if isinstance(value, Secret):
        return "***" if value else ""
    if isinstance(value, msgspec.Struct):
        return {name: show(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, dict):
        return {key: show(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [show(item) for item in value]
    return value
