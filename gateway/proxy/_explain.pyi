from typing import Any

from gateway.proxy._plane import Plane

def explain(plane: Plane, head: bytes, body: bytes, key: str = "") -> dict[str, Any]: ...
