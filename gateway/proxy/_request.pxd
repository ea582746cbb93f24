"""What a client asks for: read from a request's head and body, decided on, ready to be sent.

No I/O here. The readers answer with a Reason (0: go on) and leave its details in `details`.
"""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from gateway.http._head cimport Head
from gateway.proxy._envelope cimport Envelope, Value
from gateway.proxy._holder cimport Holder
from gateway.proxy._path cimport Path
from gateway.proxy._plane cimport Plane
from gateway.proxy._served cimport Served
from gateway.proxy._steering cimport Course
from router._keying cimport Prompt

cdef class Request:
    cdef Plane plane
    # from the head
    cdef bytes method               # None: the head could not be read
    cdef bytes target
    cdef Path path                  # None: unknown to us
    cdef bytes request_id
    cdef bytes fields               # end-to-end header lines, to forward
    cdef bytes credentials          # header lines, for engines that have no key of their own
    cdef bytes cors                 # header lines for the response; None: none
    cdef bytes content_type
    cdef int64_t header_bytes       # of JSON before binary tensors, as its head says; -1: no such
    cdef bint is_head
    cdef bint is_preflight          # an allowed CORS preflight: answered here
    cdef bint http_1_0
    cdef bint close_after           # this connection ends with this response
    cdef bint keep_alive_1_0        # an HTTP/1.0 client that asked to keep the connection
    # from the key
    cdef str holder                 # its name; None: no keys here
    cdef frozenset allowed          # models as UTF-8; None: all
    cdef uint64_t key_labels        # that its endpoint must have
    cdef bint usage_is_set          # by the key, against model and gateway
    cdef bint is_vouched            # the admin asks: no credentials are wanted
    # from head, key and model: where it shall go
    cdef Course course
    cdef tuple strange_labels       # that it asks for and no endpoint has, as texts
    cdef int64_t least_priority     # by the key: what it asks for is at least this
    # of both, the head's first
    cdef int64_t priority           # in the queue: the lower, the earlier
    cdef bint priority_is_set       # by the head
    # from the body
    cdef object body                # None, or bytes-like: kept until the response begins
    cdef int64_t body_size
    cdef Served served              # None: no model was chosen
    cdef bint is_bound              # its session must stay at its endpoint, whatever the mode
    cdef int32_t pinned             # the one slot that may serve it; -1: any
    cdef uint32_t pinned_generation     # of that slot: later it is another endpoint
    cdef Prompt prompt              # its blocks, until the response begins
    cdef size_t prompt_bytes        # of it, in canonical form
    cdef bint has_ids               # the blocks are of token ids, not of text
    cdef double max_tokens          # of the answer; 0: not said
    cdef bytes cache_salt           # as UTF-8; None: none
    cdef bint is_stream             # as it asks for
    cdef bint wants_usage           # usage mode `exact` holds for it
    cdef bint hides_usage           # usage was asked for in the client's place, and is hidden
    # of the last refusal
    cdef tuple details

    cdef void clear(self) noexcept
    cdef int read_head(self, const char* p, const Head* head) except -1
    # `body`: bytes, a memoryview of bytes, or None.
    cdef int read_body(self, object body, int64_t size) except -1
    # The key in the head is known, or there are no keys.
    cdef bint authorize(self, const char* p, const Head* head) except -1
    # Where its prompt is cached depends on its token ids, which have to be made first.
    cdef bint wants_ids(self) noexcept
    # Here they are, as array("I"): the prompt's blocks are made of them.
    cdef int take_ids(self, object ids) except -1
    # For transports that bring no body in HTTP: a model and what stands in its tensors
    # (engines.kserve.Tensors), of a message of so many bytes.
    cdef int read_tensors(self, bytes model, object tensors, int64_t size) except -1
    # It is asked with the key of this name; False: there is none.
    cdef bint vouch(self, str key) except -1
    # private
    cdef void _grant(self, Holder holder) noexcept
    cdef int _refuse(self, int reason, tuple details) except -1
    cdef int _read_framing(self, const char* p, const Head* head) except -1
    cdef int _read_request_id(self, const char* p, const Head* head) except -1
    cdef int _read_priority(self, const char* p, const Head* head) except -1
    cdef int _read_origin(self, const char* p, const Head* head) except -1
    cdef int _keep_fields(self, const char* p, const Head* head) except -1
    cdef int _read_form(self) except -1
    cdef int _read_json(self) except -1
    cdef void _take_priority(self, const char* p, Value value) noexcept
    cdef int _choose_model(self, bytes name) except -1
    cdef int _refuse_model(self, str name) except -1
    cdef int _splice(self, Value old, bytes new) except -1
    cdef int _ask_for_usage(self, const char* p, const Envelope* envelope) except -1
    cdef int _read_native(self) except -1
    cdef int _take_tensors(self, object tensors) except -1
    cdef int _pin_first(self) except -1
    cdef void _read_header_bytes(self, const char* p, const Head* head) noexcept
    cdef int _read_prompt(self, const char* p, const Envelope* envelope) except -1
    cdef void _measure_prompt(self) noexcept
    cdef int _pin(self, str response) except -1
    cdef Served _target(self, split)

# Where a body's bytes begin: of bytes, or of a view into bytes; None has none.
cdef const char* start_of(object body) noexcept

# A name as it is told back in an error: not all of a long one.
cdef str shown(bytes name)
