"""See _shared.pxd."""

import mmap
import os

from libc.stdint cimport int64_t

from router._adapters cimport Adapters
from router._index cimport Index
from router._sessions cimport Sessions
from router._table cimport Table

cdef enum:
    INDEX_BLOCKS = 1 << 20
    # Distinct sets of endpoints that share a block.
    INDEX_SETS = 1 << 15

cdef double[N_BOUNDS] _LATENCY_BOUNDS_S = [
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2,
    0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0,
]
cdef double[N_BOUNDS] _SHORT_BOUNDS_S = [
    5e-6, 1e-5, 1.5e-5, 2e-5, 3e-5, 4e-5, 5e-5, 7.5e-5, 1e-4, 1.5e-4,
    2e-4, 3e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 1e-1,
]


cdef const double* latency_bounds_s() noexcept nogil:
    return _LATENCY_BOUNDS_S


cdef const double* short_bounds_s() noexcept nogil:
    return _SHORT_BOUNDS_S


# Upper bounds of the histograms' buckets, in seconds, for rendering.
LATENCY_BOUNDS_S = list(_LATENCY_BOUNDS_S)
SHORT_BOUNDS_S = list(_SHORT_BOUNDS_S)

# The statuses that have a counter of their own; others count as one of the last two.
STATUSES = (
    200, 201, 204, 304, 400, 401, 403, 404, 405, 408, 409, 413, 415, 417, 422, 429,
    499, 500, 501, 502, 503, 504, "4xx", "other",
)


cdef int status_index(int status) noexcept nogil:
    if status == 200:
        return 0
    if status == 400:
        return 4
    if status == 404:
        return 7
    return _rare_status_index(status)


cdef int _rare_status_index(int status) noexcept nogil:
    with gil:
        try:
            return STATUSES.index(status)
        except ValueError:
            return 22 if 400 <= status < 500 else 23


cdef void observe(int64_t* words, const double* bounds_s, double value_s) noexcept nogil:
    cdef int low = 0, high = N_BOUNDS, middle
    while low < high:
        middle = (low + high) >> 1
        if value_s <= bounds_s[middle]:
            high = middle
        else:
            low = middle + 1
    words[low] += 1
    words[N_BOUNDS + 1] += <int64_t>(value_s * 1e6)


cdef size_t _index_at(int n_workers) except 0:
    """Where the prefix index begins: on a cache line of its own."""
    return (8 * COLUMN * n_workers + Table.size(n_workers + 1) + 63) // 64 * 64


cdef size_t _marks_at(int n_workers, size_t index_blocks) except 0:
    """Where sessions and adapters begin."""
    return (_index_at(n_workers) + Index.size(index_blocks, INDEX_SETS) + 63) // 64 * 64


cdef class Shared:
    """The shared memory as an object; `Shared.create` makes it, `Shared(fd, n)` attaches to it.

    The file descriptor is inheritable on request only (`pass_fds`); the memory has no name.
    """

    def __init__(self, int fd, int n_workers, size_t index_blocks=INDEX_BLOCKS):
        cdef unsigned char[::1] view
        self.fd = fd
        self.n_workers = n_workers
        self.memory = mmap.mmap(fd, Shared.size(n_workers, index_blocks))
        view = self.memory
        self.words = <int64_t*>&view[0]
        # One more column: what other gateways have put on the endpoints.
        self.table = Table(
            memoryview(self.memory)[8 * COLUMN * n_workers:], n_workers + 1, n_workers
        )
        self.index = Index(
            memoryview(self.memory)[_index_at(n_workers):], index_blocks, INDEX_SETS
        )
        marks = memoryview(self.memory)[_marks_at(n_workers, index_blocks):]
        self.sessions = Sessions(marks)
        self.adapters = Adapters(marks[Sessions.size():])

    @staticmethod
    def size(int n_workers, size_t index_blocks=INDEX_BLOCKS):
        """Bytes for so many workers; untouched pages take no memory."""
        return _marks_at(n_workers, index_blocks) + Sessions.size() + Adapters.size()

    @staticmethod
    def create(int n_workers, size_t index_blocks=INDEX_BLOCKS):
        """New zeroed memory. `index_blocks`: room in the prefix index, 16 bytes each."""
        fd = os.memfd_create("headgate", os.MFD_CLOEXEC)
        os.ftruncate(fd, Shared.size(n_workers, index_blocks))
        return Shared(fd, n_workers, index_blocks)

    cdef int64_t* column(self, int worker) noexcept nogil:
        return self.words + <int64_t>worker * COLUMN

    def count(self, int index, worker=None):
        """One counter of a worker's column by its word offset; summed if no worker is named."""
        if not 0 <= index < COLUMN:
            raise IndexError(f"word {index} is not in a column")
        if worker is not None:
            return self.column(worker)[index]
        return sum([self.column(w)[index] for w in range(self.n_workers)])

    def block(self, int index, int n_words):
        """`n_words` neighbouring counters from `index` on, each summed over the workers."""
        if not 0 <= index <= index + n_words <= COLUMN:
            raise IndexError(f"words {index}..{index + n_words} are not in a column")
        cdef int worker, word
        cdef list total = [0] * n_words
        for worker in range(self.n_workers):
            for word in range(n_words):
                if self.column(worker)[index + word]:
                    total[word] += self.column(worker)[index + word]
        return total

    def lose_worker(self, int worker, int reason):
        """Settle the account of a worker that was killed, so that the totals stay true.

        What it had accepted and not ended counts as failed (by `reason`), what it had dispatched
        as cut, its open connections as closed; its gauges and its load go to zero.
        """
        cdef int64_t* c = self.column(worker)
        cdef int index
        cdef int64_t under_way = c[<int>Count.ACCEPTED]
        for index in range(<int>Count.COMPLETED, <int>Count.REFUSED + 1):
            under_way -= c[index]
        c[<int>Count.FAILED] += under_way
        c[<int>Area.REASONS + reason] += under_way
        cdef int64_t dispatched = c[<int>Count.DISPATCHED]
        for index in range(<int>Count.ANSWERED, 1 + <int>Count.CUT):
            dispatched -= c[index]
        c[<int>Count.CUT] += dispatched
        c[<int>Count.CLIENT_CLOSED] = c[<int>Count.CLIENT_OPENED]
        c[<int>Count.UPSTREAM_CLOSED] = c[<int>Count.UPSTREAM_OPENED]
        for index in range(<int>FIRST_GAUGE, <int>N_COUNTS):
            c[index] = 0
        cdef int64_t* words
        for index in range(MAX_SLOTS):
            words = c + <int>Area.ENDPOINTS + index * <int>Area.ENDPOINT_WIDTH
            words[<int>EndpointWord.E_ABANDONED] = (
                words[<int>EndpointWord.E_DISPATCHED] - words[<int>EndpointWord.E_ANSWERED]
                - words[<int>EndpointWord.E_FAILED]
            )
        self.table.lose_worker(worker)
        return under_way
