"""See _plane.pxd."""

import asyncio
import hashlib
import heapq
import logging
import os
import ssl
import time
from collections import OrderedDict
from email.utils import formatdate

import msgspec

from gateway.proxy.retry import Budget
from gateway.proxy.split import Split
from router import make_policy

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

from gateway._shared cimport Area, Count, Shared, observe, short_bounds_s
from gateway.http._write cimport Buffer
from gateway.proxy._holder cimport Holder
from gateway.proxy._path cimport Path, Paths
from gateway.proxy._served cimport Served
from gateway.proxy._steering cimport NOBODY, Steering
from gateway.proxy._waiting cimport Waiting
from gateway.proxy._wheel cimport Wheel
from router._demand cimport Demand
from router._keying cimport Prompt
from router._policy cimport BUSY
from router._router cimport Router
from router._table cimport MAX_SLOTS

cdef enum:
    # 64-bit words of prompts sent, between two ticks: 2,000 prompts of 64 KB.
    MAX_SENT = 1 << 19
    SHOWN_NAMES = 20
    # Responses whose endpoint is remembered.
    MAX_RESPONSES = 65536

log = logging.getLogger("headgate.plane")

cdef dict IDS_COUNTS = {
    "known": <int>Count.IDS_KNOWN, "unknown": <int>Count.IDS_UNKNOWN,
    "late": <int>Count.IDS_LATE, "full": <int>Count.IDS_FULL, "unloaded": <int>Count.IDS_UNLOADED,
}

cdef extern from "malloc.h" nogil:
    int mallopt(int param, int value)
    int M_MMAP_THRESHOLD
    int M_TRIM_THRESHOLD


def keep_freed_memory(int n_bytes):
    """Tell malloc to reuse blocks up to n_bytes instead of mapping each anew.

    A 200 KB body costs some 50 page faults each time it is mapped, more than copying it.
    """
    mallopt(M_MMAP_THRESHOLD, n_bytes)
    mallopt(M_TRIM_THRESHOLD, 4 * n_bytes)


cdef double now_s() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return t.tv_sec + t.tv_nsec * 1e-9


cdef class Plane:
    """Made by the worker's composition root; `apply` gives it the world, `tick` its time.

    `make_pool(plane, endpoint)` makes the Pool of an endpoint.
    """

    def __init__(self, loop, Shared shared, int column, make_pool):
        self.loop = loop
        self.make_pool = make_pool
        self.shared = shared
        self.table = shared.table
        self.column = column
        self.counts = shared.column(column)
        self.scratch = Buffer()
        self.last_tick_s = now_s()
        self.wheel = Wheel(self.last_tick_s)
        self.waiting = Waiting()
        self.models = {}
        self.native = {}
        self.demands = {}
        self.aliases = {}
        self.keys = {}
        self.pools = [None] * MAX_SLOTS
        self.sessions = set()
        self.empty = asyncio.Event()
        self.starved = []
        self.responses = OrderedDict()
        self.access = []
        # Untouched pages take no memory.
        self.sent = <uint64_t*>malloc(MAX_SENT * sizeof(uint64_t))
        if self.sent == NULL:
            raise MemoryError
        self.contexts = {}
        self.budget = Budget(0, 0, 1)       # until a Fleet says better
        self.n_ticks = 0
        self.on_made = None
        self.id_prefix = b"hg-" + os.urandom(6).hex().encode() + b"-"
        self.date = formatdate(usegmt=True).encode()

    def __dealloc__(self):
        free(self.sent)

    def apply(self, fleet):
        """Take over a Fleet; requests that run are not touched."""
        self._apply_settings(fleet.settings)
        self._apply_endpoints(fleet.endpoints)
        cdef Served served
        cdef int index
        self.models = {}
        self.native = {}
        # An adapter's requests are the same engines' work as its base model's.
        names = {model.parent or model.name for model in fleet.models} | {""}
        self.demands = {name: self.demands[name] for name in self.demands if name in names}
        asked = {name for name, one in fleet.tokenizers.items() if not one.folder}
        for model in fleet.models:
            served = Served(
                model.name, [slot for slot in model.slots if self.pools[slot] is not None],
                fleet.settings.usage_by_model.get(model.name, fleet.settings.usage) == "exact",
                self.demands.setdefault(model.parent or model.name, Demand()),
                bool(model.parent), model.tokenizer, model.block_tokens, model.tokenizer in asked,
            )
            index = model.index
            served.words = self.counts + <int>Area.MODELS + index * <int>Area.MODEL_WIDTH
            self.models[model.name.encode()] = served
            self._add_native(served)
        slots = [e.slot for e in fleet.endpoints if self.pools[e.slot] is not None]
        served = Served("", slots, False, self.demands.setdefault("", Demand()))
        served.words = self.counts + <int>Area.MODELS + 63 * <int>Area.MODEL_WIDTH
        self.unnamed = served
        if fleet.aliases != self.choices:
            # A fleet comes with every change of an engine: the splits go on where they are.
            self.choices = fleet.aliases
            self.aliases = {
                name.encode(): Split([(choice.model, choice.weight) for choice in choices])
                for name, choices in fleet.aliases.items()
            }
        self.credentials = {}
        self.steering = Steering(fleet.settings, fleet.labels)
        self.model_labels = {
            name.encode(): self.steering.mask(texts)
            for name, texts in fleet.settings.labels_by_model.items()
        }
        self.strange_labels = {
            name.encode(): strange
            for name, texts in fleet.settings.labels_by_model.items()
            if (strange := self.steering.strangers(texts))
        }
        self.keys = {
            key.digest: Holder(
                key.name, key.models, key.usage, self.steering.mask(key.labels),
                self.steering.strangers(key.labels), key.priority)
            for key in fleet.keys
        }
        self.complete = fleet.complete
        self.models_json = fleet.models_json
        self.cards = {
            card["id"]: msgspec.json.encode(card)
            for card in msgspec.json.decode(fleet.models_json)["data"]
        }
        if self.waiting.n:
            self.wake_soon(-1)

    cdef int _add_native(self, Served served) except -1:
        """The same model, of the endpoints alone that speak KServe's protocol."""
        cdef Served native
        cdef int index
        slots = []
        for index in range(served.n_slots):
            if self.pools[served.slots[index]].endpoint.kind == "triton":
                slots.append(served.slots[index])
        if slots:
            native = Served(served.name, slots, False, served.demand, served.adapter != 0)
            native.words = served.words
            native.is_native = True
            self.native[native.key] = native
        return 0

    @property
    def has_keys(self):
        """Clients have to name a key."""
        return bool(self.keys)

    def _apply_settings(self, settings):
        if settings == self.settings:
            return
        before = self.settings
        self.settings = settings
        if before is None or before.policy != settings.policy:
            self.router = Router(
                self.table, self.column, make_policy(settings.policy, self.column),
                self.shared.index, self.shared.n_workers, None, self.shared.sessions,
                self.shared.adapters,
            )
        self.shared.sessions.idle_s = settings.affinity_idle_s
        self.shared.adapters.load_s = settings.adapter_load_s
        if before is None or (before.retry_share, before.retry_floor, before.retry_window_s) != (
            settings.retry_share, settings.retry_floor, settings.retry_window_s
        ):
            self.budget = Budget(
                settings.retry_share, settings.retry_floor, settings.retry_window_s,
                self.counts[<int>Count.ACCEPTED],
            )
        self.paths = Paths(settings.paths)
        self.origins = frozenset(origin.encode() for origin in settings.cors_origins)
        self.waiting.limit(settings.hold_requests, settings.hold_bytes)
        self._copy(settings)

    def _copy(self, settings):
        """What the data path reads of the settings, as C values."""
        self.body_bytes = settings.body_bytes
        self.buffered_bytes = settings.buffered_bytes
        self.json_depth = settings.json_depth
        self.head_s = settings.head_s
        self.body_idle_s = settings.body_idle_s
        self.body_bytes_per_s = settings.body_bytes_per_s
        self.connect_s = settings.connect_s
        self.first_byte_s = settings.first_byte_s
        self.event_s = settings.event_s
        self.client_stall_s = settings.client_stall_s
        self.client_keep_alive_s = settings.client_keep_alive_s
        self.dead_silence_s = settings.dead_silence_s
        self.hold_wait_s = settings.hold_wait_s
        self.hold_s = settings.hold_s
        self.hold_no_engine_s = settings.hold_no_engine_s
        self.idle_connections = settings.idle_connections
        self.decision_header = settings.decision_header
        self.half_close = settings.client_half_close
        self.logs_access = settings.access_log
        self.kv_transfer_params = settings.allow_kv_transfer_params

    def _apply_endpoints(self, endpoints):
        cdef list pools = [None] * MAX_SLOTS
        for endpoint in endpoints:
            pool = self.pools[endpoint.slot]
            if pool is None or pool.endpoint != endpoint:
                pool = self._make_pool(endpoint)
            pools[endpoint.slot] = pool
        for slot in range(MAX_SLOTS):
            pool = self.pools[slot]
            if pool is not None and pools[slot] is not pool:
                pool.close()
                self.router.forget_recent()
        self.pools = pools

    def _make_pool(self, endpoint):
        try:
            return self.make_pool(self, endpoint)
        except OSError as error:
            # A CA file that is not there or no CA: that endpoint alone gets no requests.
            log.error("%s cannot be used: %s", endpoint.name, error)
            return None

    def tls_context(self, str ca_file, bint for_grpc=False):
        """The TLS context for engines that are verified by this CA file; '': the system's CAs.

        Reading the CAs takes tens of milliseconds, so each file is read once. OSError.
        """
        context = self.contexts.get((ca_file, for_grpc))
        if context is None:
            context = ssl.create_default_context(cafile=ca_file or None)
            if for_grpc:
                context.set_alpn_protocols(["h2"])
            self.contexts[ca_file, for_grpc] = context
        return context

    cdef Holder holder(self, bytes key):
        # The digest is looked up, never compared: there is no time to measure but the hash's own.
        cdef Holder holder = self.credentials.get(key)
        if holder is None:
            holder = self.keys.get(hashlib.sha256(key).digest())
            if holder is not None:
                self.credentials[key] = holder
        return holder

    cdef str served_names(self, frozenset allowed):
        found = {*self.models, *self.aliases}
        if allowed is not None:
            found &= allowed
        names = [name.decode() for name in heapq.nsmallest(SHOWN_NAMES, found)]
        if len(found) > SHOWN_NAMES:
            names.append(f"and {len(found) - SHOWN_NAMES} more (see /v1/models)")
        return ", ".join(names) or "nothing yet"

    cdef list label_texts(self, uint64_t labels, tuple strange):
        cdef uint64_t bit
        found = []
        for text, bit in self.steering.bits.items():
            if labels & bit:
                found.append(text.decode())
        found.sort()
        return found + (list(strange) if labels & NOBODY else [])

    cdef bytes new_request_id(self):
        cdef Py_ssize_t before = PyBytes_GET_SIZE(self.id_prefix)
        cdef bytes id = PyBytes_FromStringAndSize(NULL, before + 8)
        cdef char* p = PyBytes_AS_STRING(id)
        cdef unsigned long long number = self.n_ids
        cdef int at = 8
        self.n_ids += 1
        memcpy(p, PyBytes_AS_STRING(self.id_prefix), before)
        while at:
            at -= 1
            p[before + at] = b"0123456789abcdef"[number & 15]
            number >>= 4
        return id

    cdef bint is_full(self) noexcept nogil:
        return self.counts[<int>Count.BUFFERED_BYTES] >= self.buffered_bytes

    cdef int wake_soon(self, int slot) except -1:
        # Later, as one request's callback is no place to send others off.
        self.waiting.free(slot)
        if not self.waking:
            self.waking = True
            self.loop.call_soon(self.wake)
        return 0

    def wake(self):
        """Send off who waits for what has become free."""
        self.waking = False
        self.waiting.turn(now_s())

    cdef double patience_s(self, int verdict, int64_t priority, int64_t n_bytes) noexcept:
        if not self.waiting.takes(priority, n_bytes):
            return 0
        return self.hold_s if verdict == BUSY else self.hold_no_engine_s

    cdef bint others_hold(self) noexcept nogil:
        cdef int worker
        for worker in range(self.shared.n_workers):
            if worker != self.column and (
                    self.shared.column(worker)[<int>Count.HELD_REQUESTS] > 0):
                return True
        return False

    cdef bint has_tokenizer(self, str model) except -1:
        return self.tokenizing is not None and self.tokenizing.knows(model)

    cdef dict models_for(self, Path path):
        return self.native if path.model_path is not None else self.models

    cdef Served current(self, Served served):
        if served.is_native:
            return self.native.get(served.key)
        return self.models.get(served.key) if served.key else self.unnamed

    def tick(self):
        """Serve deadlines and housekeeping; every 100 ms, by the worker."""
        cdef double now = now_s()
        cdef int64_t* counts = self.counts
        # A tick that comes late tells how long the loop was held up.
        observe(counts + <int>Area.LOOP_LAG, short_bounds_s(),
                max(0.0, now - self.last_tick_s - self.wheel.tick_s))
        counts[<int>Count.TICKS] += 1
        if self.waiting.n:
            # What other workers, the control process and time freed tells nobody.
            self.waiting.free(-1)
            self.waiting.turn(now)
            self.waiting.tell(now)
        self.wheel.turn(now)
        if self.starved and not self.is_full():
            starved, self.starved = self.starved, []
            for session in starved:
                session.resume_body()
        self.n_ticks += 1
        if self.n_ticks % 10 == 0:
            self.budget.tick(counts[<int>Count.ACCEPTED])
            self.date = formatdate(usegmt=True).encode()
            for pool in self.pools:
                if pool is not None:
                    pool.expire(now)
        self.last_tick_s = now

    def condemn(self, int slot, unsigned int generation, str why, bint hung):
        """An endpoint was declared dead or hung: see messages.Condemn."""
        pool = self.pools[slot]
        if pool is not None and pool.generation == generation:
            pool.drop_idle()
        for session in list(self.sessions):
            session.condemn(slot, generation, why, hung)

    def drain(self):
        """No new work: idle connections end now, the others after their response."""
        self.draining = True
        for session in list(self.sessions):
            session.drain()
        if not self.sessions:
            self.empty.set()

    def cut(self):
        """The grace is over: end what runs with the dialect's error."""
        for session in list(self.sessions):
            session.cut()

    cdef int leave(self, object session) except -1:
        """A client connection has ended."""
        self.sessions.discard(session)
        if self.draining and not self.sessions:
            self.empty.set()
        return 0

    def made(self, str response, int slot, unsigned int generation, str holder):
        """Remember which endpoint holds a response, and whose key asked for it."""
        self.responses[response] = (slot, generation, holder)
        if len(self.responses) > MAX_RESPONSES:
            self.responses.popitem(last=False)

    cdef void note_sent(self, int slot, unsigned int generation, Prompt prompt) noexcept nogil:
        cdef uint64_t* out = self.sent + self.n_sent
        if prompt.n_keys == 0:
            return
        if self.n_sent + prompt.n_keys + 2 > MAX_SENT:
            self.counts[<int>Count.SENT_DROPPED] += 1
            return
        out[0] = <uint64_t>generation << 32 | <uint64_t>slot
        out[1] = prompt.n_keys
        memcpy(out + 2, prompt.keys, prompt.n_keys * sizeof(uint64_t))
        self.n_sent += prompt.n_keys + 2

    def take_sent(self):
        """Prompts sent since the last call: (generation << 32 | slot, n, n block hashes) each, as
        bytes of 64-bit words."""
        sent = (<char*>self.sent)[:self.n_sent * sizeof(uint64_t)]
        self.n_sent = 0
        return sent

    def count_ids(self, how):
        """A prompt's token ids were wanted: `how` that ended (gateway.tokenizing)."""
        self.counts[<int>IDS_COUNTS[how]] += 1

    def take_access(self):
        """Access log lines since the last call, as JSON."""
        encode = msgspec.json.Encoder().encode
        records, self.access = self.access, []
        offset_s = time.time() - now_s()
        for record in records:
            record["time"] = round(record["time"] + offset_s, 6)
        return [encode(record) for record in records]
