"""See _pool.pxd."""

from collections import deque

from engines.kind import KINDS
from gateway.proxy.patience import patience

from gateway._shared cimport Area, Count, EndpointWord
from gateway.http._write cimport Buffer
from gateway.proxy._path cimport Path
from gateway.proxy._plane cimport Plane, now_s
from gateway.proxy._request cimport Request, start_of
from gateway.proxy._upstream cimport Sink, Upstream

cdef enum:
    # Bodies up to this size go out in one write with their head: the copy is cheaper than a
    # second vector.
    JOINED_BYTES = 32 * 1024


cdef class Pool:
    """Made by the plane for each endpoint of a Fleet; closed when the endpoint leaves it."""

    def __init__(self, Plane plane, endpoint):
        cdef int slot = endpoint.slot
        self.plane = plane
        self.endpoint = endpoint
        self.slot = slot
        self.generation = endpoint.generation
        lines = f"Host: {endpoint.host}\r\n"
        if endpoint.api_key:
            lines += f"Authorization: Bearer {endpoint.api_key}\r\n"
        if endpoint.rank is not None:
            lines += f"X-data-parallel-rank: {endpoint.rank}\r\n"
        self.host_line = lines.encode()
        self.has_api_key = bool(endpoint.api_key)
        self.keep_alive_s = endpoint.keep_alive_s
        self.path_prefix = endpoint.path_prefix.encode()
        self.dying_answers = KINDS[endpoint.kind].dying_answers
        self.cut_short = KINDS[endpoint.kind].cut_short
        self.blames_engine = KINDS[endpoint.kind].blames_engine
        self.words = (
            plane.counts + <int>Area.ENDPOINTS + slot * <int>Area.ENDPOINT_WIDTH
        )
        self.load = plane.table.cell(plane.column, slot)
        self.idle = []
        self.waiters = deque()
        self.dials = set()
        self.tls = None
        if endpoint.tls:
            self.tls = plane.tls_context(endpoint.ca_file)

    cdef Upstream take(self, Sink sink, Path path, bint fresh):
        cdef Upstream upstream
        while not fresh and self.idle:
            upstream = self.idle.pop()
            if now_s() - upstream.idle_since_s >= self.keep_alive_s:
                # The newest is too old, so all are: the engine is about to close them.
                upstream.abort()
                self.drop_idle()
            elif upstream.is_quiet():
                return upstream
            else:
                upstream.abort()
        self.waiters.append(sink)
        self.plane.counts[<int>Count.WAITING_FOR_DIAL] += 1
        task = self.plane.loop.create_task(self._dial())
        self.dials.add(task)
        task.add_done_callback(self.dials.discard)
        return None

    cdef int ask(self, Upstream upstream, Sink sink, Request request) except -1:
        cdef Buffer out = self.plane.scratch
        cdef bint joined = request.body is None or request.body_size <= JOINED_BYTES
        out.clear()
        out.put_bytes(request.method)
        out.put(b" ", 1)
        out.put_bytes(self.path_prefix)
        out.put_bytes(request.target)
        out.put(b" HTTP/1.1\r\n", 11)
        out.put_bytes(self.host_line)
        if request.credentials is not None and not self.has_api_key:
            out.put_bytes(request.credentials)
        out.put_bytes(request.fields)
        if request.body is not None:
            out.put(b"Content-Length: ", 16)
            out.put_number(request.body_size)
            out.put(b"\r\n", 2)
        out.put(b"\r\n", 2)
        if joined and request.body_size:
            out.put(start_of(request.body), request.body_size)
        self.words[<int>EndpointWord.E_BYTES_OUT] += out.size
        if not joined:
            self.words[<int>EndpointWord.E_BYTES_OUT] += request.body_size
        return upstream.send(sink, out.take(), None if joined else request.body)

    cdef dict refusal(self, Request request):
        return None

    cdef int give(self, Upstream upstream) except -1:
        upstream.let_go()
        return self._offer(upstream)

    cdef int _offer(self, Upstream upstream) except -1:
        cdef Sink sink
        if upstream.closed:
            return 0
        if self.waiters:
            if upstream.reused and not upstream.is_quiet():
                upstream.abort()        # the waiter's own dial is under way
                return 0
            # `fresh` waiters too: a connection that was just given back has been seen to work.
            sink = self.waiters.popleft()
            self._connected(sink, upstream)
        elif self.closed or len(self.idle) >= self.plane.idle_connections:
            upstream.abort()
        else:
            upstream.idle_since_s = now_s()
            self.idle.append(upstream)
        return 0

    cdef int leave(self, Sink sink) except -1:
        if sink in self.waiters:
            self.waiters.remove(sink)
            self.plane.counts[<int>Count.WAITING_FOR_DIAL] -= 1
        return 0

    cdef int _connected(self, Sink sink, Upstream upstream) except -1:
        self.plane.counts[<int>Count.WAITING_FOR_DIAL] -= 1
        try:
            sink.on_connection(upstream)
        except Exception as error:
            sink.on_error(error)
        return 0

    async def _dial(self):
        """Open one connection, for the waiter that is first by then."""
        cdef Upstream upstream
        self.words[<int>EndpointWord.E_DIALS] += 1
        try:
            async with patience(self.plane.connect_s):
                _, protocol = await self.plane.loop.create_connection(
                    self._make, self.endpoint.address, self.endpoint.port, ssl=self.tls,
                    server_hostname=self.endpoint.server_name or None if self.tls else None,
                )
        except Exception as error:      # whatever it is: a waiter must hear of it
            self._failed(_why(error))
            return
        upstream = protocol
        if upstream.closed:
            self._failed("closed at once")
            return
        self.load.dials_in_row = 0
        self._offer(upstream)

    cdef int _failed(self, str why) except -1:
        """A dial failed: the waiter that is first hears of it."""
        cdef Sink sink
        self.words[<int>EndpointWord.E_DIALS_FAILED] += 1
        self.load.dials_in_row += 1
        if self.waiters:
            sink = self.waiters.popleft()
            self.plane.counts[<int>Count.WAITING_FOR_DIAL] -= 1
            try:
                sink.on_dial_failed(why)
            except Exception as error:
                sink.on_error(error)
        return 0

    def _make(self):
        return Upstream(self.plane, self)

    def forget(self, Upstream upstream):
        """An idle connection has gone."""
        if upstream in self.idle:
            self.idle.remove(upstream)

    def expire(self, double now):
        """Close what has been idle for longer than the engine would keep it."""
        cdef Upstream upstream
        cdef double limit = now - self.keep_alive_s
        while self.idle:
            upstream = self.idle[0]
            if upstream.idle_since_s > limit:
                break
            del self.idle[0]
            upstream.abort()

    def drop_idle(self):
        """The endpoint was declared dead: its kept connections are not worth a try."""
        cdef Upstream upstream
        idle, self.idle = self.idle, []
        for upstream in idle:
            upstream.abort()

    def close(self):
        """The endpoint has left the fleet: keep nothing; exchanges that run go on."""
        self.closed = True
        self.drop_idle()


def _why(error):
    """A dial's failure in a few words."""
    if isinstance(error, TimeoutError):
        return "no connection in time"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
