"""One look at an engine over HTTP: health, kind, model list, address, and what else it tells.

OSError if we ourselves are out of descriptors or memory; nothing else is raised.
"""

import asyncio
import errno
import ipaddress
import os
import socket
import ssl
from typing import Any
from urllib.parse import quote

import aiohttp
import msgspec

from engines.control import Call, Reply
from engines.kind import KINDS, UNTOLD
from engines.kv_sources import KV_SOURCES_PATH, KvSource, parse_kv_sources
from engines.tokens.ask import Question
from engines.triton.kind import TRITON, header_to_set
from gateway.fleet import Member
from gateway.health import Outcome
from gateway.version import VERSION

__all__ = ["Probe", "Unanswered"]

PAGE_BYTES = 8 << 20
"""Most that is read of an answer; a model list with a thousand adapters is some 100 KB."""
MAX_MODELS = 1024
"""Of one engine: a base model and its adapters."""
NOT_THERE = (400, 404)
"""A Triton's answers about a model that it does not have; older ones say 400."""
MAX_TEXT = 256
"""Characters of a model's name, and of what else its entry says."""
OUR_FAULTS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""We are out of something: that says nothing about the engine."""
_HINTS = {
    TRITON.name: "; its `url` is that of its HTTP port (8000), not of the one for gRPC (8001)"
}
UNREACHABLE = (errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH)


class Unanswered(Exception):
    """An engine gave no answer; the text says why, for people."""


class Probe:
    """Shared by all endpoints; `timeout_s` bounds each single look. Make it inside the loop."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._contexts: dict[str, ssl.SSLContext] = {}
        # A connection of its own for each look: a kept one says nothing about the listener.
        self._session = aiohttp.ClientSession(
            # Its addresses are numbers: there is no race between two families to run.
            connector=aiohttp.TCPConnector(
                limit=0, force_close=True, happy_eyeballs_delay=None, use_dns_cache=False
            ),
            headers={"User-Agent": f"headgate/{VERSION}"},
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def close(self) -> None:
        """Close what is open."""
        await self._session.close()

    async def resolve(self, member: Member) -> list[str]:
        """The addresses of its host, IPv4 first; empty if there are none now."""
        host = member.url.host
        try:
            return [str(ipaddress.ip_address(host))]
        except ValueError:
            pass
        try:
            async with asyncio.timeout(self.timeout_s):
                found = await asyncio.get_running_loop().getaddrinfo(
                    host, member.url.port, type=socket.SOCK_STREAM
                )
        except (OSError, UnicodeError):  # TimeoutError is an OSError
            return []
        ordered = sorted(found, key=lambda info: info[0] != socket.AF_INET)
        return [str(info[4][0]) for info in ordered]

    async def health(self, member: Member) -> tuple[Outcome, str]:
        """Ask the health route. GOOD for one that does not exist: the model list decides then."""
        path = KINDS[member.kind].health_path
        status, body, error = await self._ask(member, path)
        if error is not None:
            return error, body
        if status in (200, 404, 405):
            return Outcome.GOOD, f"{path} answers {status}"
        outcome = Outcome.FATAL if status in (500, 503) else Outcome.ILL
        return outcome, f"{path} answers {status}"

    async def models(self, member: Member) -> tuple[list[dict[str, Any]] | None, Outcome, str]:
        """Entries of its model list; None and what was met if it cannot be read."""
        kind = KINDS[member.kind]
        path = kind.models_path
        status, body, error = await self._ask(member, path, kind.models_body)
        if error is not None:
            return None, error, body
        if status != 200:
            return None, Outcome.ILL, _refusal(path, status, body)
        try:
            listed = msgspec.json.decode(body)
            if kind.models_body is not None:
                listed = {"data": map(_from_index, listed)}
            listed = listed["data"] or []  # null: Ollama has none
            entries = [_plain(entry) for entry in listed if _is_named(entry)]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None, Outcome.ILL, f"{path} answers something that is no model list"
        if len(entries) > MAX_MODELS:
            return None, Outcome.ILL, f"{path} lists {len(entries)} models; {MAX_MODELS} are taken"
        if kind is TRITON and (fault := await self._add_configs(member, entries)) is not None:
            return None, *fault
        return entries, Outcome.GOOD, f"{len(entries)} models"

    async def _add_configs(
        self, member: Member, entries: list[dict[str, Any]]
    ) -> tuple[Outcome, str] | None:
        """Each model's configuration, which tells whether and how it generates text. None: all that
        are there have been read; else what was met: a model that is not asked is not gone."""
        for entry in entries:
            path = f"/v2/models/{quote(entry['id'], safe='')}/config"
            status, body, error = await self._ask(member, path)
            if error is not None:
                return error, body
            if status in NOT_THERE:  # it was unloaded since
                continue
            if status != 200:
                return Outcome.ILL, _refusal(path, status, body)
            try:
                entry["triton_config"] = msgspec.json.decode(body, type=dict[str, Any])
            except (ValueError, RecursionError):
                return Outcome.ILL, f"{path} answers something that is no configuration"
        return None

    async def kind(self, member: Member) -> tuple[str | None, Outcome, str]:
        """What runs there, by what it says of itself; None and what was met if it cannot be asked.

        It asks until something fits: the model list's owners, then routes that only one kind has.
        """
        status, listed, error = await self._ask(member, KINDS[UNTOLD].models_path)
        owners = _owners(listed) if error is None and status == 200 else set()
        for kind in KINDS.values():
            if owners and owners <= set(kind.owned_by):
                return kind.name, Outcome.GOOD, listed
            for tell in kind.tells:
                status, body, error = await self._ask(member, tell.path)
                if error is not None:
                    return None, error, body
                if status == 200 and tell.is_met(body.encode()):
                    return kind.name, Outcome.GOOD, body
        return UNTOLD, Outcome.GOOD, "it does not tell"

    async def kv_sources(self, member: Member) -> list[KvSource]:
        """Where it publishes its KV events, by rank. ValueError: it does not say."""
        status, body, error = await self._ask(member, KV_SOURCES_PATH)
        if error is not None:
            raise ValueError(body)
        if status != 200:
            raise ValueError(f"{KV_SOURCES_PATH} answers {status}; name them in `kv_events`")
        return parse_kv_sources(body, member.address)

    async def ask(self, member: Member, question: Question, model: str) -> tuple[int, bytes] | None:
        """POST a question about a model: status and answer; None: there was none."""
        body = msgspec.json.encode({**msgspec.json.decode(question.body), "model": model})
        status, answer, error = await self._ask(member, question.path, body)
        return None if error is not None else (status, answer.encode())

    async def call(self, member: Member, call: Call, timeout_s: float) -> Reply:
        """A request of `engines.control`. Unanswered: there was no answer; the text says why."""
        body = None if call.body is None else msgspec.json.encode(call.body)
        status, answer, error = await self._ask(
            member, call.path, body, method=call.method, timeout_s=timeout_s
        )
        if error is not None:
            raise Unanswered(answer)
        return Reply(status, answer.encode())

    async def _ask(
        self,
        member: Member,
        path: str,
        body: bytes | None = None,
        *,
        method: str = "",
        timeout_s: float | None = None,
    ) -> tuple[int, str, Outcome | None]:
        """GET, or POST of JSON: (status, body, None), or (0, what happened, outcome)."""
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        url, engine = member.url, member.engine
        host = f"[{member.address}]" if ":" in member.address else member.address
        target = f"{'https' if url.tls else 'http'}://{host}:{url.port}{url.prefix}{path}"
        headers = {"Host": url.authority}
        if engine.api_key:
            headers["Authorization"] = f"Bearer {engine.api_key.reveal()}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        if engine.control_header:
            name, _, value = engine.control_header.reveal().partition(":")
            headers[name.strip()] = value.strip()
        if engine.rank is not None:
            headers["X-data-parallel-rank"] = str(engine.rank)
        try:
            async with self._session.request(
                method or ("GET" if body is None else "POST"),
                target,
                data=body,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=timeout_s),
                ssl=self.context(engine.ca_file) if url.tls else True,
                server_hostname=(engine.server_name or url.host) if url.tls else None,
            ) as response:
                page = await _bounded(response)
                return response.status, page.decode("utf-8", "replace"), None
        except TimeoutError:
            return 0, f"{path} does not answer within {timeout_s:g} s", Outcome.SILENT
        except aiohttp.ClientConnectorError as error:
            cause = error.os_error
            if cause.errno in OUR_FAULTS:
                raise cause from None
            refused = cause.errno in UNREACHABLE and not isinstance(cause, ssl.SSLError)
            outcome = Outcome.REFUSED if refused else Outcome.ILL
            return 0, f"cannot connect: {_why(cause)}", outcome
        except (aiohttp.ClientResponseError, aiohttp.ClientConnectionResetError):
            return 0, f"{path} gets no answer in HTTP{_HINTS.get(member.kind, '')}", Outcome.ILL
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return 0, f"{path} fails: {error or type(error).__name__}", Outcome.ILL

    def context(self, ca_file: str) -> ssl.SSLContext:
        """For an engine with this CA file; empty: the system's."""
        if ca_file not in self._contexts:
            self._contexts[ca_file] = ssl.create_default_context(cafile=ca_file or None)
        return self._contexts[ca_file]


def _from_index(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of KServe's repository index as one of OpenAI's list of models."""
    return {
        "id": entry["name"],
        "object": "model",
        "owned_by": "triton",
        "version": entry.get("version"),
    }


def _refusal(path: str, status: int, body: str) -> str:
    """Of a list that is not given, with what to set, if that helps."""
    text = f"{path} answers {status}"
    if status not in (401, 403):
        return text
    return f"{text}: {header_to_set(body) or 'its `api_key` is missing or wrong'}"


def _owners(listed: str) -> set[str]:
    """Who owns the models of a list, as it says; empty: it does not say."""
    try:
        return {str(entry["owned_by"]) for entry in msgspec.json.decode(listed)["data"]}
    except (ValueError, KeyError, TypeError, RecursionError):
        return set()


def _is_named(entry: object) -> bool:
    """A model list's entry with a name that can stand in a log line and in a metric's label."""
    name = entry.get("id") if isinstance(entry, dict) else None
    return isinstance(name, str) and 0 < len(name) <= MAX_TEXT and name.isprintable()


def _plain(entry: dict[str, Any]) -> dict[str, Any]:
    """Its short and simple fields: all are told again to workers and to clients."""
    return {
        name: value
        for name, value in entry.items()
        if len(name) <= MAX_TEXT
        and (
            value is None
            or isinstance(value, (bool, int, float))
            or (isinstance(value, str) and len(value) <= MAX_TEXT)
        )
    }


def _why(error: OSError) -> str:
    """In words: an event loop's own text names the address again."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message}); see `ca_file`"
    if isinstance(error, ssl.SSLError):
        return f"TLS fails ({error.reason or error})"
    named = error.errno is not None and error.errno > 0
    return os.strerror(error.errno or 0) if named else str(error)


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    pieces, size = [], 0
    async for piece in response.content.iter_any():
        size += len(piece)
        if size > PAGE_BYTES:
            raise ValueError(f"an answer of more than {PAGE_BYTES} bytes")
        pieces.append(piece)
    return b"".join(pieces)
