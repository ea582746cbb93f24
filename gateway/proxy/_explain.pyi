from collections.abc import Callable
from typing import Any

from gateway.proxy._plane import Plane

def explain(
    plane: Plane, head: bytes, body: bytes, key: str, answer: Callable[[dict[str, Any]], None]
) -> None: ...
