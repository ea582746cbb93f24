"""See _request.pxd."""

import json

from engines.dialect import Body
from engines.kserve import infer_tensors
from gateway.proxy.multipart import model_part
from gateway.proxy.usage import with_usage
from gateway.reasons import Reason
from router.namespace import namespace

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_GET_BUFFER
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memcmp

from gateway.http._head cimport FieldId, Head, Span
from gateway.http._write cimport Buffer
from gateway.proxy._envelope cimport (
    Envelope,
    Value,
    is_literal,
    number_of,
    read_envelope,
    read_integer,
    string_of,
)
from gateway.proxy._holder cimport Holder
from gateway.proxy._plane cimport Plane
from gateway.proxy._served cimport Served
from gateway.proxy._steering cimport NOBODY as NO_LABEL
from router._hash cimport chain, root_of
from router._keying cimport Prompt, TEXT_BLOCK_BYTES
from router._table cimport State

cdef extern from "strings.h" nogil:
    int strncasecmp(const char* a, const char* b, size_t n)

cdef enum:
    MAX_REQUEST_ID_BYTES = 128
    SHOWN_BYTES = 200               # of a name that is told back in an error
    MAX_PRIORITY = 1000

cdef int BODY_JSON = Body.JSON
cdef int BODY_MULTIPART = Body.MULTIPART
cdef int BODY_PATH = Body.PATH

# What is said of each JsonFault.
cdef dict JSON_FAULTS = {
    -1: "it does not begin with '{'",
    -2: "it is cut off",
    -3: "its brackets do not match",
    -4: "it is nested too deeply",
    -5: "there is something behind its end",
    -6: "a member is not written as \"name\": value",
}


cdef const char* start_of(object body) noexcept:
    if body is None:
        return b""
    if PyBytes_CheckExact(body):
        return PyBytes_AS_STRING(body)
    return <const char*>PyMemoryView_GET_BUFFER(body).buf


cdef class Request:
    """One per client connection, used for one request after the other."""

    def __cinit__(self, Plane plane):
        self.plane = plane
        self.prompt = Prompt()
        self.clear()

    cdef void clear(self) noexcept:
        self.method = self.target = self.request_id = self.fields = self.credentials = None
        self.path = None
        self.cors = self.content_type = None
        self.holder = None
        self.allowed = None
        self.body = None
        self.served = None
        self.details = ()
        self.body_size = 0
        self.pinned = self.header_bytes = -1
        self.is_head = self.is_preflight = self.http_1_0 = False
        self.close_after = self.keep_alive_1_0 = False
        self.usage_is_set = self.wants_usage = self.hides_usage = self.is_stream = False
        self.prompt.clear()
        self.prompt_bytes = 0
        self.has_ids = self.is_bound = False
        self.max_tokens = 0
        self.cache_salt = None
        self.course.session = self.course.labels = self.key_labels = 0
        self.strange_labels = ()
        self.priority = 0
        self.least_priority = -MAX_PRIORITY
        self.priority_is_set = False

    cdef int _refuse(self, int reason, tuple details) except -1:
        self.details = details
        return reason

    # -- the head

    cdef int read_head(self, const char* p, const Head* head) except -1:
        cdef bytes name
        self.method = p[head.method.start:head.method.start + head.method.size]
        self.target = p[head.target.start:head.target.start + head.target.size]
        self.is_head = self.method == b"HEAD"
        self.http_1_0 = head.minor == 0
        self.close_after = head.close
        self.keep_alive_1_0 = head.minor == 0 and not head.close
        self._read_request_id(p, head)
        if head.upgrade:
            return self._refuse(Reason.UPGRADE, ())
        if self.plane.origins and head.origin >= 0:
            self._read_origin(p, head)
            if self.is_preflight:
                return 0
        name = p[head.path.start:head.path.start + head.path.size]
        self.path = self.plane.paths.get(name)
        if self.path is None:
            return self._refuse(Reason.UNKNOWN_PATH, (name.decode("latin-1"), path_hint(name)))
        if not (self.path.posts and self.method == b"POST") and (
                self.method not in self.path.methods):
            return self._refuse(Reason.METHOD_NOT_ALLOWED, (self.method.decode("latin-1"),))
        if not self.path.is_open and not self.authorize(p, head):
            return self._refuse(Reason.UNAUTHORIZED, ())
        if self.path.local and not self.path.has_body:
            return 0
        if head.priority >= 0 and self._read_priority(p, head):
            return Reason.BAD_PRIORITY
        return self._read_framing(p, head)

    cdef int _read_framing(self, const char* p, const Head* head) except -1:
        cdef Span value
        # What Triton's clients compress is passed as it is: only their prompts are not seen.
        if head.content_encoding >= 0 and not self.path.is_infer:
            value = head.fields[head.content_encoding].value
            if value.size != 8 or memcmp(p + value.start, b"identity", 8) != 0:
                return self._refuse(Reason.CONTENT_ENCODING, (text(p, value),))
        if head.content_length > self.plane.body_bytes:
            return self._refuse(Reason.BODY_TOO_LARGE, (self.plane.body_bytes,))
        if self.path.body == BODY_MULTIPART and head.content_type >= 0:
            value = head.fields[head.content_type].value
            self.content_type = p[value.start:value.start + value.size]
        if self.path.is_infer:
            self._read_header_bytes(p, head)
        if self.plane.steering.sizes:
            self.plane.steering.read(p, head, &self.course)
            if self.course.is_malformed:
                return self._refuse(Reason.BAD_LABELS, ())
            if self.course.labels & NO_LABEL:
                self.strange_labels += self.plane.steering.strange
        self._keep_fields(p, head)
        return 0

    cdef void _read_header_bytes(self, const char* p, const Head* head) noexcept:
        """KServe's Inference-Header-Content-Length."""
        cdef const char* name = b"inference-header-content-length"
        cdef int index
        for index in range(head.n_fields):
            if head.fields[index].name.size == 31 and (
                    strncasecmp(p + head.fields[index].name.start, name, 31) == 0):
                if not read_integer(p + head.fields[index].value.start,
                                    head.fields[index].value.size, &self.header_bytes):
                    self.header_bytes = -1

    cdef int _read_request_id(self, const char* p, const Head* head) except -1:
        cdef Span value
        if head.request_id >= 0:
            value = head.fields[head.request_id].value
            if 0 < value.size <= MAX_REQUEST_ID_BYTES:
                self.request_id = p[value.start:value.start + value.size]
                return 0
        self.request_id = self.plane.new_request_id()
        return 0

    cdef int _read_priority(self, const char* p, const Head* head) except -1:
        cdef Span value = head.fields[head.priority].value
        cdef int64_t asked
        if not read_integer(p + value.start, value.size, &asked) or (
                not -MAX_PRIORITY <= asked <= MAX_PRIORITY):
            return self._refuse(Reason.BAD_PRIORITY, (shown(text(p, value).encode()),))
        self.priority = max(asked, self.least_priority)
        self.priority_is_set = True
        return 0

    cdef int _read_origin(self, const char* p, const Head* head) except -1:
        """CORS: remember the headers for an allowed origin."""
        cdef Span value = head.fields[head.origin].value
        cdef bytes origin = p[value.start:value.start + value.size]
        if b"*" not in self.plane.origins and origin not in self.plane.origins:
            return 0
        self.cors = (
            b"access-control-allow-origin: " + origin + b"\r\nvary: Origin\r\n"
            b"access-control-expose-headers: x-request-id, x-headgate-reason, retry-after\r\n"
        )
        self.is_preflight = self.method == b"OPTIONS"
        return 0

    cdef bint authorize(self, const char* p, const Head* head) except -1:
        cdef Holder holder
        cdef Span value
        if not self.plane.keys or self.is_vouched:
            return True
        if head.authorization >= 0:
            value = head.fields[head.authorization].value
            if value.size < 8 or strncasecmp(p + value.start, b"bearer ", 7) != 0:
                return False
            value.start += 7
            value.size -= 7
        elif head.api_key >= 0:
            value = head.fields[head.api_key].value
        else:
            return False
        holder = self.plane.holder(p[value.start:value.start + value.size])
        if holder is None:
            return False
        self._grant(holder)
        return True

    cdef void _grant(self, Holder holder) noexcept:
        self.holder = holder.name
        self.allowed = holder.models
        self.wants_usage = holder.usage == "exact"
        self.usage_is_set = holder.usage != ""
        self.key_labels = holder.labels
        self.strange_labels = holder.strange_labels
        self.priority = self.least_priority = holder.priority

    cdef bint vouch(self, str key) except -1:
        cdef Holder holder
        for holder in self.plane.keys.values():
            if holder.name == key:
                self._grant(holder)
                return True
        return False

    cdef int _keep_fields(self, const char* p, const Head* head) except -1:
        """The end-to-end header lines, with our request id; credentials apart."""
        cdef Buffer out = self.plane.scratch
        cdef bint has_credentials = False
        cdef int index, id
        out.clear()
        for index in range(head.n_fields):
            id = head.fields[index].id
            if id == <int>FieldId.OTHER or id == <int>FieldId.CONTENT_TYPE or (
                    id == <int>FieldId.CONTENT_ENCODING) or (
                    <int>FieldId.ORIGIN <= id < <int>FieldId.CONNECTION):
                out.put_field(p, head.fields[index].name, head.fields[index].value)
            elif id == <int>FieldId.AUTHORIZATION or id == <int>FieldId.X_API_KEY:
                has_credentials = True
        out.put(b"x-request-id: ", 14)
        out.put_bytes(self.request_id)
        out.put(b"\r\n", 2)
        self.fields = out.take()
        # With keys of our own the client's has been used up here, but for the admin's.
        if has_credentials and (not self.plane.keys or self.path.local):
            for index in range(head.n_fields):
                id = head.fields[index].id
                if id == <int>FieldId.AUTHORIZATION or id == <int>FieldId.X_API_KEY:
                    out.put_field(p, head.fields[index].name, head.fields[index].value)
            self.credentials = out.take()
        return 0

    # -- the body

    cdef int read_body(self, object body, int64_t size) except -1:
        self.body = body
        self.body_size = size
        if self.path.body == BODY_JSON and (body is not None or self.method == b"POST"):
            return self._read_json()
        if self.path.body == BODY_MULTIPART:
            return self._read_form()
        if self.path.body == BODY_PATH:
            return self._read_native()
        self.served = self.plane.unnamed
        if self.allowed is not None and not self.path.names_response:
            return self._refuse(Reason.FORBIDDEN_MODEL, ("(any)",))
        if self.path.names_response:
            return self._pin(self.target.split(b"?")[0].split(b"/")[3].decode("latin-1"))
        return 0

    cdef int _read_form(self) except -1:
        cdef Value value
        cdef bytes asked = None
        cdef int reason
        try:
            found = model_part(
                bytes(self.body or b""), (self.content_type or b"").decode("latin-1")
            )
        except ValueError as error:
            return self._refuse(Reason.BAD_JSON, (error,))
        if found is not None:
            asked, value.start = found
            value.size = len(asked)
        reason = self._choose_model(asked)
        if not reason and asked is not None and asked != self.served.key:
            self._splice(value, self.served.key)
        return reason

    cdef int _read_json(self) except -1:
        """Model, alias, usage and what is forbidden."""
        cdef Envelope envelope
        cdef const char* p = start_of(self.body)
        cdef bytes asked = None
        cdef int reason
        cdef int fault = read_envelope(p, self.body_size, self.plane.json_depth, &envelope)
        if fault < 0:
            return self._refuse(Reason.BAD_JSON, (JSON_FAULTS[fault],))
        if envelope.model.size and not is_literal(p, envelope.model, b"null", 4):
            asked = string_of(p, envelope.model)
            if asked is None:
                return self._refuse(Reason.BAD_MODEL, ())
        if (envelope.kv_transfer_params.size and not self.plane.kv_transfer_params
                and not is_literal(p, envelope.kv_transfer_params, b"null", 4)):
            return self._refuse(Reason.FORBIDDEN_FIELD, ("kv_transfer_params",))
        if envelope.previous_response_id.size and (
                not is_literal(p, envelope.previous_response_id, b"null", 4)):
            reason = self._pin(
                (string_of(p, envelope.previous_response_id) or b"").decode("utf-8", "replace")
            )
            if reason:
                return reason
        reason = self._choose_model(asked)
        if reason:
            return reason
        if asked is not None and asked != self.served.key:
            self._splice(envelope.model, json.dumps(self.served.name).encode())
            p = start_of(self.body)
            read_envelope(p, self.body_size, self.plane.json_depth, &envelope)
        if envelope.priority.size and not self.priority_is_set:
            self._take_priority(p, envelope.priority)
        self._read_prompt(p, &envelope)
        if self.wants_usage:
            self._ask_for_usage(p, &envelope)
        return 0

    cdef int _read_native(self) except -1:
        """KServe's v2 protocol: the path names the model, the body may hold a `text_input`."""
        cdef Envelope envelope
        cdef const char* p = start_of(self.body)
        cdef int fault, reason = self._choose_model(self.path.model)
        if reason:
            return reason
        if self.served.key != self.path.model:
            _, sign, query = self.target.partition(b"?")
            self.target = self.path.model_path.target(
                self.served.name, (sign + query).decode("latin-1")).encode()
        if self.path.is_info:
            return self._pin_first()
        if self.path.is_infer:
            return self._take_tensors(infer_tensors(
                self.body or b"", self.header_bytes if self.header_bytes >= 0 else None))
        fault = read_envelope(p, self.body_size, self.plane.json_depth, &envelope)
        if fault < 0:
            return self._refuse(Reason.BAD_JSON, (JSON_FAULTS[fault],))
        self._read_prompt(p, &envelope)
        return 0

    cdef int read_tensors(self, bytes model, object tensors, int64_t size) except -1:
        cdef int reason = self._choose_model(model)
        self.body_size = size
        if not reason and tensors is None:
            self._pin_first()
        elif not reason:
            self._take_tensors(tensors)
        return reason

    cdef int _pin_first(self) except -1:
        """What is told of a model shall come from the same engine each time: of two readings of
        its statistics the difference is taken."""
        cdef uint64_t labels = self.course.labels | self.key_labels
        cdef int index, slot
        for index in range(self.served.n_slots):
            slot = self.served.slots[index]
            if self.plane.table.rows[slot].state == <int>State.READY and (
                    not labels & ~self.plane.table.rows[slot].labels):
                self.pinned = slot
                self.pinned_generation = self.plane.table.rows[slot].generation
                return 0
        return 0

    cdef int _take_tensors(self, object tensors) except -1:
        cdef bytes text, sequence
        self.is_stream = tensors.is_stream
        self.max_tokens = tensors.max_tokens
        if tensors.sequence:
            sequence = str(tensors.sequence).encode("utf-8", "replace")
            self.course.session = root_of(PyBytes_AS_STRING(sequence), PyBytes_GET_SIZE(sequence))
            self.is_bound = True
        if tensors.text is None or not self.plane.router.reads_prompts:
            # Tensors of another kind tell nothing of the work that they are.
            self.prompt.n_tokens = len(tensors.text or b"") / self.served.demand.bytes_per_token
            return 0
        # As JSON would have it, so that the same prompt meets itself whichever way it comes.
        text = json.dumps(tensors.text.decode("utf-8", "replace"), ensure_ascii=False).encode(
            "utf-8", "surrogatepass")
        self.prompt.begin(self.served.root, len(text))
        self.prompt.feed_json(text, len(text))
        self._measure_prompt()
        return 0

    cdef int _read_prompt(self, const char* p, const Envelope* envelope) except -1:
        """What routing wants to know of it: the prompt's blocks, and how long the answer may be."""
        cdef Value[5] parts
        cdef double bytes_per_token = self.served.demand.bytes_per_token
        cdef uint64_t root = self.served.root
        cdef int index
        self.is_stream = is_literal(p, envelope.stream, b"true", 4)
        self.max_tokens = max(<int64_t>0, number_of(p, envelope.max_tokens))
        if not self.path.has_prompt or not self.plane.router.reads_prompts:
            self.prompt.n_tokens = self.body_size / bytes_per_token
            return 0
        if envelope.cache_salt.size:
            self.cache_salt = string_of(p, envelope.cache_salt)
            if self.cache_salt is not None:
                root = _root(self.served.name, "", self.cache_salt)
        # In the order in which chat templates put them.
        parts[0] = envelope.tools
        parts[1] = envelope.system
        parts[2] = envelope.messages
        parts[3] = envelope.prompt
        parts[4] = envelope.input
        for index in range(5):
            self.prompt_bytes += parts[index].size
        self.prompt.begin(root, self.prompt_bytes)
        for index in range(5):
            self.prompt.feed_json(p + parts[index].start, parts[index].size)
        self._measure_prompt()
        return 0

    cdef void _measure_prompt(self) noexcept:
        cdef double bytes_per_token = self.served.demand.bytes_per_token
        self.prompt_bytes = self.prompt.n_bytes
        self.prompt.n_tokens = self.prompt_bytes / bytes_per_token
        self.prompt.block_tokens = TEXT_BLOCK_BYTES / bytes_per_token

    cdef bint wants_ids(self) noexcept:
        return (
            self.served.block_tokens != 0 and self.path.has_prompt and self.pinned < 0
            and self.path.body == BODY_JSON
            and (self.served.asks or self.plane.tokenizing is not None)
            and self.plane.router.reads_prompts
        )

    cdef int take_ids(self, object ids) except -1:
        cdef const unsigned int[::1] view = ids
        cdef Served served = self.served
        # A block that ends with the prompt is computed anew: the engine needs its last token.
        cdef size_t n_blocks = max(view.shape[0] - 1, 0) // served.block_tokens
        self.prompt.resize(n_blocks)
        if n_blocks:
            # An endpoint holds one base model: its name need not tell blocks apart.
            chain(_root("", served.lora, self.cache_salt or b""), &view[0],
                  4 * n_blocks * served.block_tokens, 4 * served.block_tokens, self.prompt.keys)
        self.prompt.n_tokens = view.shape[0]
        self.prompt.block_tokens = served.block_tokens
        self.has_ids = True
        return 0
    cdef void _take_priority(self, const char* p, Value value) noexcept:
        """vLLM's own field, which goes on to the engine: it judges what is no number."""
        cdef int64_t asked
        if read_integer(p + value.start, value.size, &asked):
            asked = min(max(asked, <int64_t>-MAX_PRIORITY), <int64_t>MAX_PRIORITY)
            self.priority = max(asked, self.least_priority)

    cdef int _choose_model(self, bytes name) except -1:
        """Find the model of the name that was sent, an alias or not; None: the sole one."""
        cdef Plane plane = self.plane
        cdef dict models = plane.models_for(self.path)
        if name is None:
            if len(plane.models) != 1:
                if plane.models:
                    return self._refuse(Reason.NO_MODEL, (plane.served_names(self.allowed),))
                return self._refuse(Reason.NO_ENDPOINT, ("no engine has told its models yet",))
            name = next(iter(plane.models))
        if self.allowed is not None and name not in self.allowed:
            return self._refuse(Reason.FORBIDDEN_MODEL, (shown(name),))
        # Aliases first: no engine takes a name over that the configuration gave.
        self.served = self._target(plane.aliases.get(name))
        if self.served is None:
            self.served = models.get(name)
        if self.served is None:
            return self._refuse_model(shown(name))
        if self.plane.model_labels:
            self.course.labels |= <uint64_t>self.plane.model_labels.get(name, 0)
            self.course.labels |= <uint64_t>self.plane.model_labels.get(self.served.key, 0)
            if self.plane.strange_labels:
                for one in {name, self.served.key}:
                    self.strange_labels += self.plane.strange_labels.get(one, ())
        if not self.usage_is_set:
            self.wants_usage = self.served.exact_usage
        return 0

    cdef Served _target(self, split):
        """The model that an alias stands for this time; a follow-up stays where its model is."""
        cdef Served served
        cdef dict models = self.plane.models_for(self.path)
        if split is None:
            return None
        if self.pinned >= 0:
            for name in split.names:
                served = models.get(name.encode())
                if served is not None and served.is_held_by(self.pinned):
                    return served
        return models.get(split.next().encode())

    cdef int _refuse_model(self, str name) except -1:
        if self.plane.complete and self.path.model_path is not None:
            return self._refuse(
                Reason.UNKNOWN_NATIVE_MODEL, (name, self.plane.served_names(self.allowed))
            )
        if self.plane.complete:
            return self._refuse(
                Reason.UNKNOWN_MODEL, (name, self.plane.served_names(self.allowed))
            )
        return self._refuse(
            Reason.NO_ENDPOINT, (f"no engine that is up is known to have '{name}'",)
        )

    cdef int _splice(self, Value old, bytes new) except -1:
        """Replace a value of the body; the other bytes stay as they were sent."""
        body = bytes(self.body)
        self.body = body[:old.start] + new + body[old.start + old.size:]
        self.body_size = len(self.body)
        return 0

    cdef int _ask_for_usage(self, const char* p, const Envelope* envelope) except -1:
        """Usage mode `exact`: make the engine send usage in a stream that did not ask for it."""
        cdef Value options = envelope.stream_options
        cdef bytes asked = p[options.start:options.start + options.size]
        if not self.path.takes_stream_options or not is_literal(p, envelope.stream, b"true", 4):
            return 0
        wanted = with_usage(asked)
        if wanted is None:
            return 0        # the client asks itself and shall see it
        self.hides_usage = True
        if asked:
            return self._splice(options, wanted)
        options.start = envelope.brace + 1
        return self._splice(options, b'"stream_options":' + wanted + b",")

    cdef int _pin(self, str response) except -1:
        """Only the endpoint that made a response knows it; only the key that asked may have it."""
        found = self.plane.responses.get(response)
        if found is not None:
            slot, generation, holder = found
            pool = self.plane.pools[slot]
            if (pool is not None and pool.generation == generation
                    and holder == (self.holder or "")):
                self.pinned = slot
                self.pinned_generation = generation
                return 0
        return self._refuse(Reason.UNKNOWN_RESPONSE, (response,))


cdef uint64_t _root(str model, str lora, bytes salt) except? 0:
    cdef bytes name = namespace(model, lora, salt.decode("utf-8", "replace"))
    return root_of(PyBytes_AS_STRING(name), PyBytes_GET_SIZE(name))


cdef str path_hint(bytes path):
    if path.startswith(b"/v2/"):
        return ("Of Triton's own protocol the gateway passes what is about models; for one "
                "server's memory, settings or sum of statistics ask the server itself.")
    return "If the engines serve it, list it under `paths` in the gateway's configuration."


cdef str text(const char* p, Span value):
    return p[value.start:value.start + value.size].decode("latin-1")


cdef str shown(bytes name):
    """As an error tells a name back to who sent it: they may be megabytes."""
    text = name[:SHOWN_BYTES].decode("utf-8", "replace")
    return text if len(name) <= SHOWN_BYTES else text + " ..."
