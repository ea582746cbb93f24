"""The few wanted figures of a Prometheus or OpenMetrics text page, in one walk over its bytes.

A vLLM page has 700 lines and more, of which a dozen are wanted: the rest costs a look for its line
end and eight bytes of its name. Nothing is allocated per line.
"""

from libc.math cimport isfinite
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memcmp, memcpy, memset

cdef extern from "Python.h":
    double PyOS_string_to_double(const char* text, char** tail, void* overflow) except? -1.0

__all__ = ["PageScanner"]

cdef enum:
    # Of a number; longer ones are no engine's.
    MAX_DIGITS = 64
    MAX_HAVING = 8
    MARKS = 1024

cdef enum How:
    SUM
    MAX
    MEAN
    SAME
    NEWEST

HOWS = {"sum": SUM, "max": MAX, "mean": MEAN, "same": SAME, "newest": NEWEST}

cdef struct Text:
    const char* start
    size_t size

cdef struct Wanted:
    Text name
    Text label
    Text keys[MAX_HAVING]
    Text values[MAX_HAVING]
    int n_having
    int how

cdef struct Found:
    size_t n
    double sum
    double first
    double largest
    const char* labels
    const char* line_end
    bint bad


cdef class PageScanner:
    """Finds what is wanted in a page; make it once per kind of page.

    Of each wanted (name, having, label, how) a scan gives one figure. `name` is the sample's, as it
    stands on the page; `having` its labels with their values; `label` names the label whose value
    is the number, "" takes the sample's own value. `how` makes one of several: "sum", "max",
    "mean", "same" (which all must have), or "newest": (value, labels) of the one with the largest
    value, the first of equals.
    """

    cdef Wanted* _wanted
    cdef Found* _found
    cdef int _n
    cdef list _texts
    cdef size_t _least
    # One for each of what may stand in the eight bytes before the shortest name's end.
    cdef bint _marks[MARKS]

    def __cinit__(self, wanted):
        cdef int i = 0, j
        wanted = list(wanted)
        self._n = len(wanted)
        self._texts = []
        self._wanted = <Wanted*>calloc(self._n + 1, sizeof(Wanted))
        self._found = <Found*>calloc(self._n + 1, sizeof(Found))
        if self._wanted == NULL or self._found == NULL:
            raise MemoryError
        self._least = min((len(name.encode()) for name, _, _, _ in wanted), default=0)
        memset(self._marks, 0, sizeof(self._marks))
        for name, having, label, how in wanted:
            if not name or len(having) > MAX_HAVING:
                raise ValueError(f"cannot look for {name!r} with {len(having)} labels")
            self._wanted[i].name = self._text(name)
            self._wanted[i].label = self._text(label)
            for j, (key, value) in enumerate(having):
                self._wanted[i].keys[j] = self._text(key)
                self._wanted[i].values[j] = self._text(_escaped(value))
            self._wanted[i].n_having = len(having)
            self._wanted[i].how = HOWS[how]
            self._marks[mark_of(self._wanted[i].name.start, self._least)] = True
            i += 1

    def __dealloc__(self):
        free(self._wanted)
        free(self._found)

    def scan(self, bytes page not None, size_t start=0) -> list:
        """A figure for each of the wanted, in their order, from `start` on. Never raises on what a
        page says.

        None: there is no such sample, or one of them is malformed, negative or not finite. What
        stands behind the last line end is cut off, and not read.
        """
        cdef const char* at = <const char*>page + min(start, <size_t>len(page))
        cdef const char* end = <const char*>page + len(page)
        cdef const char* stop
        memset(self._found, 0, self._n * sizeof(Found))
        while at < end:
            stop = <const char*>memchr(at, c"\n", end - at)
            if stop == NULL:
                break
            if is_blank(at[0]) or (
                at[0] != c"#"
                and <size_t>(stop - at) > self._least
                and self._marks[mark_of(at, self._least)]
            ):
                self._line(at, stop)
            at = stop + 1
        return [self._figure(i) for i in range(self._n)]

    cdef Text _text(self, str text):
        cdef bytes encoded = text.encode()
        cdef Text found
        self._texts.append(encoded)
        found.start, found.size = encoded, len(encoded)
        return found

    cdef void _line(self, const char* at, const char* stop) noexcept:
        cdef const char* name_end
        cdef size_t size
        cdef int i
        at = skip_blanks(at, stop)
        name_end = at
        while name_end < stop and not is_blank(name_end[0]) and name_end[0] != c"{":
            name_end += 1
        size = name_end - at
        for i in range(self._n):
            if self._wanted[i].name.size == size and not memcmp(
                self._wanted[i].name.start, at, size
            ):
                take(&self._wanted[i], &self._found[i], skip_blanks(name_end, stop), stop)

    cdef object _figure(self, int i):
        cdef Found* found = &self._found[i]
        cdef int how = self._wanted[i].how
        if found.bad or not found.n:
            return None
        if how == NEWEST:
            return found.largest, _labels(found.labels, found.line_end)
        if how == MAX:
            return found.largest
        if how == MEAN:
            return found.sum / found.n
        if how == SAME:
            return found.first
        # Each was finite, and yet their sum may not be.
        return found.sum if isfinite(found.sum) else None


cdef inline bint is_blank(char c) noexcept:
    return c == c" " or c == c"\t" or c == c"\r"


cdef inline const char* skip_blanks(const char* at, const char* stop) noexcept:
    while at < stop and is_blank(at[0]):
        at += 1
    return at


cdef inline size_t mark_of(const char* name, size_t least) noexcept:
    """By a name's eight bytes before `least`; the same for all names if there are fewer."""
    cdef uint64_t word
    if least < 8:
        return 0
    memcpy(&word, name + least - 8, 8)
    return word * <uint64_t>0x9E3779B97F4A7C15 >> 54


cdef void take(const Wanted* wanted, Found* found, const char* at, const char* stop) noexcept:
    """Add a sample, from what stands behind its name."""
    cdef Text own
    cdef double value
    cdef const char* labels = NULL
    cdef int n_met = 0
    own.start, own.size = NULL, 0
    if at < stop and at[0] == c"{":
        labels = at + 1
        at = walk_labels(wanted, labels, stop, &n_met, &own)
        if at == NULL:
            found.bad = True
            return
    if n_met < wanted.n_having:
        return
    if wanted.label.size == 0:
        own.start = at = skip_blanks(at, stop)
        while at < stop and not is_blank(at[0]):
            at += 1
        own.size = at - own.start
    elif own.start == NULL:
        return
    value = number(own)
    if value < 0 or (wanted.how == SAME and found.n and value != found.first):
        found.bad = True
        return
    if not found.n:
        found.first = value
    if not found.n or value > found.largest:
        found.largest, found.labels, found.line_end = value, labels, stop
    found.sum += value
    found.n += 1


cdef const char* walk_labels(
    const Wanted* wanted, const char* at, const char* stop, int* n_met, Text* own
) noexcept:
    """What stands behind the closing brace; NULL if they are malformed. Finds what is wanted."""
    cdef Text key, value
    cdef int i
    while True:
        at = next_label(at, stop, &key, &value)
        if at == NULL or key.size == 0:
            return at
        if wanted.label.size and is_same(wanted.label, key):
            own[0] = value
        for i in range(wanted.n_having):
            if is_same(wanted.keys[i], key) and is_same(wanted.values[i], value):
                n_met[0] += 1


cdef const char* next_label(
    const char* at, const char* stop, Text* key, Text* value
) noexcept:
    """Reads key="value" and the comma behind it. The closing brace gives an empty key."""
    at = skip_blanks(at, stop)
    key.start = at
    while at < stop and is_of_name(at[0]):
        at += 1
    key.size = at - key.start
    at = skip_blanks(at, stop)
    if key.size == 0:
        return at + 1 if at < stop and at[0] == c"}" else NULL
    if at == stop or at[0] != c"=":
        return NULL
    at = skip_blanks(at + 1, stop)
    if at == stop or at[0] != c'"':
        return NULL
    at += 1
    value.start = at
    while at < stop and at[0] != c'"':
        at += 2 if at[0] == c"\\" else 1
    if at >= stop:
        return NULL
    value.size = at - value.start
    at = skip_blanks(at + 1, stop)
    if at < stop and at[0] == c",":
        return at + 1
    return at if at < stop and at[0] == c"}" else NULL


cdef inline bint is_of_name(char c) noexcept:
    return c"a" <= c <= c"z" or c"A" <= c <= c"Z" or c"0" <= c <= c"9" or c == c"_"


cdef inline bint is_same(Text one, Text other) noexcept:
    return one.size == other.size and not memcmp(one.start, other.start, one.size)


cdef double number(Text text) noexcept:
    """The number that the text is, all of it; -1 if it is none, not finite or negative."""
    cdef char* tail
    cdef double value
    if not 0 < text.size <= MAX_DIGITS:
        return -1.0
    try:
        value = PyOS_string_to_double(text.start, &tail, NULL)
    except (ValueError, OverflowError, MemoryError):
        return -1.0
    if tail != text.start + text.size or not isfinite(value) or value < 0:
        return -1.0
    return value


cdef dict _labels(const char* at, const char* stop):
    """All labels of a sample that was walked before; NULL: it has none."""
    cdef Text key, value
    cdef dict found = {}
    while at != NULL:
        at = next_label(at, stop, &key, &value)
        if at == NULL or key.size == 0:
            break
        found[key.start[:key.size].decode()] = _unescaped(
            value.start[:value.size].decode("utf-8", "replace")
        )
    return found


def _escaped(str text):
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _unescaped(str text):
    if "\\" not in text:
        return text
    parts = [part.replace("\\n", "\n").replace('\\"', '"') for part in text.split("\\\\")]
    return "\\".join(parts)
