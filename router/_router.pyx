"""See _router.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memcpy, memset

from router._adapters cimport Adapters
from router._booking cimport Booker, Booking
from router._demand cimport Demand
from router._hash cimport root_of
from router._effort cimport Effort
from router._index cimport Index, Matcher
from router._keying cimport Prompt
from router._policy cimport Ask, Policy, hit_tokens, room
from router._recent cimport Recent
from router._sessions cimport Sessions, bound
from router._table cimport MAX_SLOTS, Table


cdef class Router:
    """`index`: what the endpoints hold, as far as the control process knows; None: nothing.

    `scale`: by how much the whole load is more than what comes this way. `booker`: what books, if
    not on `table`, so that policies see another load than the booked one (in the lab). `sessions`,
    `adapters`: what all workers know of them; requests that name one need it.
    """

    def __init__(self, Table table, int worker, Policy policy, Index index, double scale=1.0,
                 Booker booker=None, Sessions sessions=None, Adapters adapters=None):
        self.table = table
        self.booker = Booker(table, worker) if booker is None else booker
        self.policy = policy
        self.reads_prompts = policy.reads_prompts
        self.scale = scale
        self.sessions = sessions
        self.adapters = adapters
        self.recent = Recent()
        self.effort = Effort()
        indexes = [self.recent.young, self.recent.old]
        if index is not None:
            indexes.append(index)
        self.matcher = Matcher(indexes)
        self.prompt = Prompt()

    cdef int pick(self, Ask* ask, Prompt prompt, Demand demand) noexcept:
        cdef int slot
        cdef int n_slots = ask.n_slots
        cdef const int32_t* slots = ask.slots
        cdef double scale = self.scale * max(1.0, self.table.common.scale)
        ask.depths = NULL
        ask.shuns_overloaded = False
        ask.worker = self.booker.worker
        if prompt is not None:
            ask.n_tokens = prompt.n_tokens
            ask.block_tokens = prompt.block_tokens
            if self.reads_prompts and prompt.n_keys:
                self.recent.expire(ask.now_s)
                self.matcher.match(prompt.keys, prompt.n_keys, ask.slots, ask.n_slots)
                ask.depths = self.matcher.depths
                # Requests that begin alike, for a kilobyte or so, shall meet.
                ask.affinity = prompt.keys[min(prompt.n_keys, <size_t>4) - 1]
        ask.out_tokens = min(demand.out_tokens, ask.out_tokens) if ask.out_tokens > 0 else (
            demand.out_tokens)
        ask.doubt = max(ask.doubt, self.table.common.doubt)
        if self.reads_prompts:
            ask.pressure = scale * demand.pressure(ask.n_slots, ask.now_s)
            ask.effort = self.effort.seconds
            # Not times `scale`: others put theirs elsewhere, and guesses at where cost more than
            # they bring (measured with four gateways).
            ask.effort_share = self.effort.share_of(ask.now_s)
            ask.hit_ratio = demand.hit_ratio()
        if ask.adapter and self.adapters is not None:
            self.adapters.price(self.table, ask.adapter, slots, n_slots, ask.now_s, self.load_s)
            ask.load_s = self.load_s
        self._find_home(ask)
        slot = self._choose(ask)
        ask.slots = slots
        ask.n_slots = n_slots
        if slot >= 0:
            self.last_hit_tokens = hit_tokens(self.table, ask, slot)
        return slot

    def forget_recent(self):
        """Where prompts just went says nothing any more: a slot has another endpoint."""
        self.recent.clear()

    cdef int look(self, Ask* ask) noexcept:
        cdef int slot
        cdef int n_slots = ask.n_slots
        cdef const int32_t* slots = ask.slots
        ask.worker = self.booker.worker
        ask.shuns_overloaded = False
        self._find_home(ask)
        slot = room(self.table, ask)
        ask.slots = slots
        ask.n_slots = n_slots
        return slot

    cdef void _find_home(self, Ask* ask) noexcept:
        """Of its session; where that must stay there, no other slot is asked."""
        if ask.session and self.sessions is not None:
            ask.home = self.sessions.find(self.table, ask.session, ask.now_s)
            if ask.is_bound:
                ask.home = bound(self.table, ask)
                if ask.home >= 0:
                    ask.slots = &ask.home
                    ask.n_slots = 1

    cdef int _choose(self, Ask* ask) noexcept:
        cdef int slot
        ask.shuns_overloaded = False
        if ask.max_wait_s > 0:
            slot = room(self.table, ask)
            if slot < 0:
                return slot
        ask.shuns_overloaded = True
        slot = self.policy.pick(self.table, ask)
        if slot >= 0:
            return slot
        ask.shuns_overloaded = False
        slot = self.policy.pick(self.table, ask)
        return slot if slot >= 0 else room(self.table, ask)

    cdef void book(self, Booking* booking, int slot, const Ask* ask, double cached,
                   Prompt prompt, Demand demand, bint is_seen) noexcept:
        cdef size_t known = 0
        self.booker.book(booking, slot, ask.n_tokens, cached, is_seen, ask.now_s)
        if ask.session and self.sessions is not None:
            self.sessions.note(self.table, ask.session, slot, ask.now_s)
        if ask.adapter and self.adapters is not None:
            self.adapters.note(ask.adapter, slot, ask.now_s)
        if not self.reads_prompts:
            return      # and asks for no demand either
        self.effort.booked(slot, booking.prefill_s)
        demand.booked(booking.prefill_s, ask.n_tokens, cached, ask.now_s)
        if prompt is not None and prompt.n_keys:
            # What is known to be there need not be noted.
            if cached > 0:
                known = min(<size_t>(cached / prompt.block_tokens), prompt.n_keys)
            self.recent.add(prompt.keys + known, prompt.n_keys - known, slot, ask.now_s)

    def send(self, Demand demand not None, slots, const uint64_t[::1] keys, double n_tokens,
             double block_tokens, double now_s, *, bint is_seen=True, double doubt=0.0,
             double out_tokens=0.0, uint64_t session=0, bint is_bound=False, double home_s=0.0,
             str adapter="", uint64_t labels=0, double max_wait_s=0.0, bint minds_others=False,
             double since_s=0.0, int64_t priority=0):
        """`pick` and `book` for Python callers: a Dispatch; None: no endpoint may have it, or none
        has room."""
        cdef Dispatch dispatch = Dispatch()
        cdef int32_t[MAX_SLOTS] array
        cdef Ask ask
        cdef bytes key
        cdef int index, slot
        if len(slots) > MAX_SLOTS:
            raise ValueError(f"more than {MAX_SLOTS} slots")
        memset(&ask, 0, sizeof(Ask))
        for index, slot in enumerate(slots):
            if not 0 <= slot < MAX_SLOTS:
                raise IndexError(f"slot {slot} is not in 0..{MAX_SLOTS - 1}")
            array[index] = slot
        ask.slots = array
        ask.n_slots = len(slots)
        ask.now_s = now_s
        ask.home = -1
        ask.doubt = doubt
        ask.out_tokens = out_tokens
        ask.session = session
        ask.is_bound = is_bound
        ask.home_s = home_s
        ask.labels = labels
        if adapter:
            key = adapter.encode()
            ask.adapter = root_of(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        ask.max_wait_s = max_wait_s
        ask.minds_others = minds_others
        ask.since_s = since_s
        ask.priority = priority
        self.prompt.resize(keys.shape[0])
        if keys.shape[0]:
            memcpy(self.prompt.keys, &keys[0], keys.shape[0] * sizeof(uint64_t))
        self.prompt.n_tokens = n_tokens
        self.prompt.block_tokens = block_tokens
        dispatch.slot = self.pick(&ask, self.prompt, demand)
        if dispatch.slot < 0:
            return None
        self.book(&dispatch.booking, dispatch.slot, &ask, self.last_hit_tokens, self.prompt,
                  demand, is_seen)
        dispatch.booker = self.booker
        dispatch.hit_tokens = self.last_hit_tokens
        return dispatch


cdef class Dispatch:
    """Made by `Router.send`; see router._booking for when to call what."""

    def first_token(self, double now_s):
        self.booker.first_token(&self.booking, now_s)

    def grow(self, int n):
        self.booker.grow(&self.booking, n)

    def release(self, double now_s):
        self.booker.release(&self.booking, now_s)

    def found(self, double cached_tokens):
        self.booker.found(&self.booking, cached_tokens)
