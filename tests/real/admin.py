"""Orders to a gateway about what its engines serve."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from tests.real.headgate_process import ADMIN_TOKEN, Gateway

__all__ = ["Admin", "answer_of"]


class Admin:
    """Orders about one endpoint of a gateway."""

    def __init__(self, gateway: Gateway, url: str) -> None:
        self.place = f"{gateway.admin_url}/admin/endpoints/{url.removeprefix('http://')}"

    def ask(
        self, path: str, body: dict[str, Any] | None = None, method: str | None = None
    ) -> tuple[int, Any]:
        """POST if there is a body, or as `method` says: status and answer."""
        request = urllib.request.Request(
            f"{self.place}{path}",
            None if body is None else json.dumps(body).encode(),
            {"authorization": f"Bearer {ADMIN_TOKEN}"},
            method=method,
        )
        return answer_of(request)

    def done(self, path: str, model: str, **options: Any) -> dict[str, Any]:
        status, answer = self.ask(path, {"model": model, "options": options})
        assert status == 200, answer
        return dict(answer)

    def refused(self, path: str, model: str) -> tuple[int, str]:
        status, answer = self.ask(path, {"model": model})
        return status, answer["error"]["message"]

    def ready(self, model: str) -> bool:
        status, answer = self.ask(f"/ready/{model}")
        assert status == 200, answer
        return bool(answer["ready"])

    def states(self) -> dict[str, str]:
        _, answer = self.ask("/models")
        return {one["id"]: one["state"] for one in answer["data"]}


def answer_of(request: urllib.request.Request) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return int(answer.status), json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())
