"""What several gateways have put on the same engines, shared: exact enough to route by.

`Sharer` stands between the load table and a `Bus`; `Peers` and `Ledger` are its two sides without
I/O. Nothing here is needed for correctness: a bus that is away costs sharpness.
"""

from gateway.bus.bus import Bus
from gateway.bus.frame import endpoint_hash
from gateway.bus.no_bus import NoBus
from gateway.bus.redis_bus import RedisBus
from gateway.bus.sharer import Sharer

__all__ = ["Bus", "NoBus", "RedisBus", "Sharer", "endpoint_hash"]
