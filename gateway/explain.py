"""Where would this request go now, and why? `headgate explain` asks a running gateway.

Asks its admin port; blocks, so for the command line only. The answer is a worker's own, by the data
path's code: see `gateway.proxy._explain`.
"""

import json
from dataclasses import dataclass
from typing import Any

from gateway.admin_client import call

__all__ = ["Question", "ask", "read_prompt", "table"]


@dataclass(frozen=True, slots=True)
class Question:
    """A request to be explained, as a client would send it."""

    path: str
    body: str
    headers: list[tuple[str, str]]
    key: str = ""
    """Name of the key it is asked with."""


def read_prompt(text: str, model: str | None, path: str | None) -> tuple[str, str]:
    """(path, body) of a prompt file: a request's JSON body as it stands, or else a raw prompt."""
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        named = {} if model is None else {"model": model}
        return path or "/v1/completions", json.dumps({**named, "prompt": text})
    if path is None:
        if "messages" in fields:
            path = "/v1/chat/completions"
        else:
            path = "/v1/responses" if "input" in fields else "/v1/completions"
    if model is not None and fields.get("model") != model:
        return path, json.dumps({**fields, "model": model})
    return path, text


def ask(admin: str, token: str, question: Question) -> dict[str, Any]:
    """The gateway's answer. `admin`: http[s]://host:port. AdminError."""
    body = {
        "path": question.path,
        "headers": dict(question.headers),
        "body": question.body,
        "key": question.key,
    }
    found: dict[str, Any] = call(admin, token, "POST", "/admin/explain", body)
    return found


def table(answer: dict[str, Any]) -> str:
    """The answer as text for a terminal."""
    lines = []
    if "candidates" in answer:
        lines += _summary(answer)
        lines += ["", *_columns(_rows(answer))]
    refused = answer.get("refused")
    if refused:
        status = f"{refused['status']}, " if "status" in refused else ""
        lines += ["", f"refused: {status}{refused['reason']}: {refused['message']}"]
    elif "waits_s" in answer:
        lines += ["", f"It waits for an engine with room, {answer['waits_s']:g} s at most."]
        if answer["ahead"]:
            lines.append(f"Before it: {_requests(answer['ahead'])} for the same endpoints.")
    else:
        lines += ["", f"It goes to {answer['endpoint']}."]
    return "\n".join(lines).lstrip("\n")


def _summary(answer: dict[str, Any]) -> list[str]:
    lines = [
        f"model {answer['model'] or '(any)'}, policy {answer['policy']}, "
        f"as worker {answer['worker']} sees it now",
        f"prompt about {answer['prompt_tokens']:.0f} tokens in {answer['prompt_blocks']} whole "
        f"blocks, answer about {answer['output_tokens']:.0f} tokens",
        f"prompts take {answer['pressure']:.0%} of the engines' time; of their tokens of late "
        f"{answer['hit_ratio']:.0%} were cached",
    ]
    if answer["waiting"]:
        lines.append(f"held back for want of room: {_requests(answer['waiting'])}")
    if answer["session"]:
        lines.append(f"session: {SESSIONS[answer['session']]}")
    if "price" in answer["terms"]:
        lines.append("cost: own x (1 + price), and the other terms")
    if answer["is_adapter"]:
        lines.append("a LoRA adapter: adapter is what loading it costs")
    if answer["labels"]:
        lines.append(f"endpoints must have {', '.join(answer['labels'])}")
    return lines


SESSIONS = {
    "new": "not seen lately; it is free to go anywhere",
    "home": "stays where it was last",
    "moved": "leaves the endpoint that it was at last",
    "bound": "stays at its endpoint (mode hard)",
}


def _rows(answer: dict[str, Any]) -> list[list[str]]:
    # What is 0 everywhere decides nothing.
    terms = [term for term in answer["terms"] if any(e[term] for e in answer["candidates"])]
    heads = [term.removesuffix("_s") for term in terms]
    unit = " ms" if answer["unit"] == "s" else ""
    rows = [["", "endpoint", f"cost{unit}", *heads, "cached", "in flight", "why not"]]
    for entry in answer["candidates"]:
        rows.append(
            [
                "->" if entry["endpoint"] == answer["endpoint"] else "",
                entry["endpoint"],
                _number(entry["cost"], answer["unit"] == "s"),
                *(_number(entry[term], term.endswith("_s")) for term in terms),
                f"{entry['cached_tokens']:.0f}",
                str(entry["in_flight"]),
                entry["why_not"] + (f" ({entry['state']})" if entry["state"] != "ready" else ""),
            ]
        )
    return rows


def _requests(n: int) -> str:
    return f"{n} request{'s' * (n != 1)}"


def _number(value: float, is_seconds: bool) -> str:
    return f"{value * 1000:.1f}" if is_seconds else f"{value:.3g}"


def _columns(rows: list[list[str]]) -> list[str]:
    """In columns: text to the left, numbers to the right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    left = (0, 1, len(widths) - 1)
    return [
        "  ".join(
            cell.ljust(width) if at in left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
