"""See _native.pxd."""

import msgspec

from engines.kserve import EXTENSIONS
from gateway.version import VERSION

from gateway.proxy._plane cimport Plane
from gateway.proxy._served cimport Served
from router._table cimport State

cdef bytes CARD = msgspec.json.encode(
    {"name": "headgate", "version": VERSION, "extensions": EXTENSIONS}
)


cdef bytes server_card():
    return CARD


cdef bint is_ready(Plane plane, Served served) noexcept:
    cdef int index, state
    for index in range(served.n_slots):
        state = plane.table.rows[served.slots[index]].state
        if state == <int>State.READY or state == <int>State.TRIAL:
            return True
    return False


cpdef bint native_is_ready(Plane plane):
    cdef int state
    if plane.draining:
        return False
    for pool in plane.pools:
        if pool is not None and pool.endpoint.kind == "triton":
            state = plane.table.rows[<int>pool.slot].state
            if state == <int>State.READY or state == <int>State.TRIAL:
                return True
    return False


cpdef bint model_is_ready(Plane plane, bytes name, frozenset allowed):
    cdef Served served
    if allowed is not None and name not in allowed:
        return False
    split = plane.aliases.get(name)
    for target in (name,) if split is None else [one.encode() for one in split.names]:
        served = plane.native.get(target)
        if served is not None and is_ready(plane, served):
            return True
    return False


cpdef list repository_index(Plane plane, frozenset allowed, bint only_ready):
    cdef Served served
    found = []
    for name in sorted(plane.native):
        served = plane.native[name]
        if allowed is not None and name not in allowed:
            continue
        ready = is_ready(plane, served)
        if ready or not only_ready:
            entry = {"name": served.name, "version": version_of(plane, served.name)}
            entry["state"] = "READY" if ready else "UNAVAILABLE"
            if not ready:
                entry["reason"] = "none of its engines is ready"
            found.append(entry)
    return found


cdef str version_of(Plane plane, str name):
    """As an engine's list of models has it; Triton counts from 1."""
    card = plane.cards.get(name)
    version = msgspec.json.decode(card).get("version") if card is not None else None
    return version if isinstance(version, str) else "1"
