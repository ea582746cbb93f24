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

from engines.kind import KINDS, UNTOLD
from engines.kv_sources import KV_SOURCES_PATH, KvSource, parse_kv_sources
from engines.tokens.ask import Question
from gateway.fleet import Member
from gateway.health import Outcome
from gateway.version import VERSION

__all__ = ["Probe"]

PAGE_BYTES = 8 << 20
"""Most that is read of an answer; a model list with a thousand adapters is some 100 KB."""
MAX_MODELS = 1024
"""Of one engine: a base model and its adapters."""
MAX_TEXT = 256
"""Characters of a model's name, and of what else its entry says."""
OUR_FAULTS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""We are out of something: that says nothing about the engine."""
UNREACHABLE = (errno.ECONNREFUSED, errno.ECONNRESET, errno.EHOSTUNREACH, errno.ENETUNREACH)


class Probe:
    """Shared by all endpoints; `timeout_s` bounds each single look. Make it inside the loop."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._contexts: dict[str, ssl.SSLContext] = {}
        # A connection of its own for each look: a kept one says nothing about the listener.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, force_close=True),
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
        if member.kind == "triton":
            return await self._triton_models(member)
        path = KINDS[member.kind].models_path
        status, body, error = await self._ask(member, path)
        if error is not None:
            return None, error, body
        if status in (401, 403):
            return None, Outcome.ILL, f"{path} answers {status}: its `api_key` is missing or wrong"
        if status != 200:
            return None, Outcome.ILL, f"{path} answers {status}"
        try:
            listed = msgspec.json.decode(body)["data"] or []  # null: Ollama has none
            entries = [_plain(entry) for entry in listed if _is_named(entry)]
        except (ValueError, KeyError, TypeError, RecursionError):
            return None, Outcome.ILL, f"{path} answers something that is no model list"
        if len(entries) > MAX_MODELS:
            return None, Outcome.ILL, f"{path} lists {len(entries)} models; {MAX_MODELS} are taken"
        return entries, Outcome.GOOD, f"{len(entries)} models"

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

    async def _triton_models(
        self, member: Member
    ) -> tuple[list[dict[str, Any]] | None, Outcome, str]:
        """Those that are loaded, each with its configuration as `triton_config`."""
        path = KINDS[member.kind].models_path
        status, body, error = await self._ask(member, path, b'{"ready":true}')
        if error is not None:
            return None, error, body
        if status != 200:
            return None, Outcome.ILL, f"{path} answers {status}: {body[:MAX_TEXT]}"
        entries = []
        try:
            names = [one["name"] for one in msgspec.json.decode(body)]
            for name in dict.fromkeys(names):
                config = await self._triton_config(member, name)
                if config is not None:  # else it was unloaded since
                    entry = {"id": name, "object": "model", "owned_by": "triton"}
                    entries.append({**entry, "triton_config": config})
        except (ValueError, KeyError, TypeError, RecursionError):
            return None, Outcome.ILL, f"{path} answers something that is no repository index"
        if len(entries) > MAX_MODELS:
            return None, Outcome.ILL, f"{path} lists {len(entries)} models; {MAX_MODELS} are taken"
        return entries, Outcome.GOOD, f"{len(entries)} models"

    async def _triton_config(self, member: Member, name: str) -> dict[str, Any] | None:
        if not _is_named({"id": name}):
            return None
        path = f"/v2/models/{quote(name, safe='')}/config"
        status, body, error = await self._ask(member, path)
        if error is not None or status != 200:
            return None
        config = msgspec.json.decode(body)
        return config if isinstance(config, dict) else None

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

    async def _ask(
        self, member: Member, path: str, body: bytes | None = None
    ) -> tuple[int, str, Outcome | None]:
        """GET, or POST of JSON: (status, body, None), or (0, what happened, outcome)."""
        url, engine = member.url, member.engine
        host = f"[{member.address}]" if ":" in member.address else member.address
        target = f"{'https' if url.tls else 'http'}://{host}:{url.port}{url.prefix}{path}"
        headers = {"Host": url.authority}
        if engine.api_key:
            headers["Authorization"] = f"Bearer {engine.api_key.reveal()}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        if engine.rank is not None:
            headers["X-data-parallel-rank"] = str(engine.rank)
        try:
            async with self._session.request(
                "GET" if body is None else "POST",
                target,
                data=body,
                headers=headers,
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=self.timeout_s),
                ssl=self.context(engine.ca_file) if url.tls else True,
                server_hostname=(engine.server_name or url.host) if url.tls else None,
            ) as response:
                page = await _bounded(response)
                return response.status, page.decode("utf-8", "replace"), None
        except TimeoutError:
            return 0, f"{path} does not answer within {self.timeout_s:g} s", Outcome.SILENT
        except aiohttp.ClientConnectorError as error:
            cause = error.os_error
            if cause.errno in OUR_FAULTS:
                raise cause from None
            refused = cause.errno in UNREACHABLE and not isinstance(cause, ssl.SSLError)
            outcome = Outcome.REFUSED if refused else Outcome.ILL
            return 0, f"cannot connect: {_why(cause)}", outcome
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return 0, f"{path} fails: {error or type(error).__name__}", Outcome.ILL

    def context(self, ca_file: str) -> ssl.SSLContext:
        """For an engine with this CA file; empty: the system's."""
        if ca_file not in self._contexts:
            self._contexts[ca_file] = ssl.create_default_context(cafile=ca_file or None)
        return self._contexts[ca_file]


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
