"""Finds out, engine by engine, what is needed to compare prompts by token ids with its KV cache:
where it publishes its KV events, and what token ids it makes of some prompts.

Only engines with a model that has a `tokenizer` are asked. Whatever is missing, the engine is
routed to by what was sent there, and the log says why.
"""

import logging
import time
from collections.abc import Callable, Mapping

from engines.kv_sources import KvSource, parse_kv_source
from engines.tokens.ask import read_tokenize, tokenize_question
from engines.tokens.probes import PROBES
from gateway.caches import Caches
from gateway.config import ASK
from gateway.config.schema import ModelRule
from gateway.fleet import Fleet, Member, base_of
from gateway.messages import Sample
from gateway.probe import Probe

__all__ = ["KvFollowing"]

log = logging.getLogger("headgate.kv")

LOOK_S = 10.0
"""Between two looks for an engine's events; the first one is made as soon as it answers probes."""


class KvFollowing:
    """`rules`: the models' part of the configuration in force. Used inside one event loop."""

    def __init__(
        self,
        fleet: Fleet,
        caches: Caches,
        rules: Callable[[], Mapping[str, ModelRule]],
        on_change: Callable[[], None],
    ) -> None:
        self._fleet = fleet
        self._caches = caches
        self._rules = rules
        self._on_change = on_change
        self._looked_s: dict[tuple[int, int], float] = {}
        self._told: dict[tuple[int, int], str] = {}
        """What was complained of, by slot and generation: once is enough."""

    async def look(self, probe: Probe, member: Member) -> None:
        """Ask an engine that answers, if it is time. Never raises on what it answers."""
        if member.kind == "triton":
            return  # it neither publishes events nor tells token ids
        rules = self._rules()
        names = [base_of(name, entry) for name, entry in (member.models or {}).items()]
        names = [name for name in dict.fromkeys(names) if name in rules and rules[name].tokenizer]
        who = (member.slot, member.generation)
        now_s = time.monotonic()
        is_time = bool(names) and now_s - self._looked_s.get(who, -LOOK_S) >= LOOK_S
        if is_time:
            self._looked_s[who] = now_s
            await self._find(probe, member, who)
        for name in names:
            known = self._fleet.samples.get(name)
            if rules[name].tokenizer == ASK or known or not member.block_tokens:
                continue
            if known is None or is_time:  # another engine, or this one later, may tell
                samples = await self._sample(probe, member, name)
                if samples != known:
                    self._fleet.samples[name] = samples
                    self._on_change()

    def forget(self, member: Member) -> None:
        """It left, or became another in its slot."""
        for who in [who for who in self._looked_s if who[0] == member.slot]:
            del self._looked_s[who]
            self._told.pop(who, None)

    async def _find(self, probe: Probe, member: Member, who: tuple[int, int]) -> None:
        if (subscription := self._caches.subscription(member.slot)) and not subscription.is_lost:
            return
        try:
            source = self._choose(await self._sources(probe, member), member)
            if who == (member.slot, member.generation):  # it may have moved meanwhile
                self._caches.follow(member, source)
            self._told.pop(who, None)
        except ValueError as error:
            if self._told.get(who) != str(error):
                self._told[who] = str(error)
                log.warning("%s: no KV events, going by what is sent there: %s", member.name, error)

    async def _sources(self, probe: Probe, member: Member) -> list[KvSource]:
        if member.engine.kv_events:
            return [parse_kv_source(text, member.address) for text in member.engine.kv_events]
        return await probe.kv_sources(member)

    def _choose(self, sources: list[KvSource], member: Member) -> KvSource:
        """The publisher of the rank that the endpoint is. ValueError: none, or more than one."""
        rank = member.engine.rank
        if not sources:
            raise ValueError("it publishes none; start it with --kv-events-config")
        if rank is None:
            if len(sources) > 1:
                raise ValueError(
                    f"it has {len(sources)} data-parallel ranks, each with a cache of its own; "
                    f"set `data_parallel: {len(sources)}` for it"
                )
            return sources[0]
        for source in sources:
            if source.rank == rank:
                return source
        raise ValueError(f"none of its {len(sources)} publishers is rank {rank}")

    async def _sample(self, probe: Probe, member: Member, model: str) -> tuple[Sample, ...]:
        """What the engine makes of our probes; those that it refuses are left out."""
        samples = []
        for path, body in PROBES:
            question = tokenize_question(path, body)
            if question is None:
                continue
            answer = await probe.ask(member, question, model)
            ids = None if answer is None else read_tokenize(*answer)
            if ids is not None:
                samples.append(Sample(path, body, ids.tobytes()))
        if not samples and model not in self._fleet.samples:
            log.warning(
                "%s: does not tell the token ids of prompts (POST /tokenize), so the tokenizer "
                "configured for %s cannot be compared with it",
                member.name,
                model,
            )
        return tuple(samples)
