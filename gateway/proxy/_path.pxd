"""The paths of the data port: which there are, and what is asked for with each."""

cdef enum Local:
    RELAYED = 0     # goes to an engine
    HEALTH = 1
    MODELS = 2
    MODEL = 3       # /v1/models/{id}
    METRICS = 4
    # KServe's v2 protocol: what is asked of the whole fleet
    LIVE = 5
    READY = 6
    SERVER = 7      # what the server is and can do
    MODEL_READY = 8
    INDEX = 9
    REPOSITORY = 10     # load or unload a model

cdef class Path:
    """A path of the data port, as C values: see engines.dialect.Route."""
    cdef int local
    cdef bint is_open               # needs no key
    cdef int dialect
    cdef int body                   # engines.dialect.Body
    cdef bint posts                 # POST and nothing else
    cdef frozenset methods          # of bytes
    cdef bint makes_responses       # POST /v1/responses
    cdef bint names_response        # /v1/responses/{id}...
    cdef bint takes_stream_options  # may be asked for usage in a stream
    cdef readonly str name          # as the engines know it
    cdef bint has_prompt            # is generated from a prompt in JSON
    cdef bint has_body              # local, and its answer depends on what is sent
    cdef object model_path          # engines.kserve.ModelPath, if the path names the model
    cdef bytes model                # that name
    cdef bint is_infer              # its body is tensors, not JSON alone
    cdef bint is_info               # computes nothing: asked of one engine, the same each time
    # private
    cdef int names_model(self, object model_path) except -1

cdef class Paths:
    cdef tuple extra                # routes beside the known ones
    cdef dict found                 # name -> Path; bounded
    cdef Path get(self, bytes name)     # None: unknown
    # private
    cdef Path _find(self, bytes name)
    cdef Path _find_native(self, bytes name)
