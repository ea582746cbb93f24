"""Reads what a gateway must know from a response body while it passes: events, usage, end marks.

Server-sent events (WHATWG HTML 9.2) are told apart by their empty lines, LF or CRLF; a lone CR
ends no line here, since no engine sends it. JSON bodies are looked at near their end only, where
engines put `usage`. No JSON is parsed: names are looked up with their quotes, which cannot stand
unescaped inside a JSON string.
"""

from libc.stdint cimport int64_t

cdef enum:
    # An event larger than this is passed and counted, but not looked into.
    MAX_EVENT_BYTES = 64 * 1024
    # How much of a JSON body's end is kept when it comes in pieces.
    JSON_TAIL_BYTES = 4096

cpdef enum EndMark:
    # How a dialect's streams say that they are whole.
    NO_MARK = 0
    DONE = 1                # OpenAI: data: [DONE]
    MESSAGE_STOP = 2        # Anthropic
    RESPONSE_OVER = 3       # OpenAI responses: response.completed, .incomplete or .failed

cdef struct Usage:
    int64_t tokens_in       # -1: not said
    int64_t tokens_out
    int64_t cached

cdef class Scanner:
    cdef char* tail         # the event (or the JSON end) that is not complete yet
    cdef size_t tail_size
    cdef size_t tail_room
    cdef bint in_event      # some of an event has been fed, its end has not
    cdef bint skipping      # this event is larger than MAX_EVENT_BYTES
    cdef size_t line_size   # of the line under way, as far as it came in earlier pieces
    cdef bint line_is_cr    # that line is a single CR
    cdef int end_mark
    cdef Usage usage
    cdef int64_t n_events   # data events so far; comments and end marks are none
    cdef bint over          # the end mark came
    cdef bint failed        # an event that says an error came

    cdef void reset(self, int end_mark) noexcept nogil
    # Event streams: how many data events ended in p[0:n]. MemoryError possible.
    cdef int feed(self, const char* p, size_t n) except -1
    # JSON bodies: remember the end.
    cdef int feed_json(self, const char* p, size_t n) except -1
    # JSON bodies: at the end, look for usage in what was fed (or in one whole body).
    cdef void finish_json(self) noexcept nogil
    cdef void read_usage(self, const char* p, size_t n) noexcept nogil
    # private
    cdef int _keep(self, const char* p, size_t n) except -1
    cdef int _end_event(self, const char* p, size_t n) except -1
    cdef void _look_into(self, const char* p, size_t n) noexcept nogil
    cdef void _look_for_end(self, const char* data, size_t size) noexcept nogil
