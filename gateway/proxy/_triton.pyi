from gateway.messages import Endpoint
from gateway.proxy._plane import Plane
from gateway.proxy._pool import Pool

class TritonPool(Pool):
    def __init__(self, plane: Plane, endpoint: Endpoint) -> None: ...
