"""Usage mode `exact`: ask the engine for usage the client did not ask for, and hide the answer.

vLLM sends usage in a chunk of its own at the end, and then moves `system_fingerprint` onto it;
a client that did not ask would find it on the chunk with the finish reason. So that chunk is held
until its successor is known.
"""

import json
from typing import Any

__all__ = ["UsageStripper", "with_usage"]

# As in the relay: a larger event is let through without a look.
MAX_EVENT_BYTES = 64 * 1024


def with_usage(options: bytes) -> bytes | None:
    """`stream_options` with `include_usage` set; None: it is set already.

    `options`: the raw JSON value, empty where there is none. A value that is no object is left to
    the engine, by None.
    """
    if not options:
        return b'{"include_usage":true}'
    try:
        value = json.loads(options)
    except ValueError:
        return None
    if value is None:
        value = {}
    if not isinstance(value, dict) or value.get("include_usage") is True:
        return None
    value["include_usage"] = True
    return json.dumps(value, separators=(",", ":")).encode()


class UsageStripper:
    """Takes the usage chunk out of a chat or text completion stream.

    `feed` takes payload in any pieces and returns whole events that may go out; `finish` the rest.
    """

    def __init__(self) -> None:
        self._tail = b""
        self._held = b""
        self._searched = 0
        self.is_passing = False
        """An event of more than MAX_EVENT_BYTES is going out in pieces."""

    def feed(self, payload: bytes) -> bytes:
        """Events that are complete and decided on."""
        out = []
        self._tail += payload
        while (end := _event_end(self._tail, self._searched)) >= 0:
            event, self._tail, self._searched = self._tail[:end], self._tail[end:], 0
            if self.is_passing:
                out.append(event)
                self.is_passing = False
            else:
                out.append(self._take(event))
        if self.is_passing or len(self._tail) > MAX_EVENT_BYTES:
            self.is_passing = True
            # What could be part of an event's end stays.
            cut = max(0, len(self._tail) - 2)
            out += [self._held, self._tail[:cut]]
            self._held, self._tail = b"", self._tail[cut:]
        self._searched = max(0, len(self._tail) - 2)
        return b"".join(out)

    def finish(self) -> bytes:
        """What is left when the stream has ended, an incomplete event included."""
        rest, self._held, self._tail = self._held + self._tail, b"", b""
        return rest

    def _take(self, event: bytes) -> bytes:
        if self._held:
            if b'"usage"' in event and b'"choices":[]' in event.replace(b" ", b""):
                held, self._held = self._held, b""
                return _move_fingerprint(event, held)
            held, self._held = self._held, b""
            return held + self._take(event)
        if b'"finish_reason":"' in event or b'"finish_reason": "' in event:
            self._held = event
            return b""
        if b'"usage"' in event and _is_usage_chunk(event):
            return b""
        return event


def _event_end(data: bytes, start: int) -> int:
    marks = (b"\n\n", b"\n\r\n")
    ends = [at + len(mark) for mark in marks if (at := data.find(mark, start)) >= 0]
    return min(ends, default=-1)


def _parse(event: bytes) -> dict[str, Any] | None:
    for line in event.splitlines():
        if line.startswith(b"data:"):
            try:
                value = json.loads(line[5:])
            except ValueError:
                return None
            return value if isinstance(value, dict) else None
    return None


def _is_usage_chunk(event: bytes) -> bool:
    chunk = _parse(event)
    return chunk is not None and chunk.get("choices") == [] and isinstance(chunk.get("usage"), dict)


def _move_fingerprint(usage_event: bytes, finish_event: bytes) -> bytes:
    chunk = _parse(usage_event)
    if chunk is None or not chunk.get("system_fingerprint"):
        return finish_event
    if b'"system_fingerprint"' in finish_event:
        return finish_event
    brace = finish_event.rindex(b"}")
    extra = b',"system_fingerprint":' + json.dumps(chunk["system_fingerprint"]).encode()
    return finish_event[:brace] + extra + finish_event[brace:]
