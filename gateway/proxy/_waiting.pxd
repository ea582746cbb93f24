"""The queue of requests for which no endpoint has room: one per worker.

It is made of lines. Who stands in a line may go to the same endpoints as all others there, so the
line moves when its first one can go, and only then. The first one is that of the lowest priority
number, among equals the one that was ready first; and so is the order in which lines are asked.
"""

from libc.stdint cimport int32_t, int64_t, uint64_t

from router._table cimport MAX_SLOTS

cdef class Waiter:
    """Who waits; its place is lost by `Waiting.leave` alone."""
    cdef int64_t priority
    cdef double since_s             # when it was ready for the first time
    cdef int64_t n_bytes            # of memory that it holds
    cdef int32_t only               # the one slot that would do, when it was last asked; -1: more
    cdef Line line                  # None: it does not wait
    # private to the queue
    cdef uint64_t number            # among equals
    cdef Py_ssize_t at              # in the line's heap
    # There may be room. True: it went, and has left the queue. Must not join or leave others.
    cdef bint admit(self, double now_s) except -1
    # Tell all workers that it waits, and for which endpoints.
    cdef int tell(self, double now_s) except -1
    # Its place was given to another, of a lower priority number: it has left the queue.
    cdef int expelled(self, double now_s) except -1

cdef class Line:
    cdef object key
    cdef list heap                  # of Waiter; the first one is the next

cdef class Waiting:
    cdef readonly int n             # that wait; 0: all else costs nothing
    cdef readonly int64_t n_bytes
    cdef int most
    cdef int64_t most_bytes
    cdef dict lines                 # what its requests want -> Line; none is empty
    cdef uint64_t n_joined
    cdef bint turning
    cdef int64_t n_turns
    cdef int64_t[MAX_SLOTS] freed   # by slot: the turn that asks for it
    cdef int64_t all_freed          # the turn that asks everybody
    cdef double began_s             # since when there is anybody
    cdef double noted_s
    cdef double n_went              # since then, decaying
    # Is there room for one more, or may it have another's place?
    cdef bint takes(self, int64_t priority, int64_t n_bytes) noexcept
    # After `takes`. `key`: equal for those, and only those, that may go to the same endpoints.
    cdef int join(self, Waiter waiter, object key, double now_s) except -1
    # Changes nothing for one that does not wait. `went`: because there was room.
    cdef int leave(self, Waiter waiter, bint went, double now_s) except -1
    # Does anybody wait for the same who goes before one of this priority that was ready then?
    cdef bint is_ahead(self, object key, int64_t priority, double since_s) noexcept
    # How many do so? O(n), for people who ask.
    cdef int n_ahead(self, object key, int64_t priority, double since_s) noexcept
    # Something became free at this slot, or anywhere (-1): those that may go there are asked at
    # the next turn.
    cdef void free(self, int slot) noexcept
    # Is anybody still to be asked for it?
    cdef bint is_due(self, int slot) noexcept
    # Let go who can, in order, of those for whom something became free.
    cdef int turn(self, double now_s) except -1
    # Have the first of each line `tell`; if not repeated, it is forgotten.
    cdef int tell(self, double now_s) except -1
    # Seconds until one who comes now would have had its turn, from how fast they went: 1 to 60.
    cdef int turn_in_s(self, double now_s) noexcept
    # private
    cdef Waiter _last(self)
    cdef void _decay(self, double now_s) noexcept
