"""KServe's v2 protocol over gRPC, as Triton speaks it: a port of each data worker's own.

Imported only where that port is on. Requests and responses pass as the bytes they are; a request's
model, prompt and id are read, everything else is the engine's and the client's business.
"""

from gateway.kserve.port import GrpcPort

__all__ = ["GrpcPort"]
