"""See _triton_reply.pxd."""

import msgspec

from cpython.bytes cimport PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcmp

from engines.triton._wire cimport Piece, Response, item_of, number_of, output_of
from gateway.http._write cimport Buffer

cdef bytes HEX = b"0123456789abcdef"
cdef bytes AFTER = b',"logprobs":null,"finish_reason":null}]}\n\n'


cdef class Choice:
    def __init__(self, int index, str prompt):
        self.index = index
        self.prompt = prompt


cdef class Reply:
    """`prompts`: what the model is asked, one for each `generation.n` choices; `created`: seconds
    since 1970; `prompt_tokens`: -1 if the model shall say it."""

    def __init__(self, generation, list prompts, bytes id, str model, int64_t created,
                 int64_t prompt_tokens, bint counts):
        cdef Choice choice
        self.generation = generation
        self.id = (b"chatcmpl-" if generation.is_chat else b"cmpl-") + id
        self.model = model
        self.created = created
        self.prompt_tokens = prompt_tokens
        self.n_counted = -1
        self.is_cumulative = generation.model.is_cumulative and generation.model.streams
        self.stops = generation.stops if generation.cuts_stops else ()
        self.keeps_texts = counts or not generation.stream
        self.tool = generation.tool
        self.tells_logprobs = generation.logprobs is not None
        self.close_text = b'"}}]}' if self.tool is not None else (
            b'"}' if generation.is_chat else b'"')
        if not self.tells_logprobs:
            self.close_text += AFTER
        self.choices = []
        for prompt in prompts:
            for _ in range(generation.n):
                choice = Choice(len(self.choices), prompt)
                choice.before = self._before(choice.index)
                choice.texts = [] if self.keeps_texts else None
                choice.logprobs = []
                self.choices.append(choice)
        self.n_open = len(self.choices)

    def _common(self, what):
        return {
            "id": self.id.decode("latin-1"), "object": what, "created": self.created,
            "model": self.model,
        }

    def _event_head(self):
        what = "chat.completion.chunk" if self.generation.is_chat else "text_completion"
        common = msgspec.json.encode(self._common(what)).removesuffix(b"}")
        return b"data: " + common + b',"choices":['

    def _before(self, int index):
        opening = b'"delta":{"content":"' if self.generation.is_chat else b'"text":"'
        if self.tool is not None:
            opening = b'"delta":{"tool_calls":[{"index":0,"function":{"arguments":"'
        return self._event_head() + b'{"index":%d,' % index + opening

    def _call(self, Choice choice, arguments):
        """The one call of an answer that must be one."""
        return {
            "id": f"call_{self.id.decode('latin-1').removeprefix('chatcmpl-')}_{choice.index}",
            "type": "function",
            "function": {"name": self.tool.name, "arguments": arguments},
        }

    cdef int take(self, Choice choice, const Response* response, Buffer out) except -1:
        cdef Piece text = item_of(output_of(response, b"text_output", 11), 0)
        cdef Piece why = item_of(output_of(response, b"finish_reason", 13), 0)
        cdef Piece told
        cdef int64_t n
        n = number_of(output_of(response, b"num_input_tokens", 16))
        if n >= 0 and choice.index % self.generation.n == 0 and not choice.has_begun:
            self.told_tokens += n
        n = number_of(output_of(response, b"num_output_tokens", 17))
        if choice.is_over:
            return 0
        if n >= 0:
            choice.n_tokens += n
        elif text.size:
            choice.n_tokens += 1
        if why.size and not (why.size == 4 and why.start[:4] == b"None"):
            choice.finish = why.start[:why.size]
        if not choice.has_begun:
            self._begin(choice, out)
        if self.tells_logprobs:
            told = item_of(output_of(response, b"logprobs", 8), 0)
            self._take_logprobs(choice, told.start[:told.size])
        if text.size and self.is_cumulative:
            self._say_more(choice, text, out)
        elif text.size:
            self._say(choice, text.start, text.size, out)
        return 0

    cdef int _say_more(self, Choice choice, Piece text, Buffer out) except -1:
        """What is new of all the text so far."""
        cdef size_t n = text.size, before = choice.n_seen
        # U+FFFD at its end: a letter, as far as its tokens are there.
        while n >= 3 and memcmp(text.start + n - 3, b"\xef\xbf\xbd", 3) == 0:
            n -= 3
        choice.tail = text.start[max(n, before):text.size] if text.size > max(n, before) else None
        if n <= before:
            return 0
        choice.n_seen = n
        return self._say(choice, text.start + before, n - before, out)

    cdef int _begin(self, Choice choice, Buffer out) except -1:
        cdef bytes echoed
        choice.has_begun = True
        if self.generation.is_chat and self.generation.stream:
            self.n_events += 1
            said = {"content": ""} if self.tool is None else {
                "tool_calls": [{"index": 0, **self._call(choice, "")}]}
            out.put_bytes(self._event_head() + b'{"index":%d,"delta":' % choice.index)
            out.put_bytes(msgspec.json.encode({"role": "assistant", **said}))
            out.put_bytes(AFTER)
        if self.generation.echo:
            echoed = choice.prompt.encode("utf-8", "replace")
            self._put(choice, echoed, PyBytes_GET_SIZE(echoed), out)
        return 0

    cdef int _say(self, Choice choice, const char* p, size_t n, Buffer out) except -1:
        if choice.held is None and not self.stops and is_ascii(p, n):
            return self._put(choice, p, n, out)
        return self._say_carefully(
            choice, (choice.held or b"") + PyBytes_FromStringAndSize(p, n), out)

    cdef int _say_carefully(self, Choice choice, bytes text, Buffer out) except -1:
        """Keep back what may be the beginning of a stop, or of a letter."""
        cdef Py_ssize_t n = _kept_back(text, self.stops)
        cut = min([at for at in [text.find(stop) for stop in self.stops] if at >= 0], default=-1)
        if cut >= 0:
            choice.finish = b"stop"
            choice.is_over = True
            self.n_open -= 1
            text, n = text[:cut], 0
        choice.held = text[len(text) - n:] if n else None
        text = _valid(text[:len(text) - n])
        if text:
            self._put(choice, text, PyBytes_GET_SIZE(text), out)
        if choice.is_over:
            self._close(choice, out)
        return 0

    cdef int _put(self, Choice choice, const char* p, size_t n, Buffer out) except -1:
        if choice.texts is not None:
            choice.texts.append(PyBytes_FromStringAndSize(p, n))
        if not self.generation.stream:
            return 0
        self.n_events += 1
        out.put_bytes(choice.before)
        put_escaped(out, p, n)
        out.put_bytes(self.close_text)
        return self._close_event(choice, None, out) if self.tells_logprobs else 0

    cdef int _close_event(self, Choice choice, bytes finish, Buffer out) except -1:
        """With the logprobs that were not told yet."""
        logprobs, choice.logprobs = choice.logprobs, []
        rest = {
            "logprobs": self._told(choice, logprobs),
            "finish_reason": None if finish is None else finish.decode("utf-8", "replace"),
        }
        out.put_bytes(b"," + msgspec.json.encode(rest)[1:] + b"]}\n\n")
        return 0

    def _take_logprobs(self, Choice choice, bytes told):
        """vLLM's, of each new token: by token id, the chosen one first. It may also be null."""
        try:
            for token in msgspec.json.decode(told) or () if told else ():
                choice.logprobs.append(list(token.values()))
        except (msgspec.DecodeError, UnicodeDecodeError, AttributeError, TypeError):
            raise ValueError("its logprobs are no list of objects") from None

    def _told(self, Choice choice, list logprobs):
        """Logprobs in OpenAI's words; the tokens are counted as told."""
        most = self.generation.logprobs
        if not logprobs:
            return None
        if self.generation.is_chat:
            return {"content": [
                {**_in_chat(chosen), "top_logprobs": [
                    _in_chat(other) for other in _likeliest(token, most)]}
                for token in logprobs for chosen in token[:1]
            ]}
        texts = [token[0].get("decoded_token") or "" for token in logprobs if token]
        offsets = []
        for text in texts:
            offsets.append(choice.n_letters)
            choice.n_letters += len(text)
        return {
            "text_offset": offsets,
            "token_logprobs": [token[0].get("logprob") for token in logprobs if token],
            "tokens": texts,
            "top_logprobs": [
                {one.get("decoded_token") or "": one.get("logprob")
                 for one in _likeliest(token, most)} for token in logprobs if token
            ] if most else None,
        }

    cdef int finish(self, Choice choice, Buffer out) except -1:
        cdef bytes rest
        if choice.is_over:
            return 0
        if not choice.has_begun:
            self._begin(choice, out)
        if choice.tail is not None:
            rest = choice.tail
            choice.tail = None
            self._say(choice, rest, PyBytes_GET_SIZE(rest), out)
            if choice.is_over:
                return 0
        if choice.held is not None:
            rest = _valid(choice.held)
            choice.held = None
            self._put(choice, rest, PyBytes_GET_SIZE(rest), out)
        choice.is_over = True
        self.n_open -= 1
        if choice.finish is None:
            # TensorRT-LLM does not say it.
            choice.finish = b"length" if (
                choice.n_tokens >= self.generation.max_tokens) else b"stop"
        self._close(choice, out)
        return 0

    def _close(self, Choice choice, Buffer out):
        """The choice's last event."""
        if not self.generation.stream:
            return
        self.n_events += 1
        empty = b'"delta":{}' if self.generation.is_chat else b'"text":""'
        out.put_bytes(self._event_head() + b'{"index":%d,' % choice.index + empty)
        self._close_event(choice, self._finish_of(choice), out)

    def _finish_of(self, Choice choice):
        if self.tool is not None and choice.finish == b"stop":
            return self.tool.finish.encode()
        return choice.finish

    cdef bytes ending(self):
        usage = self._usage()
        if not self.generation.stream:
            what = "chat.completion" if self.generation.is_chat else "text_completion"
            choices = [self._whole(choice) for choice in self.choices]
            return msgspec.json.encode({**self._common(what), "choices": choices, "usage": usage})
        if not self.generation.include_usage:
            return b"data: [DONE]\n\n"
        event = self._event_head() + b'],"usage":' + msgspec.json.encode(usage) + b"}\n\n"
        return event + b"data: [DONE]\n\n"

    def _usage(self):
        cdef Choice choice
        n_out = self.n_counted if self.n_counted >= 0 else sum(
            [choice.n_tokens for choice in self.choices])
        n_in = self.told_tokens or self.prompt_tokens
        if n_in < 0:
            # English has some 4 bytes to a token.
            n_in = sum([len(choice.prompt.encode("utf-8", "replace")) for choice in (
                self.choices[::self.generation.n])]) // 4 + 1
        usage = {"prompt_tokens": n_in, "completion_tokens": n_out, "total_tokens": n_in + n_out}
        if (self.told_tokens or self.prompt_tokens) < 0 or (
                self.n_counted < 0 and not self.generation.asks_counts):
            usage["estimated"] = True
        return usage

    def _whole(self, Choice choice):
        text = b"".join(choice.texts).decode("utf-8", "replace")
        finish = self._finish_of(choice).decode("utf-8", "replace")
        rest = {"logprobs": self._told(choice, choice.logprobs), "finish_reason": finish}
        if not self.generation.is_chat:
            return {"index": choice.index, "text": text, **rest}
        message = {"role": "assistant", "content": text}
        if self.tool is not None:
            message = {
                "role": "assistant", "content": None, "tool_calls": [self._call(choice, text)]}
        return {"index": choice.index, "message": message, **rest}

    def texts(self):
        """What each choice has said, its prompt left out. Of a reply that keeps it."""
        cdef Choice choice
        return [
            b"".join(choice.texts[1:] if self.generation.echo else choice.texts).decode(
                "utf-8", "replace") for choice in self.choices
        ]


def _likeliest(list token, int most):
    """Of the chosen token and others, so many."""
    return sorted(token, key=lambda one: one.get("rank") or 0)[:most]


def _in_chat(one):
    text = one.get("decoded_token") or ""
    data = list(text.encode("utf-8", "replace"))
    return {"token": text, "logprob": one.get("logprob"), "bytes": data}


cdef bint is_ascii(const char* p, size_t n) noexcept nogil:
    cdef size_t at
    for at in range(n):
        if <uint8_t>p[at] >= 0x80:
            return False
    return True


cdef bytes _valid(bytes text):
    """UTF-8, whatever it was."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return text.decode("utf-8", "replace").encode()
    return text


def _kept_back(bytes text, tuple stops):
    """How many bytes of its end may be the beginning of a stop, or of a letter in UTF-8."""
    n = 0
    for stop in stops:
        for size in range(min(len(stop) - 1, len(text)), n, -1):
            if text.endswith(stop[:size]):
                n = size
                break
    for size in range(1, min(4, len(text) + 1)):
        first = text[len(text) - size]
        if first >= 0xc0:
            wanted = 2 if first < 0xe0 else 3 if first < 0xf0 else 4
            return max(n, size) if size < wanted else n
        if first < 0x80:
            return n
    return n


cdef int put_escaped(Buffer out, const char* p, size_t n) except -1:
    cdef size_t at, done = 0
    cdef uint8_t byte
    cdef char[6] code
    for at in range(n):
        byte = <uint8_t>p[at]
        if byte >= 0x20 and byte != c'"' and byte != c"\\":
            continue
        out.put(p + done, at - done)
        done = at + 1
        if byte == c'"' or byte == c"\\":
            code[0] = c"\\"
            code[1] = byte
            out.put(code, 2)
        elif byte == c"\n":
            out.put(b"\\n", 2)
        else:
            code[0] = c"\\"
            code[1] = c"u"
            code[2] = code[3] = c"0"
            code[4] = HEX[byte >> 4]
            code[5] = HEX[byte & 15]
            out.put(code, 6)
    return out.put(p + done, n - done)
