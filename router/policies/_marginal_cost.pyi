from router._policy import Policy

class MarginalCost(Policy):
    def __init__(
        self,
        name: str,
        seed: int = 0,
        *,
        k_batch: float = 0.1,
        k_pressure: float = 3.0,
        k_memory: float = 1.0,
        decode: float = 1.0,
        regrowth: float = 1.0,
    ) -> None: ...
