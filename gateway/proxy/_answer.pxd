"""What goes to clients ahead of and instead of engines' bodies: heads, and answers of our own."""

from gateway.http._head cimport Head
from gateway.proxy._plane cimport Plane
from gateway.proxy._relay cimport Relay
from gateway.proxy._request cimport Request

# The status line as we write it; reason phrases are ours, not the engine's.
cdef bytes status_line(int status)
# The head of an engine's response for the client: hop-by-hop fields left out (RFC 9110 7.6.1),
# framing as `relay` will send the body, our own lines added. `decision`: one more line, or None.
cdef bytes relayed_head(Plane plane, Request request, Relay relay, const char* p,
                        const Head* head, bytes decision)
# A whole answer of our own. `lines`: further header lines, each with its CRLF.
cdef bytes own_answer(Plane plane, Request request, int status, bytes content_type, bytes body,
                      bytes lines)
# The answer for a Reason, filled in with its details.
cdef bytes refusal(Plane plane, Request request, int reason, tuple details)
# The answer for a Fault in what the client sent.
cdef bytes fault_answer(Plane plane, Request request, int fault, int reason)
