"""Decides which endpoint gets a request.

Pure: bytes, numbers and the time come in as arguments. No sockets, asyncio, clock, randomness or
environment here, and nothing that blocks; any thread may call, one at a time per object.
"""

from router._adapters import Adapters
from router._assumed import AssumedCaches
from router._fit import Fit
from router._index import Index
from router._policy import Policy
from router._reported import ReportedCache
from router._sessions import Sessions
from router._table import DYING, State, Table
from router.missing import Missing
from router.policy import POLICIES, make_policy

__all__ = [
    "DYING",
    "POLICIES",
    "Adapters",
    "AssumedCaches",
    "Fit",
    "Index",
    "Missing",
    "Policy",
    "ReportedCache",
    "Sessions",
    "State",
    "Table",
    "make_policy",
]
