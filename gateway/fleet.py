"""Who is there and what they serve: slots, generations, models, aliases. Pure: no I/O, no clock.

A slot goes to another endpoint only after `QUARANTINE_S` without load: by then every worker has
read a fleet without the old one, and the generation number tells the two apart where one has not.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from engines.kind import AUTO, KINDS, UNTOLD
from engines.triton.model import TritonModel, read_model
from gateway import messages
from gateway.config import (
    ASK,
    Config,
    Engine,
    EngineUrl,
    engine_name,
    label_texts,
    parse_engine_url,
)

__all__ = ["Fleet", "FleetError", "Member", "base_of"]

MAX_SLOTS = 1024
MAX_MODELS = 64
# Bits of a row, but for the one that no endpoint ever has.
MAX_LABELS = 63
ROLE_BITS = {"role=decode": 0, "role=prefill": 1}
QUARANTINE_S = 5.0
# What an engine makes up anew for each answer; it would make every reading a change.
VOLATILE = ("created", "permission")


class FleetError(Exception):
    """An endpoint cannot be added; the text says why, for people."""


@dataclass(slots=True, eq=False)
class Member:
    """An endpoint in its slot."""

    name: str
    engine: Engine
    url: EngineUrl
    slot: int
    generation: int
    source: str
    """'config', 'admin' or 'sim': who added it, and so who may take it away."""
    kind: str = UNTOLD
    """What runs there, as configured or as it has told."""
    address: str = ""
    """IP address; empty until the name is resolved."""
    block_tokens: int = 0
    """In a block of its KV cache, as its KV events say; 0: they did not yet."""
    models: dict[str, dict[str, Any]] | None = None
    """Its model list by id; None until it was read for the first time."""
    triton: dict[str, TritonModel] = field(default_factory=dict)
    """Of a Triton: its models that generate text."""
    labels: int = 0
    """Its bits in the table."""
    coming: set[str] = field(default_factory=set)
    """Models that are being loaded there: requests for them wait, if nobody else has them."""
    going: set[str] = field(default_factory=set)
    """Models that are being unloaded there: they get no requests, though they are listed."""
    leaving: bool = False
    """Removed as soon as nothing runs there."""

    def __repr__(self) -> str:
        return f"<{self.name} slot {self.slot}.{self.generation} at {self.address or '?'}>"


@dataclass(slots=True)
class _Slot:
    generation: int = 0
    member: Member | None = None
    left_s: float = -1.0e9


@dataclass(slots=True)
class Fleet:
    """All members. `busy(slot)`: whether load still stands on a slot."""

    busy: Callable[[int], bool]
    members: dict[str, Member] = field(default_factory=dict)
    samples: dict[str, tuple[messages.Sample, ...]] = field(default_factory=dict)
    """By model with a tokenizer: what an engine made of some prompts. Missing: not asked yet."""
    _slots: list[_Slot] = field(default_factory=list)
    _model_rows: dict[str, int] = field(default_factory=dict)
    _block_tokens: dict[str, int] = field(default_factory=dict)
    """By model; as of the last `build`."""
    _labels: dict[str, int] = field(default_factory=lambda: dict(ROLE_BITS))

    def add(self, engine: Engine, source: str, now_s: float) -> Member:
        """Give an engine a name and a slot. FleetError if it has none to get; ValueError: URL."""
        name = engine_name(engine.url, engine.name)
        if name in self.members:
            raise FleetError(f"an endpoint called '{name}' is there already")
        labels = self.label_bits(engine)
        index = self._free_slot(now_s)
        slot = self._slots[index]
        slot.generation += 1
        url = parse_engine_url(engine.url)
        kind = UNTOLD if engine.kind == AUTO else engine.kind
        slot.member = Member(name, engine, url, index, slot.generation, source, kind, labels=labels)
        self.members[name] = slot.member
        return slot.member

    def remove(self, name: str, now_s: float) -> Member:
        """Take an endpoint out at once. KeyError: there is none of that name."""
        member = self.members.pop(name)
        slot = self._slots[member.slot]
        slot.member, slot.left_s = None, now_s
        return member

    def rename(self, member: Member, name: str) -> None:
        """Give its name free for another. FleetError if the new one is taken."""
        if name in self.members:
            raise FleetError(f"an endpoint called '{name}' is there already")
        del self.members[member.name]
        member.name = name
        self.members[name] = member

    def move(self, member: Member, address: str) -> None:
        """The name resolves to another address: that is another endpoint to whoever dialled it."""
        if member.address:
            slot = self._slots[member.slot]
            slot.generation += 1
            member.generation = slot.generation
            member.models = None
            member.block_tokens = 0
            member.coming = set()
            member.going = set()
            if member.engine.kind == AUTO:
                member.kind = UNTOLD
        member.address = address

    def set_models(self, member: Member, entries: list[dict[str, Any]]) -> bool:
        """Take the `data` of its /v1/models. True if that changes anything.

        Of a Triton each entry has its model's configuration under `triton_config`.
        """
        old = member.models or {}
        new, triton = {}, {}
        for entry in entries:
            if isinstance(entry.get("id"), str):
                name = entry["id"]
                config = entry.pop("triton_config", None)
                if config is not None and (model := read_model(config)):
                    triton[name] = model
                new[name] = old[name] if _same(old.get(name), entry) else entry
        changed = member.models is None or new != old or triton != member.triton
        member.models, member.triton = new, triton
        return changed

    def label_bits(self, engine: Engine) -> int:
        """An engine's labels as bits. FleetError: there are more labels than bits."""
        roles = ("prefill", "decode") if engine.role == "both" else (engine.role,)
        texts = [*(f"role={role}" for role in roles), *label_texts(engine.labels)]
        fresh = [text for text in texts if text not in self._labels]
        if len(self._labels) + len(fresh) > MAX_LABELS:
            raise FleetError(
                f"with its labels there would be more than {MAX_LABELS} different ones, over all "
                "engines since the start"
            )
        # A bit is never given to another label: workers may still go by an older fleet.
        return sum(1 << self._labels.setdefault(text, len(self._labels)) for text in texts)

    def model_rows(self) -> dict[str, int]:
        """Model name -> row in the shared counters, of all models ever seen."""
        return dict(self._model_rows)

    def is_complete(self) -> bool:
        """Whether every endpoint's model list has been read at least once."""
        staying = [member for member in self.members.values() if not member.leaving]
        return bool(staying) and all(member.models is not None for member in staying)

    def build(self, config: Config, admin_address: str = "") -> messages.Fleet:
        """The workers' view; `admin_address` for their Settings."""
        placed = sorted((m for m in self.members.values() if m.address), key=lambda m: m.slot)
        slots: dict[str, list[int]] = {}
        parents: dict[str, str] = {}
        for member in placed:
            for name, entry in (member.models or {}).items():
                if name in member.going:
                    continue
                holders = slots.setdefault(name, [])
                if name not in member.coming:
                    holders.append(member.slot)
                if (base := base_of(name, entry)) != name:
                    parents[name] = base
            for name in member.coming:
                slots.setdefault(name, [])
        aliases = {
            alias: [messages.Choice(model, weight) for model, weight in targets.items()]
            for alias, targets in config.aliases().items()
        }
        tokenizers = self._tokenizers(config)
        self._block_tokens = {
            name: _most_common(
                member.block_tokens for member in placed if name in (member.models or {})
            )
            for name in slots
            if parents.get(name, name) in tokenizers
        }
        return messages.Fleet(
            endpoints=[_endpoint(member) for member in placed],
            models=[
                self._model(name, slots[name], parents.get(name, "")) for name in sorted(slots)
            ],
            tokenizers=tokenizers,
            aliases=aliases,
            keys=config.to_keys(),
            complete=self.is_complete(),
            settings=config.to_settings(admin_address),
            models_json=_models_json(placed, aliases),
            labels=dict(self._labels),
        )

    def block_tokens_of(self, member: Member) -> int:
        """Of the prompts that go to an endpoint; 0: they are cut by their text."""
        return max((self._block_tokens.get(name, 0) for name in member.models or {}), default=0)

    def _model(self, name: str, slots: list[int], parent: str) -> messages.Model:
        block_tokens = self._block_tokens.get(name, 0)
        return messages.Model(
            name,
            self._model_row(name),
            slots,
            parent,
            tokenizer=(parent or name) if block_tokens else "",
            block_tokens=block_tokens,
        )

    def _tokenizers(self, config: Config) -> dict[str, messages.Tokenizer]:
        return {
            name: messages.Tokenizer("")
            if rule.tokenizer == ASK
            else messages.Tokenizer(rule.tokenizer, rule.chat_template, self.samples.get(name, ()))
            for name, rule in config.models.items()
            if rule.tokenizer == ASK
            or (rule.tokenizer and (name in self.samples or self._takes_text(name)))
        }

    def _takes_text(self, name: str) -> bool:
        """Whether some engine leaves it to us to make a prompt of a conversation."""
        return any(name in member.triton for member in self.members.values())

    def _free_slot(self, now_s: float) -> int:
        for index, slot in enumerate(self._slots):
            waited = now_s - slot.left_s >= QUARANTINE_S
            if slot.member is None and waited and not self.busy(index):
                return index
        if len(self._slots) == MAX_SLOTS:
            raise FleetError(f"all {MAX_SLOTS} slots for endpoints are taken")
        self._slots.append(_Slot())
        return len(self._slots) - 1

    def _model_row(self, name: str) -> int:
        if name not in self._model_rows and len(self._model_rows) == MAX_MODELS - 1:
            return MAX_MODELS - 1  # one row for all further ones
        return self._model_rows.setdefault(name, len(self._model_rows))


def base_of(name: str, entry: dict[str, Any]) -> str:
    """The model that an adapter belongs to, by its entry in a model list; else the model itself."""
    parent = entry.get("parent")
    return parent if isinstance(parent, str) and parent else name


def _most_common(values: Iterable[int]) -> int:
    """Of those that are not 0; 0 if there are none."""
    counts = Counter(value for value in values if value)
    return max(counts, key=lambda value: (counts[value], value), default=0)


def _endpoint(member: Member) -> messages.Endpoint:
    engine, url = member.engine, member.url
    return messages.Endpoint(
        slot=member.slot,
        generation=member.generation,
        name=member.name,
        kind=member.kind,
        host=url.authority,
        address=member.address,
        port=url.port,
        tls=url.tls,
        server_name=(engine.server_name or url.host) if url.tls else "",
        ca_file=engine.ca_file,
        api_key=engine.api_key.reveal(),
        keep_alive_s=engine.keep_alive_s or KINDS[member.kind].keep_alive_s,
        path_prefix=url.prefix,
        rank=engine.rank,
        grpc_port=(engine.grpc_port or url.port + 1) if member.kind == "triton" else 0,
        triton=member.triton,
    )


def _same(old: dict[str, Any] | None, new: dict[str, Any]) -> bool:
    return old is not None and _steady(old) == _steady(new)


def _steady(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in VOLATILE}


def _models_json(members: list[Member], aliases: dict[str, list[messages.Choice]]) -> bytes:
    """The OpenAI list: each model once, then the aliases that lead somewhere."""
    found: dict[str, dict[str, Any]] = {}
    for member in members:
        for name, entry in (member.models or {}).items():
            if member.kind == "triton" and name not in member.triton:
                continue  # it has other inputs than a text: not a model to OpenAI's clients
            if name not in found:
                found[name] = {"object": "model", "created": 0, "owned_by": "unknown", **entry}
                found[name].pop("permission", None)
            elif "max_model_len" in entry:
                # what every one of them takes
                lengths = (found[name].get("max_model_len"), entry["max_model_len"])
                found[name]["max_model_len"] = min(
                    (length for length in lengths if isinstance(length, int)), default=None
                )
    listed = [found[name] for name in sorted(found) if name not in aliases]
    for alias, choices in sorted(aliases.items()):
        targets = [found[choice.model] for choice in choices if choice.model in found]
        if targets:
            entry = {**targets[0], "id": alias, "root": targets[0]["id"], "owned_by": "headgate"}
            entry["parent"] = None
            listed.append(entry)
    return json.dumps({"object": "list", "data": listed}, separators=(",", ":")).encode()
