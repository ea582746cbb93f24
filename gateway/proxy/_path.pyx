"""See _path.pxd."""

from engines.dialect import Body, Dialect, Route, find_route
from engines.kserve import read_model_path, read_repository_path

cdef enum:
    # Found and kept; a client that invents paths below /v1/audio/ shall not fill memory.
    MAX_PATHS = 1024

cdef dict LOCAL_PATHS = {
    b"/health": Local.HEALTH, b"/v1/models": Local.MODELS, b"/metrics": Local.METRICS,
    b"/v2": Local.SERVER, b"/v2/": Local.SERVER, b"/v2/health/live": Local.LIVE,
    b"/v2/health/ready": Local.READY, b"/v2/repository/index": Local.INDEX,
}

cdef frozenset POST = frozenset([b"POST"])


cdef class Path:
    def __init__(self, int local, route):
        self.local = local
        # The repository wants the admin's token, not a client's key.
        self.is_open = local in (Local.HEALTH, Local.METRICS, Local.LIVE, Local.READY,
                                 Local.REPOSITORY)
        self.methods = frozenset([b"GET", b"HEAD"])
        if local >= <int>Local.LIVE:
            self.dialect = Dialect.TRITON
            self.has_body = local == <int>Local.INDEX or local == <int>Local.REPOSITORY
            self.posts = self.has_body
            if self.posts:
                self.methods = POST
        if route is None:
            return
        self.name = route.path
        self.dialect = route.dialect
        self.body = route.body
        self.posts = route.methods == ("POST",)
        self.methods = frozenset([method.encode() for method in route.methods])
        self.makes_responses = route.path == "/v1/responses"
        self.names_response = route.path == "/v1/responses/"
        self.takes_stream_options = route.dialect == Dialect.OPENAI
        self.has_prompt = self.posts and (
            route.dialect != Dialect.PLAIN and not route.path.endswith("/count_tokens"))

    cdef int names_model(self, object model_path) except -1:
        self.model_path = model_path
        self.model = model_path.model.encode("utf-8", "surrogatepass")
        self.is_info = model_path.is_info
        self.is_infer = model_path.verb == "infer"
        return 0


cdef class Paths:
    """Those that `engines.dialect` knows, our own, and `extra` ones that go to the engines."""

    def __init__(self, extra):
        self.found = {}
        self.extra = tuple([
            Route(path, Dialect.PLAIN, Body.JSON, ("GET", "POST", "PUT", "DELETE", "PATCH"))
            for path in extra
        ])

    cdef Path get(self, bytes name):
        cdef Path path = self.found.get(name)
        if path is None:
            path = self._find(name)
            if path is not None:
                if len(self.found) >= MAX_PATHS:
                    self.found.clear()
                self.found[name] = path
        return path

    cdef Path _find(self, bytes name):
        if name in LOCAL_PATHS:
            return Path(LOCAL_PATHS[name], None)
        if name.startswith(b"/v1/models/"):
            return Path(Local.MODEL, None)
        if name.startswith(b"/v2/"):
            return self._find_native(name)
        route = find_route(name.decode("latin-1"), self.extra)
        if route is None or (route.path.endswith("/") and climbs(name)):
            return None
        return Path(Local.RELAYED, route)

    cdef Path _find_native(self, bytes name):
        cdef Path path
        if climbs(name):
            return None
        text = name.decode("latin-1")
        if read_repository_path(text) is not None:
            return Path(Local.REPOSITORY, None)
        model_path = read_model_path(text)
        if model_path is None:
            return None
        local = Local.MODEL_READY if model_path.verb == "ready" else Local.RELAYED
        path = Path(local, Route(text, Dialect.TRITON, Body.PATH, model_path.methods))
        path.names_model(model_path)
        return path


cdef bint climbs(bytes path) except -1:
    """Would a server that normalises this path (RFC 3986 6.2.2.3) look elsewhere than we do?"""
    cdef bytes plain = path.lower()
    return (
        b"//" in plain or b"/./" in plain or b"/../" in plain or plain.endswith((b"/.", b"/.."))
        or b"%2e" in plain or b"%2f" in plain or b"%5c" in plain or b"\\" in plain
    )
