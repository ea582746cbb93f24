"""What a request's head says of where it shall go: its session, and labels of endpoints."""

from libc.stdint cimport uint64_t

from gateway.http._head cimport Field, Head

cdef struct Course:
    uint64_t session        # hashed; 0: it names none
    uint64_t labels         # bits that its endpoint must have
    bint is_malformed       # the labels cannot be read

cdef class Steering:
    """The names to look for, from the settings of a worker."""
    cdef uint64_t sizes     # bit n: a field whose name has n bytes is looked at; 0: none is
    cdef tuple headers      # lower case, the first that is there counts
    cdef bytes cookie       # b"": none
    cdef dict bits          # b"name=value" -> its bit as a mask
    cdef tuple strange      # of the labels that were read last, some that no endpoint has
    cdef bint reads_labels
    cdef bint is_bound      # sessions stay where they are
    cdef double weight_s    # what leaving a session's endpoint costs
    cdef uint64_t serves    # the role that a request wants which asks for none
    cdef uint64_t roles     # all roles
    cdef void read(self, const char* p, const Head* head, Course* course) noexcept
    # private
    cdef int _look(self, const char* p, const Field* field, int best, Course* course) except -1
    cdef bint _read_labels(self, bytes text) except -1

# Of a label that no endpoint has.
cdef uint64_t NOBODY
