"""Loading and unloading a model at every Triton at once, as KServe's repository API asks for it."""

import asyncio
import json
from collections.abc import Sequence
from urllib.parse import quote

from gateway.fleet import Member
from gateway.prober import Prober

__all__ = ["change_repository"]

VERBS = ("load", "unload")
# By then the workers have the models that were read: whoever loads one may ask it at once.
TOLD_S = 0.1


async def change_repository(
    prober: Prober, members: Sequence[Member], model: str, verb: str, body: bytes
) -> tuple[int, bytes]:
    """Do it at all of them: 200 once all have done it, else the first that has not, in its own
    words. Takes as long as the slowest takes to load."""
    if verb not in VERBS:
        return 404, _error(f"unknown: {verb}")
    tritons = [m for m in members if m.kind == "triton" and m.address and not m.leaving]
    if not tritons:
        return 503, _error("no Triton is known here")
    path = f"/v2/repository/models/{quote(model, safe='')}/{verb}"
    answers = await asyncio.gather(
        *(prober.change_repository(member, path, body or b"{}") for member in tritons)
    )
    await asyncio.sleep(TOLD_S)
    for member, (status, answer) in zip(tritons, answers, strict=True):
        if status == 0:
            return 503, _error(f"{member.name}: {answer.decode('utf-8', 'replace')}")
        if status != 200:
            return status, answer
    return 200, b""


def _error(text: str) -> bytes:
    return json.dumps({"error": text}).encode()
