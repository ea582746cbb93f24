"""Answers that Headgate gives itself, as bytes: heads in one place, bodies in the dialect's shape."""

from gateway.http._head cimport Fault
from gateway.proxy._plane cimport Plane
from gateway.proxy._request cimport Request

# The status line as we write it; reason phrases are ours, not the engine's.
cdef bytes status_line(int status)
# A whole answer. `lines`: further header lines, each with its CRLF.
cdef bytes answer(Plane plane, Request request, int status, bytes content_type, bytes body,
                  bytes lines)
# The answer for a Reason, filled in with its details.
cdef bytes refusal(Plane plane, Request request, int reason, tuple details)
# The answer for a Fault in what the client sent.
cdef bytes fault_answer(Plane plane, Request request, int fault)
