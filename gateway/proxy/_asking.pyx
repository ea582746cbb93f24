"""See _asking.pxd."""

import logging

from engines.tokens.ask import read_tokenize, tokenize_question

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from gateway.http._body cimport Step, walk, walk_response
from gateway.http._head cimport Head
from gateway.proxy._plane cimport Plane
from gateway.proxy._served cimport Served
from gateway.proxy._pool cimport Pool
from gateway.proxy._request cimport Request
from gateway.proxy._upstream cimport Sink, Upstream
from router._table cimport State

cdef enum:
    # Of an answer: a million ids with their commas.
    MAX_BYTES = 8 << 20

# Of the whole question. A choice that knows less is better than one that is made so much later.
cdef double PATIENCE_S = 0.1

log = logging.getLogger("headgate.asking")


cdef object make_ids(Plane plane, Request request, object callback):
    if request.served.asks:
        return ask(plane, request, callback)
    return plane.tokenizing.submit(
        request.served.tokenizer, request.path.name, bytes(request.body), callback
    )


cdef Asking ask(Plane plane, Request request, object callback):
    cdef Pool pool = _idlest(plane, request.served)
    cdef Asking asking
    question = None
    if pool is not None:
        question = tokenize_question(request.path.name, bytes(request.body))
    if question is None:
        plane.count_ids("unknown")
        callback(None)
        return None
    asking = Asking(plane, callback)
    asking._dial(pool, b"".join((
        b"POST ", pool.path_prefix, question.path.encode(), b" HTTP/1.1\r\n", pool.host_line,
        b"" if request.credentials is None or pool.has_api_key else request.credentials,
        b"Content-Type: application/json\r\nContent-Length: ",
        str(len(question.body)).encode(), b"\r\n\r\n", question.body,
    )))
    return None if asking.callback is None else asking


cdef Pool _idlest(Plane plane, Served served):
    cdef Pool best = None
    cdef int index, slot, n, least = 0
    for index in range(served.n_slots):
        slot = served.slots[index]
        if plane.pools[slot] is None or plane.table.rows[slot].state != <int>State.READY:
            continue
        n = plane.table.in_flight(slot)
        if best is None or n < least:
            best = plane.pools[slot]
            least = n
    return best


cdef class Asking(Sink):
    def __init__(self, Plane plane, callback):
        self.plane = plane
        self.callback = callback
        self.pieces = []

    cdef int _dial(self, Pool pool, bytes message) except -1:
        cdef Upstream upstream
        self.pool = pool
        self.message = message
        self.timer = self.plane.loop.call_later(PATIENCE_S, self._late)
        upstream = pool.take(self, None, False)
        if upstream is not None:
            self.on_connection(upstream)
        return 0

    def _late(self):
        self._end("late", None)

    def cancel(self):
        """Nobody waits for it."""
        self.callback = None
        self._end("", None)

    cdef int on_connection(self, Upstream upstream) except -1:
        self.upstream = upstream
        upstream.send(self, self.message, None)
        return 0

    cdef int on_head(self, Upstream upstream, bytes data, const Head* head) except -1:
        self.status = head.status
        self.reusable = not head.close
        walk_response(&self.walker, head, False)
        return self._feed(data, head.size)

    cdef int on_body(self, Upstream upstream, bytes data) except -1:
        return self._feed(data, 0)

    cdef int _feed(self, bytes data, size_t at) except -1:
        cdef const char* p = PyBytes_AS_STRING(data)
        cdef size_t n = PyBytes_GET_SIZE(data)
        cdef int step
        self.walker.pos = at
        while True:
            step = walk(&self.walker, p, n)
            if step == <int>Step.DATA:
                self.size += self.walker.size
                self.pieces.append(p[self.walker.start:self.walker.start + self.walker.size])
            elif step == <int>Step.END:
                self.reusable = self.reusable and self.walker.pos == n
                ids = read_tokenize(self.status, b"".join(self.pieces))
                return self._end("unknown" if ids is None else "known", ids)
            elif step == <int>Step.MORE:
                if self.size > MAX_BYTES:
                    return self._end("unknown", None)
                return 0
            elif step < 0:
                return self._end("unknown", None)

    cdef int on_dial_failed(self, str why) except -1:
        return self._end("unknown", None)

    cdef int on_malformed(self, int fault) except -1:
        return self._end("unknown", None)

    cdef int on_lost(self, bint clean) except -1:
        self.upstream = None
        return self._end("unknown", None)

    cdef int on_error(self, object error) except -1:
        log.error("asking for token ids failed", exc_info=error)
        return self._end("unknown", None)

    cdef int _end(self, str how, object ids) except -1:
        cdef Upstream upstream = self.upstream
        cdef object callback = self.callback
        self.callback = None
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
            if upstream is None:
                self.pool.leave(self)
        self.upstream = None
        if upstream is not None:
            if how == "known" and self.reusable and not upstream.closed:
                self.pool.give(upstream)
            else:
                upstream.abort()
        if callback is not None:
            self.plane.count_ids(how)
            callback(ids)
        return 0
