"""Loops in C around the parts of the data path: time per operation, with no Python in between.

This module alone in bench reaches into the product: a loop in Python would cost more than what it
measures. It measures; nothing imports it but the files in bench/micro.
"""

from time import perf_counter_ns, thread_time_ns

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memset
from libc.stdint cimport int32_t, uint64_t

from gateway.http._body cimport Step, Walker, walk, walk_request, walk_response
from gateway.http._events cimport EndMark, Scanner
from gateway.http._head cimport FieldId, Head, head_end, parse_request, parse_response
from gateway.http._write cimport Buffer
from gateway.proxy._envelope cimport Envelope, read_envelope
from gateway.proxy._relay cimport BodyKind, Relay
from router._booking cimport Booking
from router._demand cimport Demand
from router._hash cimport root_of
from router._index cimport Matcher
from router._keying cimport TEXT_BLOCK_BYTES, Prompt
from router._policy cimport Ask, Policy
from router._router cimport Router
from router._table cimport MAX_SLOTS, Table

KINDS = {"events": BodyKind.EVENTS, "json": BodyKind.JSON, "opaque": BodyKind.OPAQUE}


cdef int parse(bytes data, bint is_request, Head* head) except -1:
    cdef const char* p = PyBytes_AS_STRING(data)
    cdef Py_ssize_t size = head_end(p, PyBytes_GET_SIZE(data), 0)
    if size <= 0 or (parse_request(p, size, head) if is_request else
                     parse_response(p, size, head)) != 0:
        raise ValueError("this head is refused or incomplete")
    return 0


def head_ns(bytes data not None, int rounds, bint is_request=True):
    cdef Head head
    cdef const char* p = PyBytes_AS_STRING(data)
    cdef size_t n = PyBytes_GET_SIZE(data)
    cdef int _, sum = 0
    parse(data, is_request, &head)
    started = perf_counter_ns()
    for _ in range(rounds):
        if is_request:
            sum += parse_request(p, head_end(p, n, 0), &head)
        else:
            sum += parse_response(p, head_end(p, n, 0), &head)
    elapsed = perf_counter_ns() - started
    assert sum == 0
    return elapsed / rounds


def body_ns(bytes data not None, bytes head_data not None, int rounds, bint is_request=False):
    cdef Head head
    cdef Walker fresh, walker
    cdef const char* p = PyBytes_AS_STRING(data)
    cdef size_t n = PyBytes_GET_SIZE(data)
    cdef int _, step = Step.MORE
    parse(head_data, is_request, &head)
    if is_request:
        walk_request(&fresh, &head)
    else:
        walk_response(&fresh, &head, False)
    started = perf_counter_ns()
    for _ in range(rounds):
        walker = fresh
        while True:
            step = walk(&walker, p, n)
            if step != <int>Step.DATA and step != <int>Step.CHUNK_END:
                break
    elapsed = perf_counter_ns() - started
    if step != <int>Step.END:
        raise ValueError("this body does not end")
    return elapsed / rounds


def scan_ns(list pieces not None, int rounds):
    cdef Scanner scanner = Scanner()
    cdef bytes piece
    cdef int _
    started = perf_counter_ns()
    for _ in range(rounds):
        scanner.reset(EndMark.DONE)
        for piece in pieces:
            scanner.feed(PyBytes_AS_STRING(piece), PyBytes_GET_SIZE(piece))
    elapsed = perf_counter_ns() - started
    if not scanner.over:
        raise ValueError("these events have no end mark")
    return elapsed / (rounds * len(pieces))


def envelope_ns(bytes body not None, int rounds):
    cdef Envelope envelope
    cdef const char* p = PyBytes_AS_STRING(body)
    cdef size_t n = PyBytes_GET_SIZE(body)
    cdef int _, fault = 0
    started = perf_counter_ns()
    for _ in range(rounds):
        fault |= read_envelope(p, n, 128, &envelope)
    elapsed = perf_counter_ns() - started
    if fault:
        raise ValueError("this body is refused")
    return elapsed / rounds


def relay_ns(bytes head_data not None, list pieces not None, str kind not None, int rounds):
    cdef Relay relay = Relay()
    cdef Head head
    cdef bytes piece
    cdef int _, body_kind = KINDS[kind]
    cdef int end_mark = EndMark.DONE if kind == "events" else EndMark.NO_MARK
    parse(head_data, False, &head)
    started = perf_counter_ns()
    for _ in range(rounds):
        relay.start(&head, False, body_kind, end_mark, False, None)
        for piece in pieces:
            if relay.feed(piece, 0) < 0:
                raise ValueError("this body is refused")
            relay.out = None
        if not relay.ended:
            raise ValueError("this body does not end")
        relay.clear()
    return (perf_counter_ns() - started) / (rounds * len(pieces))


def pick_ns(Policy policy not None, Table table not None, int n_slots, int rounds):
    cdef int32_t[MAX_SLOTS] slots
    cdef Ask ask
    cdef int i, _, slot = 0
    if not 0 < n_slots <= MAX_SLOTS:
        raise ValueError(f"1 to {MAX_SLOTS} slots")
    for i in range(n_slots):
        slots[i] = i
    memset(&ask, 0, sizeof(Ask))
    ask.slots = slots
    ask.n_slots = n_slots
    ask.home = -1
    started = perf_counter_ns()
    for _ in range(rounds):
        slot = policy.pick(table, &ask)
        # Booked as the gateway does, so that the next pick is not the same one.
        if slot >= 0:
            table.loads[slot].in_flight += 1
    elapsed = perf_counter_ns() - started
    if slot < 0:
        raise ValueError("none of the slots may be taken")
    return elapsed / rounds


def decisions_ns(Router router not None, bytes namespace not None, list texts not None,
                 int n_slots, int rounds):
    cdef int32_t[MAX_SLOTS] slots
    cdef Ask ask
    cdef Booking booking
    cdef Demand demand = Demand()
    cdef Prompt prompt = Prompt()
    cdef uint64_t root = root_of(PyBytes_AS_STRING(namespace), PyBytes_GET_SIZE(namespace))
    cdef bytes text
    cdef int i, at, slot
    cdef double now_s = 100, hits = 0
    if not 0 < n_slots <= MAX_SLOTS:
        raise ValueError(f"1 to {MAX_SLOTS} slots")
    for i in range(n_slots):
        slots[i] = i
    taken = []
    for at in range(rounds):
        text = texts[at % len(texts)]
        now_s += 0.001
        started = thread_time_ns()
        memset(&ask, 0, sizeof(Ask))
        ask.slots = slots
        ask.n_slots = n_slots
        ask.home = -1
        ask.now_s = now_s
        prompt.begin(root, PyBytes_GET_SIZE(text))
        prompt.feed_json(PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text))
        prompt.n_tokens = prompt.n_bytes / 4.0
        prompt.block_tokens = TEXT_BLOCK_BYTES / 4.0
        slot = router.pick(&ask, prompt, demand)
        if slot < 0:
            raise ValueError("none of the slots may be taken")
        router.book(&booking, slot, &ask, router.last_hit_tokens, prompt, demand, True)
        taken.append(thread_time_ns() - started)
        hits += router.last_hit_tokens
        router.booker.release(&booking, now_s)
        prompt.clear()
    if router.reads_prompts and hits == 0:
        raise ValueError("nothing of the prompts is held anywhere")
    return taken


def match_ns(Matcher matcher not None, list prompts not None, int n_slots, int rounds):
    cdef int32_t[MAX_SLOTS] slots
    cdef const uint64_t[::1] keys
    cdef int i, at
    cdef size_t n_blocks = 0
    if not 0 < n_slots <= MAX_SLOTS:
        raise ValueError(f"1 to {MAX_SLOTS} slots")
    for i in range(n_slots):
        slots[i] = i
    started = perf_counter_ns()
    for at in range(rounds):
        keys = prompts[at % len(prompts)]
        matcher.match(&keys[0], keys.shape[0], slots, n_slots)
        n_blocks += matcher.n_walked
    return (perf_counter_ns() - started) / n_blocks


def build_ns(bytes data not None, int rounds, bint is_request=True):
    cdef Head head
    cdef Buffer out = Buffer()
    cdef const char* p = PyBytes_AS_STRING(data)
    cdef bytes built = b""
    cdef int _, index, id
    parse(data, is_request, &head)
    started = perf_counter_ns()
    for _ in range(rounds):
        if is_request:
            out.put(b"POST /v1/chat/completions HTTP/1.1\r\n", 36)
            out.put(b"Host: 10.0.0.7:8000\r\n", 21)
        else:
            out.put(b"HTTP/1.1 200 OK\r\n", 17)
        for index in range(head.n_fields):
            id = head.fields[index].id
            if id == <int>FieldId.OTHER or id == <int>FieldId.CONTENT_TYPE:
                out.put_field(p, head.fields[index].name, head.fields[index].value)
        out.put(b"x-request-id: ", 14)
        out.put(b"0123456789abcdef", 16)
        out.put(b"\r\nContent-Length: ", 18)
        out.put_number(2048)
        out.put(b"\r\n\r\n", 4)
        built = out.take()
    elapsed = perf_counter_ns() - started
    parse(built, is_request, &head)
    return elapsed / rounds
