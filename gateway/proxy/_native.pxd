"""What KServe's v2 protocol asks of a server, said of all engines that speak it."""

from gateway.proxy._plane cimport Plane

# Is one of them ready, and the gateway not about to go?
cpdef bint native_is_ready(Plane plane)
# Does one that is ready have this model (or what the alias stands for)? `allowed`: see Request.
cpdef bint model_is_ready(Plane plane, bytes name, frozenset allowed)
# Entries of the repository's index: a model is READY where any of them has it ready.
cpdef list repository_index(Plane plane, frozenset allowed, bint only_ready)
# The server's metadata, as JSON.
cdef bytes server_card()
