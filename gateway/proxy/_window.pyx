"""Parts of the data path as Python values, for tests: the relay of response bodies, the queue.

Nothing that serves requests imports this.
"""

from collections import namedtuple

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport int64_t

from engines.triton._wire cimport Response, read_response
from gateway.http._head cimport Head, head_end, parse_response
from gateway.http._write cimport Buffer
from gateway.proxy._relay cimport Relay
from gateway.proxy._triton_reply cimport Choice, Reply
from gateway.proxy._waiting cimport Waiter, Waiting

Relayed = namedtuple(
    "Relayed",
    "out ended finished fault rest n_events tokens_out takes_events endings shape",
)


def relay(bytes head, list pieces, int kind=0, int end_mark=0, bint http_1_0=False,
          bint to_head=False, object rewriter=None, bint eof=False, bytes ending_frames=b""):
    """Relay the pieces of a body that `head` frames. ValueError: not a response's head."""
    cdef Head parsed
    cdef const char* p = PyBytes_AS_STRING(head)
    cdef Py_ssize_t size = head_end(p, PyBytes_GET_SIZE(head), 0)
    cdef Relay relay = Relay()
    cdef bytes piece
    cdef int fault = 0
    cdef size_t rest = 0
    if size != PyBytes_GET_SIZE(head) or parse_response(p, size, &parsed) < 0:
        raise ValueError("not a response's head")
    relay.start(&parsed, to_head, kind, end_mark, http_1_0, rewriter)
    out, takes, endings = [], [], []
    for piece in pieces:
        if relay.ended:
            break
        fault = relay.feed(piece, 0)
        if fault < 0:
            break
        out.append(relay.out or b"")
        takes.append(bool(relay.takes_events()))
        endings.append(relay.ending(ending_frames))
        if relay.ended:
            rest = PyBytes_GET_SIZE(piece) - relay.rest
    finished = False
    if eof and fault >= 0:
        finished = bool(relay.finish())
        out.append(relay.out or b"")
    return Relayed(
        out, bool(relay.ended), finished, fault, rest, relay.scanner.n_events,
        relay.scanner.usage.tokens_out, takes, endings, relay.shape,
    )


cdef class Guest(Waiter):
    cdef readonly object name
    cdef readonly object wants
    cdef Queue queue

    cdef bint admit(self, double now_s) except -1:
        self.queue.asked.append(self.name)
        if not self.queue.has_room(self.wants):
            return False
        self.queue.waiting.leave(self, True, now_s)
        self.queue.went.append(self.name)
        return True

    cdef int tell(self, double now_s) except -1:
        self.queue.told.append(self.name)
        return 0

    cdef int expelled(self, double now_s) except -1:
        self.queue.expelled.append(self.name)
        return 0


cdef class Queue:
    cdef Waiting waiting
    cdef object has_room
    cdef readonly dict guests
    cdef readonly list asked
    cdef readonly list went
    cdef readonly list expelled
    cdef readonly list told

    def __init__(self, int most, int64_t most_bytes, has_room):
        self.waiting = Waiting()
        self.waiting.limit(most, most_bytes)
        self.has_room = has_room
        self.guests = {}
        self.asked, self.went, self.expelled, self.told = [], [], [], []

    @property
    def n(self):
        return self.waiting.n

    @property
    def n_bytes(self):
        return self.waiting.n_bytes

    def join(self, name, wants, int64_t priority, double since_s, int64_t n_bytes, double now_s,
             int only=-1):
        cdef Guest guest
        if not self.waiting.takes(priority, n_bytes):
            return False
        guest = Guest()
        guest.name, guest.wants, guest.queue = name, wants, self
        guest.priority, guest.since_s, guest.n_bytes = priority, since_s, n_bytes
        guest.only = only
        self.guests[name] = guest
        self.waiting.join(guest, wants, now_s)
        return True

    def leave(self, name, double now_s):
        self.waiting.leave(<Guest>self.guests[name], False, now_s)

    def n_ahead(self, wants, int64_t priority, double since_s):
        return self.waiting.n_ahead(wants, priority, since_s)

    def is_ahead(self, wants, int64_t priority, double since_s):
        return bool(self.waiting.is_ahead(wants, priority, since_s))

    def free(self, int slot):
        self.waiting.free(slot)

    def is_due(self, int slot):
        return bool(self.waiting.is_due(slot))

    def turn(self, double now_s):
        self.waiting.turn(now_s)

    def tell(self, double now_s):
        self.waiting.tell(now_s)

    def turn_in_s(self, double now_s):
        return self.waiting.turn_in_s(now_s)


def triton_answer(generation, list prompts, messages):
    """What a client gets of `messages`, ModelStreamInferResponses as (choice, bytes)."""
    cdef Buffer out = Buffer()
    cdef Reply reply = Reply(generation, prompts, b"1", "m", 7, -1, False)
    cdef Response response
    cdef Choice choice
    cdef bytes message
    for index, message in messages:
        choice = reply.choices[index]
        if not read_response(PyBytes_AS_STRING(message), PyBytes_GET_SIZE(message), &response):
            raise ValueError("not a ModelStreamInferResponse")
        reply.take(choice, &response, out)
        if response.is_final:
            reply.finish(choice, out)
    return out.take() + reply.ending()
