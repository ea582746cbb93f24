"""See _steering.pxd."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint64_t
from libc.string cimport memchr, memcmp

from gateway.http._head cimport Field, FieldId, Head, Span
from router._hash cimport root_of

cdef extern from "strings.h" nogil:
    int strncasecmp(const char* a, const char* b, size_t n)

cdef enum:
    # Of what a client sent, in an error.
    SHOWN_LABELS = 4
    SHOWN_CHARACTERS = 128

cdef uint64_t NOBODY = <uint64_t>1 << 63
cdef bytes LABELS = b"x-headgate-labels"


cdef class Steering:
    """Made anew with each fleet; `labels`: see messages.Fleet."""

    def __init__(self, settings, labels):
        self.bits = {text.encode(): 1 << bit for text, bit in labels.items()}
        self.serves = self.bits.get(b"role=decode", 0)
        self.roles = self.serves | self.bits.get(b"role=prefill", 0)
        self.reads_labels = settings.client_labels
        self.weight_s = settings.affinity_weight_s
        self.is_bound = settings.affinity_mode == "hard"
        self.headers = ()
        self.cookie = b""
        if settings.affinity_mode != "off":
            self.headers = tuple([name.encode() for name in settings.affinity_headers])
            self.cookie = settings.affinity_cookie.encode()
        names = [*self.headers]
        if self.cookie:
            names.append(b"cookie")
        if self.reads_labels:
            names.append(LABELS)
        for name in names:
            self.sizes |= <uint64_t>1 << len(name)

    def mask(self, texts):
        """The bits of labels, as name=value each; of one that no endpoint has: a bit that none
        has either."""
        found = 0
        for text in texts:
            found |= self.bits.get(text.encode(), NOBODY)
        return found

    def strangers(self, texts):
        """For people: of labels, as name=value each, those that no endpoint has; a few, cut short.
        """
        found = [text for text in texts if text.encode() not in self.bits]
        return tuple([text[:SHOWN_CHARACTERS] for text in found[:SHOWN_LABELS]])

    cdef void read(self, const char* p, const Head* head, Course* course) noexcept:
        cdef int index, best
        cdef size_t size
        course.session = course.labels = 0
        course.is_malformed = False
        best = <int>len(self.headers) + 1
        for index in range(head.n_fields):
            size = head.fields[index].name.size
            if size < 64 and self.sizes >> size & 1:
                best = self._look(p, &head.fields[index], best, course)

    cdef int _look(self, const char* p, const Field* field, int best, Course* course) except -1:
        """Take in one field; the number of the header that has named the session so far."""
        cdef const char* value = p + field.value.start
        cdef int number
        cdef bytes name
        cdef Span found
        if self.reads_labels and field.id == <int>FieldId.X_HEADGATE and (
                field.name.size == <size_t>PyBytes_GET_SIZE(LABELS)) and strncasecmp(
                    p + field.name.start, PyBytes_AS_STRING(LABELS), field.name.size) == 0:
            text = value[:field.value.size]
            if self._read_labels(text):
                texts = [
                    part.strip().decode("latin-1") for part in text.split(b",") if part.strip()
                ]
                course.labels |= self.mask(texts)
                if course.labels & NOBODY:
                    self.strange = self.strangers(texts)
            else:
                course.is_malformed = True
            return best
        if field.value.size == 0:
            return best
        for number, name in enumerate(self.headers):
            if number < best and <size_t>PyBytes_GET_SIZE(name) == field.name.size and (
                    strncasecmp(p + field.name.start, PyBytes_AS_STRING(name),
                                field.name.size) == 0):
                course.session = root_of(value, field.value.size)
                return number
        if field.id == <int>FieldId.COOKIE and self.cookie and best > <int>len(self.headers):
            found = cookie_of(value, field.value.size, self.cookie)
            if found.size:
                course.session = root_of(value + found.start, found.size)
                return <int>len(self.headers)
        return best

    cdef bint _read_labels(self, bytes text) except -1:
        """Is it name=value, name=value?"""
        for part in text.split(b","):
            name, sign, value = part.strip().partition(b"=")
            if part.strip() and not (name and sign and value):
                return False
        return True


cdef Span cookie_of(const char* p, size_t n, bytes name) noexcept:
    """Where in p[:n] the value of a cookie stands; size 0: it is not there."""
    cdef Span found = Span(0, 0)
    cdef size_t at = 0, end, size = PyBytes_GET_SIZE(name)
    cdef const void* semicolon
    while at < n:
        if p[at] == c" " or p[at] == c";":
            at += 1
            continue
        semicolon = memchr(p + at, c";", n - at)
        end = n if semicolon == NULL else <const char*>semicolon - p
        if end - at > size and p[at + size] == c"=" and (
                memcmp(p + at, PyBytes_AS_STRING(name), size) == 0):
            found.start = <unsigned int>(at + size + 1)
            found.size = <unsigned int>(end - at - size - 1)
            return found
        at = end
    return found
