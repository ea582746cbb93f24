"""See _waiting.pxd."""

from libc.math cimport ceil, exp
from libc.stdint cimport int64_t

# Over how long it is measured how fast the queue moves.
cdef double PACE_S = 10.0
# OpenAI's clients ignore a Retry-After above 120 s, and who waits longer has given up.
cdef double MAX_TURN_S = 60.0
# Before anything is known: a queue that has just formed is none that is gone in a second.
cdef double FIRST_TURN_S = 5.0


cdef class Waiter:
    cdef bint admit(self, double now_s) except -1:
        raise NotImplementedError

    cdef int tell(self, double now_s) except -1:
        raise NotImplementedError

    cdef int expelled(self, double now_s) except -1:
        raise NotImplementedError


cdef inline bint is_before(Waiter one, Waiter other) noexcept:
    if one.priority != other.priority:
        return one.priority < other.priority
    if one.since_s != other.since_s:
        return one.since_s < other.since_s
    return one.number < other.number


cdef inline bint goes_before(Waiter waiter, int64_t priority, double since_s) noexcept:
    return waiter.priority < priority or (
        waiter.priority == priority and waiter.since_s <= since_s)


cdef class Line:
    """A heap whose members know where they are, so that any of them may leave in O(log n)."""

    def __init__(self, key):
        self.key = key
        self.heap = []


cdef inline void put(list heap, Py_ssize_t at, Waiter waiter) noexcept:
    heap[at] = waiter
    waiter.at = at


cdef void rise(list heap, Waiter waiter) noexcept:
    cdef Py_ssize_t at = waiter.at
    while at and is_before(waiter, <Waiter>heap[(at - 1) >> 1]):
        put(heap, at, <Waiter>heap[(at - 1) >> 1])
        at = (at - 1) >> 1
    put(heap, at, waiter)


cdef void sink(list heap, Waiter waiter) noexcept:
    cdef Py_ssize_t at = waiter.at, below, n = len(heap)
    while True:
        below = 2 * at + 1
        if below + 1 < n and is_before(<Waiter>heap[below + 1], <Waiter>heap[below]):
            below += 1
        if below >= n or not is_before(<Waiter>heap[below], waiter):
            break
        put(heap, at, <Waiter>heap[below])
        at = below
    put(heap, at, waiter)


cdef inline bint moves_before(Line one, Line other) noexcept:
    """By who is first there; what has become empty goes first, to be dropped."""
    if not one.heap or not other.heap:
        return not one.heap
    return is_before(<Waiter>one.heap[0], <Waiter>other.heap[0])


cdef void settle(list lines, Py_ssize_t at) noexcept:
    """Of a heap of lines: put this one in order with those below it."""
    cdef Line line = <Line>lines[at]
    cdef Py_ssize_t below, n = len(lines)
    while True:
        below = 2 * at + 1
        if below + 1 < n and moves_before(<Line>lines[below + 1], <Line>lines[below]):
            below += 1
        if below >= n or not moves_before(<Line>lines[below], line):
            break
        lines[at] = lines[below]
        at = below
    lines[at] = line


cdef class Waiting:
    """`limit` says how many may wait; without it nobody may."""

    def __init__(self):
        self.lines = {}

    def limit(self, int most, int64_t most_bytes):
        """Who is in the queue already stays."""
        self.most = most
        self.most_bytes = most_bytes

    cdef bint takes(self, int64_t priority, int64_t n_bytes) noexcept:
        cdef Waiter last
        if self.n < self.most and self.n_bytes + n_bytes <= self.most_bytes:
            return True
        if self.n == 0 or self.n > self.most:
            return False
        last = self._last()
        return last.priority > priority and (
            self.n_bytes - last.n_bytes + n_bytes <= self.most_bytes)

    cdef int join(self, Waiter waiter, object key, double now_s) except -1:
        cdef Line line
        cdef Waiter last
        if self.n and (self.n >= self.most or self.n_bytes + waiter.n_bytes > self.most_bytes):
            last = self._last()
            self.leave(last, False, now_s)
            last.expelled(now_s)
        line = self.lines.get(key)
        if line is None:
            line = self.lines[key] = Line(key)
        if self.n == 0:
            self.began_s = self.noted_s = now_s
            self.n_went = 0
        waiter.number = self.n_joined
        self.n_joined += 1
        waiter.line = line
        waiter.at = len(line.heap)
        line.heap.append(waiter)
        rise(line.heap, waiter)
        self.n += 1
        self.n_bytes += waiter.n_bytes
        return 0

    cdef int leave(self, Waiter waiter, bint went, double now_s) except -1:
        cdef Line line = waiter.line
        cdef Waiter last
        if line is None:
            return 0
        waiter.line = None
        self.n -= 1
        self.n_bytes -= waiter.n_bytes
        if went:
            self._decay(now_s)
            self.n_went += 1
        last = line.heap.pop()
        if last is not waiter:
            last.at = waiter.at
            sink(line.heap, last)
            rise(line.heap, last)
        elif not line.heap:
            del self.lines[line.key]
        return 0

    cdef bint is_ahead(self, object key, int64_t priority, double since_s) noexcept:
        cdef Line line = self.lines.get(key)
        return line is not None and goes_before(<Waiter>line.heap[0], priority, since_s)

    cdef int n_ahead(self, object key, int64_t priority, double since_s) noexcept:
        cdef Line line = self.lines.get(key)
        cdef Waiter waiter
        cdef int n = 0
        if line is not None:
            for waiter in line.heap:
                n += goes_before(waiter, priority, since_s)
        return n

    cdef void free(self, int slot) noexcept:
        if slot < 0:
            self.all_freed = self.n_turns + 1
        else:
            self.freed[slot] = self.n_turns + 1

    cdef bint is_due(self, int slot) noexcept:
        return self.all_freed > self.n_turns or self.freed[slot] > self.n_turns

    cdef int turn(self, double now_s) except -1:
        cdef list moving = []
        cdef Line best, line
        cdef int32_t only
        cdef Py_ssize_t at
        cdef bint goes_on
        if self.turning:
            return 0        # who is let go may end at once, and free its place
        self.turning = True
        self.n_turns += 1
        try:
            # A heap of lines: where sessions are bound there may be as many as requests, and most
            # of them wait for other endpoints.
            for line in self.lines.values():
                only = (<Waiter>line.heap[0]).only
                if only < 0 or self.all_freed == self.n_turns or (
                        self.freed[only] == self.n_turns):
                    moving.append(line)
            for at in range(len(moving) // 2 - 1, -1, -1):
                settle(moving, at)
            while moving:
                best = <Line>moving[0]
                goes_on = False
                if best.heap:
                    goes_on = (<Waiter>best.heap[0]).admit(now_s) and len(best.heap) > 0
                if not goes_on:
                    best = <Line>moving.pop()
                    if not moving:
                        break
                    moving[0] = best
                settle(moving, 0)
        finally:
            self.turning = False
        return 0

    cdef int tell(self, double now_s) except -1:
        cdef Line line
        for line in self.lines.values():
            (<Waiter>line.heap[0]).tell(now_s)
        return 0

    cdef int turn_in_s(self, double now_s) noexcept:
        cdef double passed_s, turn_s
        if self.n == 0:
            return 1
        self._decay(now_s)
        # What the decaying count would be at one a second, for as long as there has been a queue.
        passed_s = PACE_S * (1 - exp((self.began_s - now_s) / PACE_S))
        # Nobody went yet: that takes as long again, for all we know.
        turn_s = passed_s * (self.n + 1) / self.n_went if self.n_went > 0 else (
            max(now_s - self.began_s, FIRST_TURN_S))
        return <int>ceil(min(max(turn_s, 1.0), MAX_TURN_S))

    cdef Waiter _last(self):
        """The one that would go last. O(n), and only asked when the queue is full."""
        cdef Line line
        cdef Waiter waiter, last = None
        for line in self.lines.values():
            for waiter in line.heap:
                if last is None or is_before(last, waiter):
                    last = waiter
        return last

    cdef void _decay(self, double now_s) noexcept:
        if now_s > self.noted_s:
            self.n_went *= exp((self.noted_s - now_s) / PACE_S)
            self.noted_s = now_s
