"""What a model in Triton says, as OpenAI says it: events of a stream, or one JSON body.

The stable parts of an event are made once per choice; of each message the text is escaped between
them, and no JSON is parsed or built from objects.
"""

from libc.stdint cimport int64_t

from engines.triton._wire cimport Piece, Response
from gateway.http._write cimport Buffer

cdef class Choice:
    cdef readonly int index
    cdef readonly str prompt        # its model is asked this
    cdef bytes before               # of an event, up to its text
    cdef size_t n_seen              # bytes of its text, where each response has all so far
    cdef bytes tail                 # of such a text: may be a letter of which a token is missing
    cdef bytes held                 # text that is not said yet: it may be half a letter or a stop
    cdef list texts                 # all that was said; None: nobody wants to know
    cdef list logprobs              # of tokens, of which no event was written yet
    cdef Py_ssize_t n_letters       # of all tokens with logprobs
    cdef int64_t n_tokens
    cdef bytes finish               # why it ended; None: it did not
    cdef bint has_begun
    cdef bint is_over

cdef class Reply:
    cdef readonly object generation     # engines.triton.request.Generation
    cdef readonly list choices
    cdef readonly int n_open        # choices that are not over
    cdef bytes id
    cdef str model
    cdef int64_t created
    cdef object tool                # engines.triton.guide.ForcedTool, or None
    cdef bint tells_logprobs
    cdef bytes close_text           # what of an event stands behind its text
    cdef public int64_t prompt_tokens   # -1: not known
    cdef int64_t told_tokens            # the same by the model itself; 0: it did not say
    cdef public int64_t n_counted       # of the answer, by the model's tokenizer; -1: not counted
    cdef bint keeps_texts
    cdef int n_events               # put since whoever sends them set it to 0
    cdef tuple stops
    cdef bint is_cumulative
    # A message of a choice: what there is to say goes into `out`.
    cdef int take(self, Choice choice, const Response* response, Buffer out) except -1
    # A choice has all its messages.
    cdef int finish(self, Choice choice, Buffer out) except -1
    # All choices are over: the stream's end, or the body of the whole answer.
    cdef bytes ending(self)
    # private
    cdef int _say_more(self, Choice choice, Piece text, Buffer out) except -1
    cdef int _say(self, Choice choice, const char* p, size_t n, Buffer out) except -1
    cdef int _say_carefully(self, Choice choice, bytes text, Buffer out) except -1
    cdef int _put(self, Choice choice, const char* p, size_t n, Buffer out) except -1
    cdef int _begin(self, Choice choice, Buffer out) except -1
    cdef int _close_event(self, Choice choice, bytes finish, Buffer out) except -1

# A JSON string's inside.
cdef int put_escaped(Buffer out, const char* p, size_t n) except -1
