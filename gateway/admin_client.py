"""Asks a running gateway's admin port. Blocks, so for the command line only."""

import http.client
import json
import ssl
from typing import Any
from urllib.parse import urlsplit

__all__ = ["AdminError", "call"]


class AdminError(Exception):
    """There is no answer, or it is a refusal; the text says why and what to do, for people."""


def call(
    admin: str, token: str, method: str, path: str, body: Any = None, timeout_s: float = 10.0
) -> Any:
    """The JSON of a good answer. `admin`: http[s]://host:port. AdminError."""
    place = urlsplit(admin)
    if place.scheme not in ("http", "https") or not place.hostname:
        raise AdminError(f"--admin: expected http://HOST:PORT, got {admin!r}")
    kind = http.client.HTTPSConnection if place.scheme == "https" else http.client.HTTPConnection
    connection = kind(place.hostname, place.port, timeout=timeout_s)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    try:
        connection.request(method, path, json.dumps({} if body is None else body).encode(), headers)
        response = connection.getresponse()
        status, text = response.status, response.read().decode("utf-8", "replace")
    except (OSError, ssl.SSLError, http.client.HTTPException) as error:
        raise AdminError(
            f"no gateway answers at {admin} ({error}): start it (`headgate serve`), or name its "
            "admin port with --admin"
        ) from None
    finally:
        connection.close()
    try:
        answer = json.loads(text)
    except ValueError:
        raise AdminError(f"{admin} answers {status}, and no JSON: is it a gateway?") from None
    if not 200 <= status < 300:
        what = answer.get("error", {}).get("message", text) if isinstance(answer, dict) else text
        if status == 401:
            what = (
                "Missing or wrong admin token; give the gateway's own file with --config, or set "
                "HEADGATE_ADMIN_TOKEN"
            )
        raise AdminError(f"{admin} answers {status}: {what}")
    return answer
