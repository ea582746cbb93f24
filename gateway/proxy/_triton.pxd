"""A Triton endpoint: OpenAI's requests as gRPC calls, its messages as OpenAI's answers.

To an exchange it looks like any other connection: a `TritonUpstream` answers with the head and the
body that a server speaking OpenAI would have sent, up to its end.
"""

from gateway.http._write cimport Buffer
from gateway.proxy._grpc cimport Call, Connection
from gateway.proxy._path cimport Path
from gateway.proxy._plane cimport Plane
from gateway.proxy._pool cimport Pool
from gateway.proxy._request cimport Request
from gateway.proxy._triton_reply cimport Choice, Reply
from gateway.proxy._upstream cimport Sink, Upstream
from router._booking cimport Booking

cdef class TritonPool(Pool):
    cdef list connections           # that may carry further calls
    cdef bytes head                 # the header block's fields that are the same for all calls
    cdef int grpc_port
    cdef object grpc_tls
    cdef object callers             # deque of Sink: wait for a connection
    cdef bint dialing
    cdef double next_complaint_s
    cdef list leftovers             # TritonUpstreams that nobody hears, whose models work on
    # private
    cdef Connection _connection(self)
    cdef int _fail_callers(self, str why) except -1

cdef class TritonCall(Call):
    cdef TritonUpstream upstream
    cdef Choice choice
    cdef bint is_final          # its last response was read: nothing that follows is heard
    cdef bint is_left           # nobody hears it, but its model cannot be stopped

cdef class TritonUpstream(Upstream):
    cdef Connection connection
    cdef bytes head
    cdef Request request
    cdef object generation
    cdef Reply reply
    cdef list calls
    cdef list unasked               # (Choice, message): not begun yet, for want of room
    cdef bint is_held
    cdef Buffer out
    cdef object job                 # what works on a prompt or counts tokens; has `cancel`
    cdef str tokenizer
    cdef bint has_head
    cdef bint is_reserved           # its place on the connection, until it begins
    cdef bint counts                # tokens are counted here
    cdef list left                  # calls that go on unheard
    cdef Booking booking            # is released when they end
    # private
    cdef int _unreserve(self) except -1
    cdef int _leave(self, TritonCall call) except -1
    cdef int _end_left(self, TritonCall call) except -1
    cdef int _release(self) except -1
    cdef int _begin(self) except -1
    cdef int _ask_model(self, list prompts, object n_tokens) except -1
    cdef int _refuse(self, int status, str text, str field) except -1
    # Begin as many calls as the connection takes; the others as those end.
    cdef int _begin_calls(self) except -1
    cdef int _begin_stream(self) except -1
    cdef int _flush(self) except -1
    # The stream's end: these events, and no more.
    cdef int _flush_last(self, bytes events) except -1
    cdef int _close_call(self, TritonCall call) except -1
    cdef int _finish(self) except -1
    cdef int _count(self) except -1
    cdef int _end(self) except -1
    cdef int _answer(self, int status, bytes body) except -1
    # No more will come. Not clean: that was not all.
    cdef int _part(self, bint clean) except -1
    cdef int _fail(self, int status, str text) except -1
    cdef int _drop(self, bint untouched) except -1
    cdef int _cancel_calls(self) except -1
